"""Mistakes of transformers that are not here, one test each.

What transformers does is told as its fact sheet tells it: "v4" is 4.57.6, "v5" is 5.23.0.
"""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.models.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)
from deit.models.pretrained import DeiTPreTrainedModel
from deit.models.vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

CLASSES = (
    DeiTModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    ViTModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
)


def pixels(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def build(tiny_fields, redraw):
    """Builds a model with large random weights; keywords are fields of the configuration."""
    return lambda model_class, **fields: redraw(
        model_class(model_class.config_class(**{**tiny_fields, **fields}))
    ).eval()


# --- loading ------------------------------------------------------------------------------------------


class MyModel(DeiTModel):
    """A user's subclass of the bare model."""


class MyClassifier(DeiTPreTrainedModel):
    """A user's model around the bare model, written as for transformers."""

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__(config)
        self.deit = DeiTModel(config, add_pooling_layer=False)
        self.my_head = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "my_head", None):
            nn.init.constant_(module.weight, 0.25)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.my_head(self.deit(pixel_values).last_hidden_state[:, 0])


@torch.no_grad()
def test_a_subclass_of_the_bare_model_loads_its_blocks(build, tmp_path):
    """v5 loads none of them and says so in a line of the log."""
    model = build(DeiTModel)
    model.save_pretrained(tmp_path)
    mine, info = MyModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(mine(pixels()).last_hidden_state, model(pixels()).last_hidden_state)


@torch.no_grad()
def test_a_users_model_around_the_bare_model_loads_its_blocks(build, tmp_path, caplog):
    """As above; what the checkpoint has not, here the user's head, starts anew and is named."""
    model = build(DeiTModel)
    model.save_pretrained(tmp_path / "bare")
    mine, info = MyClassifier.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["my_head.bias", "my_head.weight"]
    assert "my_head.weight" in caplog.text
    assert (mine.my_head.weight == 0.25).all()
    assert torch.equal(mine.deit(pixels()).last_hidden_state, model(pixels()).last_hidden_state)
    mine.save_pretrained(tmp_path / "mine")
    again = MyClassifier.from_pretrained(tmp_path / "mine")
    assert torch.equal(again(pixels()), mine(pixels()))


# --- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_return_dict_in_the_configuration_gives_a_tuple(build, model_class):
    """v4 and v5 raise AttributeError on models with heads."""
    output = build(model_class, return_dict=False)(pixels())
    assert isinstance(output, tuple)
    assert torch.equal(output[0], build(model_class)(pixels())[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_a_head_mask_acts_under_every_attention_implementation(build, attention):
    """v4 adds it to the scores as a constant under sdpa, which has no effect; v5 ignores the argument."""
    model = build(DeiTForImageClassification, attn_implementation=attention)
    head_mask = torch.ones(2, 4)
    head_mask[0, 2] = head_mask[1, 0] = 0
    masked = model(pixels(), head_mask=head_mask).logits
    assert (masked - model(pixels()).logits).abs().max() > 0.05
    for block, head in ((0, 2), (1, 0)):  # what a head says enters through its columns of the projection
        model.deit.trunk.blocks[block].attn.proj.weight[:, head * 8 : head * 8 + 8] = 0
    torch.testing.assert_close(masked, model(pixels()).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", CLASSES)
def test_an_unknown_argument_of_forward_is_refused(build, model_class):
    """v4 and v5 ignore it, and with it every misspelt argument."""
    with pytest.raises(TypeError, match="interpolate_pos_embedding"):
        build(model_class)(pixels(), interpolate_pos_embedding=True)
    parameters = inspect.signature(model_class.forward).parameters.values()
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_attention_maps_are_given_under_fused_attention(build, model_class):
    """v4 leaves the field out, v5 gives an empty tuple."""
    output = build(model_class, attn_implementation="sdpa")(pixels(), output_attentions=True)
    expected = build(model_class, attn_implementation="eager")(pixels(), output_attentions=True)
    assert len(output.attentions) == 2
    for maps, others in zip(output.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(maps, others)
        assert maps.std() > 0.01


@torch.no_grad()
def test_the_configuration_can_ask_for_attention_maps_under_fused_attention(build):
    """v4 and v5 raise ValueError when the attribute is set on the configuration of a model."""
    model = build(DeiTModel)
    model.config.output_attentions = True
    assert len(model(pixels()).attentions) == 2


def test_missing_pixels_are_named(build):
    """v5 raises AttributeError: 'NoneType' object has no attribute 'dtype'."""
    with pytest.raises(ValueError, match="pixel_values is missing"):
        build(ViTModel)()


# --- configurations -----------------------------------------------------------------------------------


@torch.no_grad()
def test_selu_is_an_activation(build):
    """The documentation of v4 and v5 promises it, the lookup raises KeyError."""
    model = build(DeiTModel, hidden_act="selu", pooler_act="selu", num_hidden_layers=1)
    block = model.trunk.blocks[0]
    x = pixels()[:, 0, :4, :8].flatten(1)  # (3, 32)
    expected = block.mlp.fc2(torch.selu(block.mlp.fc1(x)))
    assert torch.equal(block.mlp(x), expected)


@pytest.mark.parametrize("config_class", [DeiTConfig, ViTConfig])
def test_a_width_that_the_heads_do_not_divide_is_refused(config_class):
    """v5 rounds the width of a head down and silently builds a narrower attention."""
    with pytest.raises(ValueError, match="hidden_size 100 is not a multiple of num_attention_heads 12"):
        config_class(hidden_size=100).validate()


def test_a_value_of_the_wrong_type_is_a_type_error():
    """v4 takes any type; v5 raises a class of huggingface_hub that is neither TypeError nor ValueError."""
    with pytest.raises(TypeError, match=r"hidden_size must be an integer\. Received: '768'"):
        DeiTConfig(hidden_size="768")


def test_positional_arguments_of_the_configuration_work():
    """v5 takes keywords alone, v4 both."""
    assert DeiTConfig(96, 2, 3, 384) == DeiTConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=3, intermediate_size=384
    )


# --- position embeddings ------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize(("image", "patch"), [((8, 16), 4), (16, (4, 8)), ((16, 24), (8, 4))], ids=str)
@torch.no_grad()
def test_position_embeddings_of_pairs_can_be_resized(build, model_class, image, patch):
    """v4 and v5 divide an integer by a tuple (TypeError), and take every grid for square."""
    if "Masked" in model_class.__name__:
        patch = 4  # the decoder makes square patches
    model = build(model_class, image_size=image, patch_size=patch)
    height, width = model.config.grid_image_size
    trained = model(pixels(height, width))[0]
    assert torch.equal(model(pixels(height, width), interpolate_pos_encoding=True)[0], trained)
    larger = model(pixels(2 * height, 2 * width), interpolate_pos_encoding=True, output_hidden_states=True)
    patches = 4 * model.config.grid_size[0] * model.config.grid_size[1]
    assert larger.hidden_states[0].shape[1] == model.config.num_prefix_tokens + patches


@torch.no_grad()
def test_the_resized_grid_keeps_its_rows_and_columns(build):
    model = build(ViTModel, image_size=(8, 16))
    rows, columns = torch.arange(2.0).repeat_interleave(4), torch.arange(4.0).repeat(2)
    model.trunk.pos_embed[0, 1:, 0], model.trunk.pos_embed[0, 1:, 1] = rows, columns
    resized = model.trunk.resized_position_embedding(16, 16)[0, 1:].unflatten(0, (4, 4))
    torch.testing.assert_close(resized[..., 1], torch.arange(4.0).expand(4, 4))  # the width is unchanged
    assert (resized[:, 0, 0].diff() > 0).all()


# --- losses -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_labels_of_32_bits_are_class_numbers(build):
    """v4 and v5 infer the right problem, then PyTorch refuses the type."""
    model = build(DeiTForImageClassification)
    loss = model(pixels(), labels=torch.tensor([4, 0, 2], dtype=torch.int32)).loss
    assert model.config.problem_type == "single_label_classification"
    torch.testing.assert_close(loss, model(pixels(), labels=torch.tensor([4, 0, 2])).loss)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@torch.no_grad()
def test_labels_that_mark_many_classes_need_not_be_floating(build, dtype):
    """v4 and v5 infer the right problem, then PyTorch refuses the type."""
    model = build(ViTForImageClassification)
    marks = torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]])
    loss = model(pixels(), labels=marks.to(dtype)).loss
    assert model.config.problem_type == "multi_label_classification"
    torch.testing.assert_close(loss, model(pixels(), labels=marks.float()).loss)


@pytest.mark.parametrize(("problem_type", "num_labels"), [("multi_label_classification", 5), ("regression", 1)])
@torch.no_grad()
def test_parts_of_a_batch_add_up_to_its_loss_for_every_problem_type(build, problem_type, num_labels):
    """v5 forgets `num_items_in_batch` but for single labels, so that gradients that accumulate are too large."""
    model = build(DeiTForImageClassification, problem_type=problem_type, num_labels=num_labels)
    labels = torch.tensor([[0.0, 1.0, 0.5, 1.0, 0.0]] * 3)[:, :num_labels]
    whole = model(pixels(), labels=labels).loss
    parts = [model(pixels()[i], labels=labels[i], num_items_in_batch=labels.numel()).loss for i in ([0], [1, 2])]
    torch.testing.assert_close(sum(parts), whole)


@torch.no_grad()
def test_a_model_without_classifier_refuses_labels(build):
    """v4 and v5 compare the tokens with the labels."""
    with pytest.raises(ValueError, match="num_labels is 0"):
        build(DeiTForImageClassification, num_labels=0)(pixels(), labels=torch.tensor([1, 0, 0]))
    with pytest.raises(ValueError, match="num_labels is 0"):
        build(DeiTForImageClassificationWithTeacher, num_labels=0)(pixels(), labels=torch.tensor([1, 0, 0]))


@torch.no_grad()
def test_a_choice_from_one_class_is_refused_or_said(build):
    """v4 trains on a loss that is always zero; v5 refuses the configuration, and trains where it was set later."""
    with pytest.raises(ValueError, match="'single_label_classification' needs at least two labels"):
        build(DeiTForImageClassification, num_labels=1, problem_type="single_label_classification")
    model = build(DeiTForImageClassification, num_labels=1)
    model.config.problem_type = "single_label_classification"
    with pytest.warns(UserWarning, match="the loss is always 0"):
        assert model(pixels(), labels=torch.zeros(3, dtype=torch.int64)).loss == 0


# --- masked images ------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_decoder_sees_the_patches_and_all_of_them(build):
    """v4 takes the distillation token for a patch and drops the last one."""
    model = build(DeiTForMaskedImageModeling)
    other = pixels()
    encoded = model.deit(other).last_hidden_state
    reconstruction = model(other).reconstruction
    last = model.decoder[0].weight[:, :, 0, 0] @ encoded[0, -1] + model.decoder[0].bias
    torch.testing.assert_close(reconstruction[0, :, 12:, 12:], last.reshape(3, 4, 4))
    first = model.decoder[0].weight[:, :, 0, 0] @ encoded[0, 2] + model.decoder[0].bias
    torch.testing.assert_close(reconstruction[0, :, :4, :4], first.reshape(3, 4, 4))


@pytest.mark.parametrize("model_class", [DeiTForMaskedImageModeling, ViTForMaskedImageModeling])
@torch.no_grad()
def test_masked_images_of_another_size_have_a_loss(build, model_class):
    """v4 and v5 take the grid from the configuration and for square: a shape error."""
    model = build(model_class)
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, 7] = True  # of 4 rows and 3 columns: third row, second column
    image = pixels(16, 12)
    output = model(image, mask, interpolate_pos_encoding=True)
    expected = (image - output.reconstruction).abs()[:, :, 8:12, 4:8].mean()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("model_class", [DeiTForMaskedImageModeling, ViTForMaskedImageModeling])
def test_a_decoder_that_does_not_fit_is_named(build, model_class):
    """For DeiT v4 and v5 raise a broadcast error from inside the loss; for ViT a ValueError."""
    with pytest.raises(ValueError, match="encoder_stride 8 must equal patch_size 4"):
        build(model_class, encoder_stride=8)(pixels(), torch.ones(3, 16))


def test_a_model_without_mask_token_names_it(build):
    """v4 and v5: AttributeError, 'NoneType' object has no attribute 'expand'."""
    with pytest.raises(ValueError, match="has no mask token"):
        build(ViTModel)(pixels(), torch.ones(3, 16))


# --- copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@torch.no_grad()
def test_a_model_can_be_copied_after_it_returned_attention_maps(build, copied):
    """v5 leaves a local function in the model, which pickle refuses."""
    model = build(DeiTForImageClassificationWithTeacher)
    model(pixels(), output_attentions=True, output_hidden_states=True)
    assert torch.equal(copied(model)(pixels()).logits, model(pixels()).logits)

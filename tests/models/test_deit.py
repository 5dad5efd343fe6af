"""The public models: heads, losses, gradients, outputs, errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from deit.models.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)
from deit.models.losses import classification_loss, distillation_loss
from deit.models.vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

DEITS = (DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTForMaskedImageModeling)
VITS = (ViTModel, ViTForImageClassification, ViTForMaskedImageModeling)
CLASSES = (*DEITS, *VITS)
LABELS = torch.tensor([4, 0, 2])


def pixels(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def teacher_logits() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(5)) * 3


@pytest.fixture
def build(tiny_fields, redraw):
    """Builds a model with large random weights; keywords are fields of the configuration."""
    return lambda model_class, **fields: redraw(
        model_class(model_class.config_class(**{**tiny_fields, **fields}))
    ).eval()


# --- heads --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_the_mean_of_the_two_heads(build):
    model = build(DeiTForImageClassificationWithTeacher)
    output = model(pixels())
    tokens = model.deit(pixels()).last_hidden_state
    by_class = tokens[:, 0] @ model.cls_classifier.weight.T + model.cls_classifier.bias
    by_distillation = tokens[:, 1] @ model.distillation_classifier.weight.T + model.distillation_classifier.bias
    torch.testing.assert_close(output.cls_logits, by_class)
    torch.testing.assert_close(output.distillation_logits, by_distillation)
    torch.testing.assert_close(output.logits, (by_class + by_distillation) / 2)
    assert (by_class - by_distillation).abs().max() > 0.1


@torch.no_grad()
def test_the_plain_classifier_looks_at_the_class_token_alone(build):
    model = build(DeiTForImageClassification)
    tokens = model.deit(pixels()).last_hidden_state
    torch.testing.assert_close(model(pixels()).logits, tokens[:, 0] @ model.classifier.weight.T + model.classifier.bias)


@torch.no_grad()
def test_the_pooler_looks_at_the_class_token_alone(build):
    model = build(DeiTModel, pooler_output_size=7)
    output = model(pixels())
    dense = model.pooler.dense
    expected = torch.tanh(output.last_hidden_state[:, 0] @ dense.weight.T + dense.bias)
    torch.testing.assert_close(output.pooler_output, expected)


@torch.no_grad()
def test_the_reconstruction_puts_every_patch_in_its_place(build):
    """A patch's own token decides its pixels: no other pixel depends on it after the trunk."""
    model = build(DeiTForMaskedImageModeling)
    patches = model.deit(pixels()).last_hidden_state[:, 2:]
    bias = model.decoder[0].bias
    values = patches[0, 6] @ model.decoder[0].weight[:, :, 0, 0].T + bias  # second row, third column
    block = values.reshape(3, 4, 4)  # channels, rows, columns within the patch
    torch.testing.assert_close(model(pixels()).reconstruction[0, :, 4:8, 8:12], block)


# --- losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("kind", "temperature"), [("hard", 1.0), ("soft", 1.0), ("soft", 3.0)])
@torch.no_grad()
def test_the_two_headed_loss_composes_labels_and_teacher_with_the_weight(build, kind, temperature, weight):
    model = build(
        DeiTForImageClassificationWithTeacher,
        distillation_kind=kind,
        distillation_temperature=temperature,
        distillation_weight=weight,
    )
    output = model(pixels(), labels=LABELS, teacher_logits=teacher_logits())
    from_labels = classification_loss(output.cls_logits, LABELS)
    from_teacher = distillation_loss(
        output.distillation_logits, teacher_logits(), kind=kind, temperature=temperature, reduction="batchmean"
    )
    assert (from_labels - from_teacher).abs() > 0.05
    torch.testing.assert_close(output.loss, (1 - weight) * from_labels + weight * from_teacher)


@torch.no_grad()
def test_the_two_headed_loss_equals_the_number_worked_out_by_hand(build):
    """Heads that are only biases give fixed logits: two classes, one image."""
    model = build(DeiTForImageClassificationWithTeacher, num_labels=2, distillation_weight=0.25)
    for head, bias in ((model.cls_classifier, [1.0, 3.0]), (model.distillation_classifier, [0.0, 0.5])):
        head.weight.zero_()
        head.bias.copy_(torch.tensor(bias))
    output = model(pixels(1), labels=torch.tensor([0]), teacher_logits=torch.tensor([[0.0, 9.0]]))
    from_labels = math.log(math.exp(1) + math.exp(3)) - 1
    from_teacher = math.log(math.exp(0) + math.exp(0.5)) - 0.5
    assert output.loss.item() == pytest.approx(0.75 * from_labels + 0.25 * from_teacher, rel=1e-6)
    assert output.logits[0].tolist() == [0.5, 1.75]


@torch.no_grad()
def test_without_a_teacher_both_heads_learn_the_labels(build):
    model = build(DeiTForImageClassificationWithTeacher, distillation_weight=0.25)
    output = model(pixels(), labels=LABELS)
    expected = 0.75 * classification_loss(output.cls_logits, LABELS)
    expected = expected + 0.25 * classification_loss(output.distillation_logits, LABELS)
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_images_without_a_label_teach_the_distillation_head_alone(build):
    model = build(DeiTForImageClassificationWithTeacher, distillation_weight=0.25)
    output = model(pixels(), labels=torch.full((3,), -100), teacher_logits=teacher_logits())
    expected = 0.25 * distillation_loss(output.distillation_logits, teacher_logits())
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_mixed_labels_are_probabilities(build):
    model = build(DeiTForImageClassificationWithTeacher)
    certain = torch.nn.functional.one_hot(LABELS, 5).float()
    given = {"teacher_logits": teacher_logits()}
    one, other = model(pixels(), labels=certain, **given), model(pixels(), labels=LABELS, **given)
    torch.testing.assert_close(one.loss, other.loss)


@torch.no_grad()
def test_the_masked_image_loss_is_the_mean_error_of_the_masked_pixels(build):
    model = build(DeiTForMaskedImageModeling)
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0, 6] = mask[2, 0] = True
    output = model(pixels(), mask)
    error = (pixels() - output.reconstruction).abs()
    expected = torch.cat([error[0, :, 4:8, 8:12], error[2, :, :4, :4]]).mean()
    torch.testing.assert_close(output.loss, expected)
    assert model(pixels()).loss is None


@torch.no_grad()
def test_a_masked_image_that_is_not_square_has_a_loss(build):
    """transformers takes the patch grid for square and raises."""
    model = build(DeiTForMaskedImageModeling, image_size=(8, 16))
    image = torch.randn(2, 3, 8, 16)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[:, 5] = True  # second row, second column
    output = model(image, mask)
    expected = (image - output.reconstruction).abs()[:, :, 4:8, 4:8].mean()
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_a_masked_image_of_another_size_has_a_loss(build):
    """transformers takes the size from the configuration and raises."""
    model = build(DeiTForMaskedImageModeling)
    image = torch.randn(2, 3, 24, 10)  # a rest of two columns belongs to no patch
    output = model(image, torch.ones(2, 12, dtype=torch.bool), interpolate_pos_encoding=True)
    assert output.reconstruction.shape == (2, 3, 24, 8)
    torch.testing.assert_close(output.loss, (image[..., :8] - output.reconstruction).abs().mean())


# --- gradients ----------------------------------------------------------------------------------------


def assert_every_parameter_learns(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        for i, part in enumerate(parameter.grad.chunk(3) if ".qkv." in name else [parameter.grad]):
            if not (name.endswith("qkv.bias") and i == 1):  # a bias of the keys shifts all scores alike: no effect
                assert part.abs().max() > 0, f"{name}, part {i}, has a gradient of zero"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("redrawn", [True, False])
def test_distillation_trains_both_heads_both_tokens_and_everything_else(tiny_config, redraw, attention, kind, redrawn):
    torch.manual_seed(0)
    model = DeiTForImageClassificationWithTeacher(tiny_config(attn_implementation=attention, distillation_kind=kind))
    if redrawn:
        redraw(model)
    model.train()(pixels(), labels=LABELS, teacher_logits=teacher_logits()).loss.backward()
    assert_every_parameter_learns(model)


def test_labels_alone_train_both_heads(tiny_config):
    model = DeiTForImageClassificationWithTeacher(tiny_config()).train()
    model(pixels(), labels=LABELS).loss.backward()
    assert_every_parameter_learns(model)


@pytest.mark.parametrize("model_class", [DeiTForImageClassification, ViTForImageClassification])
def test_classification_trains_every_parameter(tiny_fields, model_class):
    model = model_class(model_class.config_class(**tiny_fields)).train()
    model(pixels(), labels=LABELS).loss.backward()
    assert_every_parameter_learns(model)


@pytest.mark.parametrize("model_class", [DeiTForMaskedImageModeling, ViTForMaskedImageModeling])
def test_masked_images_train_the_mask_token_and_everything_else(tiny_fields, model_class):
    model = model_class(model_class.config_class(**tiny_fields)).train()
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, ::3] = True
    model(pixels(), mask).loss.backward()
    assert_every_parameter_learns(model)


@pytest.mark.parametrize("model_class", [DeiTModel, ViTModel])
def test_the_pooled_output_trains_the_pooler_and_everything_else(tiny_fields, model_class):
    model = model_class(model_class.config_class(**tiny_fields)).train()
    model(pixels()).pooler_output.square().sum().backward()
    assert_every_parameter_learns(model)


def test_no_gradient_flows_into_the_teacher(build):
    teacher = teacher_logits().requires_grad_()
    model = build(DeiTForImageClassificationWithTeacher, distillation_kind="hard")
    model(pixels(), labels=LABELS, teacher_logits=teacher).loss.backward()
    assert teacher.grad is None


# --- training and evaluation --------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_dropout_and_drop_path_act_in_training_and_not_in_evaluation(build, model_class):
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.2}
    model = build(model_class, **rates)
    assert torch.equal(model(pixels())[0], model(pixels())[0])
    assert torch.equal(model(pixels())[0], build(model_class)(pixels())[0])
    torch.manual_seed(0)
    model.train()
    assert (model(pixels())[0] - model(pixels())[0]).abs().max() > 0.05


@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_an_image_gives_the_same_numbers_alone_and_in_a_batch(build, model_class):
    model = build(model_class)
    torch.testing.assert_close(model(pixels())[0][1:2], model(pixels()[1:2])[0], atol=1e-5, rtol=0)


# --- attention masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_hidden_token_has_no_influence_on_the_others(build, attention):
    model = build(DeiTForImageClassificationWithTeacher, attn_implementation=attention)
    mask = torch.ones(3, 18)
    mask[:, 2 + 5] = 0
    other = pixels()
    other[:, :, 4:8, 4:8] = 7.0  # patch 5
    torch.testing.assert_close(
        model(other, attention_mask=mask).logits, model(pixels(), attention_mask=mask).logits, atol=1e-5, rtol=0
    )
    assert (model(other).logits - model(pixels()).logits).abs().max() > 0.05


@torch.no_grad()
def test_attention_masks_of_two_and_four_dimensions_say_the_same(build):
    model = build(DeiTModel)
    flat = torch.ones(3, 18, dtype=torch.bool)
    flat[1, 4:] = False
    full = flat[:, None, None, :].expand(3, 1, 18, 18)
    added = torch.zeros(3, 1, 18, 18).masked_fill(~full, -1e9)
    expected = model(pixels(), attention_mask=flat).last_hidden_state
    for mask in (full, added, full.expand(3, 4, 18, 18)):
        torch.testing.assert_close(model(pixels(), attention_mask=mask).last_hidden_state, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_head_mask_reaches_the_blocks_of_every_model(build):
    for model_class in CLASSES:
        eager = build(model_class, attn_implementation="eager")
        fused = build(model_class)
        head_mask = torch.tensor([1.0, 0.0, 0.5, 1.0])
        masked = fused(pixels(), head_mask=head_mask)[0]
        torch.testing.assert_close(masked, eager(pixels(), head_mask=head_mask)[0], atol=1e-5, rtol=0)
        assert (masked - fused(pixels())[0]).abs().max() > 0.01


# --- outputs ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_configuration_decides_what_is_returned_unless_the_call_does(build):
    model = build(DeiTForImageClassification, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert [type(v) for v in model(pixels())] == [Tensor, tuple, tuple]
    output = model(pixels(), output_hidden_states=False, output_attentions=False, return_dict=True)
    assert list(output) == ["logits"]


@torch.no_grad()
def test_outputs_are_dicts_tuples_and_have_attributes(build):
    output = build(DeiTForImageClassificationWithTeacher)(pixels(), labels=LABELS)
    assert list(output) == ["loss", "logits", "cls_logits", "distillation_logits"]
    assert output["logits"] is output.logits is output[1]
    assert output[1:3] == (output.logits, output.cls_logits)
    assert output.hidden_states is None
    assert "hidden_states" not in output
    with pytest.raises(KeyError):
        output["hidden_states"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@torch.no_grad()
def test_outputs_can_be_copied_and_sent_to_other_processes(build, copied):
    output = build(DeiTForImageClassificationWithTeacher)(pixels())
    again = copied(output)
    assert type(again) is type(output)
    assert list(again) == list(output)
    assert again.loss is None
    assert torch.equal(again.logits, output.logits)


@torch.no_grad()
def test_outputs_can_be_made_from_a_dict_or_from_pairs(build):
    """accelerate does the one and DataParallel the other to an output that a model returned."""
    output = build(DeiTForImageClassificationWithTeacher)(pixels())
    for again in (type(output)({**output}), type(output)((key, output[key]) for key in output)):
        assert list(again) == list(output)
        assert again.loss is None
        assert again.logits is again[0] is output.logits


@torch.no_grad()
def test_a_field_of_an_output_can_be_replaced_in_both_ways(build):
    output = build(DeiTForImageClassification)(pixels())
    output.logits = torch.ones(1)
    assert output["logits"] is output.logits
    output["logits"] = torch.zeros(1)
    assert output.logits.item() == output["logits"].item() == 0


@torch.no_grad()
def test_inference_mode_and_autocast_are_supported(build):
    model = build(DeiTForImageClassificationWithTeacher)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixels(), labels=LABELS, teacher_logits=teacher_logits())
    assert math.isfinite(output.loss)
    torch.testing.assert_close(output.logits.float(), model(pixels()).logits, atol=0.2, rtol=0)


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
def test_inputs_that_cannot_be_used_are_refused(build, model_class):
    model = build(model_class)
    with pytest.raises(ValueError, match="pixel_values is missing"):
        model()
    with pytest.raises(ValueError, match="The image is 20 x 16 pixels, the model was made for 16 x 16"):
        model(torch.zeros(1, 3, 20, 16))
    with pytest.raises(
        ValueError, match=r"must have the shape \(batch, 3, height, width\). Received: \(1, 1, 16, 16\)"
    ):
        model(torch.zeros(1, 1, 16, 16))
    with pytest.raises(
        ValueError, match=r"attention_mask must have 2 or 4 dimensions. Received the shape \(3, 18, 18\)"
    ):
        model(pixels(), attention_mask=torch.ones(3, 18, 18))
    with pytest.raises(TypeError, match=r"interpolate_pos_encoding must be True or False. Received a tensor: name it"):
        model(pixels(), interpolate_pos_encoding=torch.ones(4))
    with pytest.raises(TypeError, match="output_attention"):
        model(pixels(), output_attention=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", [(3, 17), (2, 18), (3, 16)])
def test_an_attention_mask_for_another_number_of_tokens_is_refused(build, attention, shape):
    model = build(DeiTModel, attn_implementation=attention)
    with pytest.raises((ValueError, RuntimeError), match=r"must match|size|expand"):
        model(pixels(), attention_mask=torch.ones(shape))


def test_a_patch_mask_that_cannot_be_used_is_refused(build):
    with pytest.raises(ValueError, match=r"bool_masked_pos must have the shape \(batch, patches\) = \(3, 16\)"):
        build(DeiTForMaskedImageModeling)(pixels(), torch.ones(3, 15))
    with pytest.raises(ValueError, match="has no mask token"):
        build(DeiTModel)(pixels(), torch.ones(3, 16))
    with pytest.raises(ValueError, match="encoder_stride 8 must equal patch_size 4"):
        build(DeiTForMaskedImageModeling, encoder_stride=8)(pixels(), torch.ones(3, 16))


def test_teacher_logits_that_cannot_be_used_are_refused(build):
    model = build(DeiTForImageClassificationWithTeacher)
    with pytest.raises(ValueError, match=r"same number of classes. Received: teacher \(3, 4\), student \(3, 5\)"):
        model(pixels(), labels=LABELS, teacher_logits=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="teacher_logits need labels"):
        model(pixels(), teacher_logits=teacher_logits())


def test_labels_that_cannot_be_used_are_refused(build):
    with pytest.raises(ValueError, match=r"must have the shape \(3, 5\). Received: \(3, 4\)"):
        build(DeiTForImageClassification)(pixels(), labels=torch.zeros(3, 4))
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        build(DeiTForImageClassification)(pixels(), labels=torch.tensor([0, 5, 1]))


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_needs_a_configuration(model_class):
    with pytest.raises(
        TypeError, match=f"{model_class.__name__} needs a {model_class.config_class.__name__}. Received: dict"
    ):
        model_class({"hidden_size": 32})


@pytest.mark.parametrize("name", ["hidden_act", "pooler_act"])
def test_an_unknown_activation_is_refused(build, name):
    with pytest.raises(ValueError, match=r"Unknown activation 'gulu'. Known: gelu, "):
        build(DeiTModel, **{name: "gulu"})


def test_a_configuration_that_was_spoilt_later_is_refused(tiny_config):
    config = tiny_config()
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match="hidden_size 32 is not a multiple of num_attention_heads 5"):
        DeiTModel(config)


# --- the common base ----------------------------------------------------------------------------------


def test_the_number_of_parameters_is_worked_out_by_hand(build):
    model = build(DeiTForImageClassificationWithTeacher)
    embeddings = (3 * 4 * 4 * 32 + 32) + 2 * 32 + 18 * 32
    block = (3 * 32 * 32 + 3 * 32) + (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 4 * 32
    expected = embeddings + 2 * block + 2 * 32 + 2 * (32 * 5 + 5)
    assert model.num_parameters() == expected
    model.cls_classifier.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == expected - (32 * 5 + 5)


def test_a_model_tells_its_type_and_device(build):
    model = build(DeiTForImageClassification).bfloat16()
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))


def test_the_input_embeddings_are_the_patch_embedding(build):
    model = build(DeiTModel)
    assert model.get_input_embeddings() is model.trunk.patch_embed


def test_initial_values_are_the_same_for_the_same_seed(tiny_config):
    def drawn() -> Tensor:
        torch.manual_seed(3)
        return torch.cat([p.flatten() for p in DeiTForImageClassification(tiny_config()).parameters()])

    assert torch.equal(drawn(), drawn())

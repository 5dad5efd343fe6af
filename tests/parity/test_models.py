"""Our models against transformers': same weights, same inputs, same numbers."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import deit
from deit.models.trunk.activations import ACTIVATIONS, LEARNT_ACTIVATIONS
from deit.models.weights.loading import published_tensors

transformers = pytest.importorskip("transformers")

MODEL = "DeiTModel"
CLASSIFIER = "DeiTForImageClassification"
TWO_HEADED = "DeiTForImageClassificationWithTeacher"
MASKED = "DeiTForMaskedImageModeling"
MODELS = (MODEL, "ViTModel")
CLASSIFIERS = (CLASSIFIER, "ViTForImageClassification")
MASKED_MODELS = (MASKED, "ViTForMaskedImageModeling")
CLASSES = (*MODELS, *CLASSIFIERS, TWO_HEADED, *MASKED_MODELS)
NOT_MASKED = (*MODELS, *CLASSIFIERS, TWO_HEADED)
CONFIGS = ("DeiTConfig", "ViTConfig")
TOLERANCE = 1e-5


def pixels(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape or (3, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


def patch_mask(batch: int = 3, patches: int = 16) -> Tensor:
    """A mask that differs from image to image, and in the number of masked patches too."""
    numbers = torch.rand(batch, patches, generator=torch.Generator().manual_seed(2))
    return numbers < torch.tensor([0.2, 0.5, 0.8])[:batch, None]


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert theirs.abs().max() > 1e-2, "the oracle's numbers are too small to show a difference"
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def assert_same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """The same numbers in the same order, in nested tuples."""
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert isinstance(our, tuple) == isinstance(their, tuple)
        if isinstance(our, tuple):
            assert_same(our, their)
        else:
            assert_near(our, their)


def assert_same_outputs(ours: Any, theirs: Any) -> None:
    """The same fields in the same order, each with the same numbers."""
    assert list(ours.keys()) == list(theirs.keys())
    assert_same(tuple(ours.values()), tuple(theirs.values()))


def run(model: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


# --- outputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_hidden_states_and_attention_maps_are_those_of_transformers(pair, name, attention):
    oracle, ours = pair(name, attention=attention)
    asked = {"output_hidden_states": True, "output_attentions": True}
    theirs = run(oracle, pixels(), **asked)
    own = run(ours, pixels(), **asked)
    assert (len(theirs.hidden_states), len(theirs.attentions)) == (3, 2)
    assert_same_outputs(own, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_fused_attention_gives_the_numbers_of_transformers_when_no_maps_are_asked_for(pair, name):
    oracle, ours = pair(name, attention="sdpa")
    assert_same_outputs(run(ours, pixels()), run(oracle, pixels()))


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True, "output_attentions": True}])
@pytest.mark.parametrize("name", CLASSES)
def test_tuples_have_the_order_of_transformers(pair, name, asked):
    oracle, ours = pair(name)
    own = run(ours, pixels(), return_dict=False, **asked)
    assert isinstance(own, tuple)
    assert_same(own, run(oracle, pixels(), return_dict=False, **asked))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_tuples_with_a_loss_have_the_order_of_transformers(pair, name):
    labels = torch.tensor([4, 0, 2])
    oracle, ours = pair(name)
    assert_same(
        run(ours, pixels(), labels=labels, return_dict=False), run(oracle, pixels(), labels=labels, return_dict=False)
    )


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_masked_tuples_have_the_order_of_transformers(pair, name):
    oracle, ours = pair(name)
    asked = {"bool_masked_pos": patch_mask(), "return_dict": False, "output_hidden_states": True}
    assert_same(run(ours, pixels(), **asked), run(oracle, pixels(), **asked))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_pooler_has_the_outputs_of_transformers(pair, name):
    oracle, ours = pair(name, arguments={"add_pooling_layer": False})
    own, theirs = run(ours, pixels()), run(oracle, pixels())
    assert own.pooler_output is None
    assert theirs.pooler_output is None
    assert_same_outputs(own, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_without_dropout_training_mode_gives_the_numbers_of_transformers(pair, name):
    oracle, ours = pair(name, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    assert_same_outputs(run(ours.train(), pixels()), run(oracle.train(), pixels()))


@pytest.mark.parametrize("name", CLASSES)
def test_with_the_same_seed_dropout_falls_on_the_same_numbers_as_in_transformers(pair, name):
    """So every dropout is in the same place, in the same order and of the same rate."""
    oracle, ours = pair(name, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.4)
    torch.manual_seed(0)
    theirs = run(oracle.train(), pixels())
    torch.manual_seed(0)
    own = run(ours.train(), pixels())
    assert_same_outputs(own, theirs)
    assert (own[0] - run(ours.eval(), pixels())[0]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_pixels_of_another_type_are_taken_as_transformers_takes_them(pair, dtype):
    oracle, ours = pair(CLASSIFIER)
    given = (pixels() * 40 + 128).clamp(0, 255).to(dtype)
    assert_same_outputs(run(ours, given), run(oracle, given))


@pytest.mark.parametrize("name", CLASSES)
def test_half_precision_weights_give_nearly_the_numbers_of_transformers(pair, name):
    oracle, ours = pair(name)
    own, theirs = run(ours.bfloat16(), pixels())[0], run(oracle.bfloat16(), pixels())[0]
    assert own.dtype == theirs.dtype == torch.bfloat16
    assert_near(own.float(), theirs.float(), tolerance=0.1 * float(theirs.float().abs().max()))


# --- configurations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "fields",
    [
        {"qkv_bias": False},
        {"num_hidden_layers": 1},
        {"num_attention_heads": 1},
        {"layer_norm_eps": 0.1},
        {"num_labels": 1},
        {"intermediate_size": 24},
    ],
    ids=str,
)
def test_every_class_follows_the_sizes_of_the_configuration(pair, name, fields):
    oracle, ours = pair(name, **fields)
    assert_same_outputs(run(ours, pixels()), run(oracle, pixels()))


@pytest.mark.parametrize("name", CLASSES)
def test_pictures_of_one_channel_give_the_numbers_of_transformers(pair, name):
    oracle, ours = pair(name, num_channels=1)
    assert_same_outputs(run(ours, pixels(2, 1, 16, 16)), run(oracle, pixels(2, 1, 16, 16)))


@pytest.mark.parametrize("name", NOT_MASKED)
@pytest.mark.parametrize(
    ("image", "patch"), [((16, 24), 4), ((24, 16), (4, 8)), (16, (8, 2)), ([18, 27], [4, 4])], ids=str
)
def test_images_and_patches_that_are_not_square_give_the_numbers_of_transformers(pair, name, image, patch):
    oracle, ours = pair(name, image_size=image, patch_size=patch)
    height, width = (image, image) if isinstance(image, int) else image
    assert_same_outputs(run(ours, pixels(2, 3, height, width)), run(oracle, pixels(2, 3, height, width)))


@pytest.mark.filterwarnings("ignore:torch.jit.script")
@pytest.mark.parametrize("activation", sorted(transformers.activations.ACT2FN))
def test_every_activation_is_that_of_transformers(pair, activation):
    """Selu is ours alone: transformers' documentation names it and its table lacks it."""
    assert {*ACTIVATIONS, *LEARNT_ACTIVATIONS} - {"selu"} == set(transformers.activations.ACT2FN)
    oracle, ours = pair(MODEL, hidden_act=activation, pooler_act=activation)
    oracle.float()  # xielu starts with parameters of 16 bits, even in a model of 32
    assert_same_outputs(run(ours, pixels()), run(oracle, pixels()))


@pytest.mark.parametrize("width", [8, 48])
def test_the_width_of_the_pooler_is_that_of_the_configuration(pair, width):
    oracle, ours = pair(MODEL, pooler_output_size=width, pooler_act="relu")
    own = run(ours, pixels())
    assert own.pooler_output.shape == (3, width)
    assert_same_outputs(own, run(oracle, pixels()))


@pytest.mark.parametrize("name", [*CLASSIFIERS, TWO_HEADED])
def test_without_labels_the_logits_are_the_tokens(pair, name):
    oracle, ours = pair(name, num_labels=0)
    own = run(ours, pixels())
    assert own.logits.shape == (3, 32)
    assert_same_outputs(own, run(oracle, pixels()))


# --- losses -------------------------------------------------------------------------------------------

LOSS_CASES = {
    "single_label_classification": (5, torch.tensor([4, 0, 2])),
    "multi_label_classification": (5, torch.tensor([[1.0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]])),
    "regression": (1, torch.tensor([0.5, -2.0, 7.0])),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("problem_type", LOSS_CASES)
@pytest.mark.parametrize("told", [True, False], ids=["told", "inferred"])
def test_the_loss_of_each_problem_type_is_that_of_transformers(pair, name, problem_type, told):
    num_labels, labels = LOSS_CASES[problem_type]
    oracle, ours = pair(name, num_labels=num_labels, problem_type=problem_type if told else None)
    own, theirs = run(ours, pixels(), labels=labels), run(oracle, pixels(), labels=labels)
    assert own.loss.shape == ()
    assert_same_outputs(own, theirs)
    assert ours.config.problem_type == oracle.config.problem_type == problem_type


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_regression_of_several_numbers_is_that_of_transformers(pair, name):
    labels = pixels(3, 5, seed=9)
    oracle, ours = pair(name, problem_type="regression")
    assert_near(run(ours, pixels(), labels=labels).loss, run(oracle, pixels(), labels=labels).loss)


def test_images_without_a_label_count_as_in_transformers(pair):
    labels = torch.tensor([4, -100, 2])
    oracle, ours = pair(CLASSIFIER)
    assert_near(run(ours, pixels(), labels=labels).loss, run(oracle, pixels(), labels=labels).loss)


def test_regression_labels_may_be_a_column_as_in_transformers(pair):
    labels = torch.tensor([[0.5], [-2.0], [7.0]])
    oracle, ours = pair(CLASSIFIER, num_labels=1)
    assert_near(run(ours, pixels(), labels=labels).loss, run(oracle, pixels(), labels=labels).loss)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_of_the_loss_are_those_of_transformers(pair, gradients_of, name, attention):
    oracle, ours = pair(name, attention=attention)
    labels = torch.tensor([4, 0, 2])
    for model in (oracle, ours):
        model(pixels(), labels=labels).loss.backward()
    theirs = gradients_of(oracle)
    own = published_tensors({name: p.grad for name, p in ours.named_parameters()})
    assert set(own) == set(theirs)
    for name, gradient in theirs.items():
        torch.testing.assert_close(own[name], gradient, atol=TOLERANCE, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(g.abs().max()) for g in theirs.values()) > 0.1


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("count", [5, torch.tensor(2.0)], ids=str)
def test_a_number_of_items_divides_the_loss_as_in_transformers(pair, name, count):
    given = {"labels": torch.tensor([4, -100, 2]), "num_items_in_batch": count}
    oracle, ours = pair(name)
    assert_near(run(ours, pixels(), **given).loss, run(oracle, pixels(), **given).loss)


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_of_forward_and_numbers_of_parameters_are_those_of_transformers(pair, name):
    oracle, ours = pair(name)
    theirs = [p for p in inspect.signature(type(oracle).forward).parameters if p != "kwargs"]
    # The model with two heads can be trained here: what its loss needs comes first, the rest in transformers' order.
    trained = ("labels", "teacher_logits") if name == "DeiTForImageClassificationWithTeacher" else ()
    own = [p for p in inspect.signature(type(ours).forward).parameters if p not in trained]
    assert own[: len(theirs)] == theirs
    for arguments in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**arguments) == oracle.num_parameters(**arguments) > 1000
    assert (ours.base_model_prefix, ours.main_input_name) == (oracle.base_model_prefix, oracle.main_input_name)
    assert (ours.base_model is ours) == (oracle.base_model is oracle)


# --- masked images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED_MODELS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masked_image_loss_and_reconstruction_are_those_of_transformers(pair, name, dtype):
    mask = patch_mask()
    assert len({tuple(row.tolist()) for row in mask}) == 3
    oracle, ours = pair(name)
    own = run(ours, pixels(), bool_masked_pos=mask.to(dtype))
    assert_same_outputs(own, run(oracle, pixels(), bool_masked_pos=mask.to(dtype)))
    assert_near(own.loss, run(oracle, pixels(), bool_masked_pos=mask).loss)


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_enters_the_bare_model_as_in_transformers(pair, name):
    oracle, ours = pair(name, arguments={"use_mask_token": True})
    own = run(ours, pixels(), bool_masked_pos=patch_mask(), output_hidden_states=True)
    assert_same_outputs(own, run(oracle, pixels(), bool_masked_pos=patch_mask(), output_hidden_states=True))


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_the_masked_image_loss_of_one_channel_is_that_of_transformers(pair, name):
    oracle, ours = pair(name, num_channels=1)
    given = {"pixel_values": pixels(3, 1, 16, 16), "bool_masked_pos": patch_mask()}
    assert_same_outputs(run(ours, **given), run(oracle, **given))


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_the_loss_of_an_empty_mask_is_zero_as_in_transformers(pair, name):
    oracle, ours = pair(name)
    empty = torch.zeros(3, 16, dtype=torch.bool)
    assert run(oracle, pixels(), bool_masked_pos=empty).loss == 0
    assert run(ours, pixels(), bool_masked_pos=empty).loss == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_masked_image_loss_counts_many_pixels_right_in_half_precision(pair, dtype):
    """65 536 masked pixels are more than float16 can hold."""
    oracle, ours = pair(MASKED, image_size=256, patch_size=32, encoder_stride=32, num_hidden_layers=1)
    given = {"pixel_values": pixels(1, 3, 256, 256), "bool_masked_pos": torch.ones(1, 64, dtype=torch.bool)}
    own, theirs = run(ours.to(dtype), **given).loss, run(oracle.to(dtype), **given).loss
    assert_near(own.float(), theirs.float(), tolerance=1e-2)


# --- other sizes, attention masks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("side", [8, 16, 24, 30])
def test_position_embeddings_of_another_square_size_are_those_of_transformers(pair, name, side):
    oracle, ours = pair(name)
    asked = {"interpolate_pos_encoding": True, "output_hidden_states": True}
    assert_same_outputs(run(ours, pixels(2, 3, side, side), **asked), run(oracle, pixels(2, 3, side, side), **asked))


@pytest.mark.parametrize("name", NOT_MASKED)
@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 8), (20, 44), (9, 31), (64, 4)])
def test_position_embeddings_of_a_size_that_is_not_square_are_those_of_transformers(pair, name, height, width):
    oracle, ours = pair(name)
    given = {"pixel_values": pixels(2, 3, height, width), "interpolate_pos_encoding": True}
    assert_same_outputs(run(ours, **given), run(oracle, **given))


def attention_mask(tokens: int = 18) -> Tensor:
    mask = torch.ones(3, tokens, dtype=torch.int64)
    mask[0, 5:9] = 0
    mask[1, 1] = 0
    mask[2, 10:] = 0
    return mask


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("name", CLASSES)
def test_an_attention_mask_hides_tokens_as_in_transformers(pair, name, attention, dtype):
    oracle, ours = pair(name, attention=attention)
    tokens = 16 + ours.config.num_prefix_tokens
    given = {"pixel_values": pixels(), "attention_mask": attention_mask(tokens).to(dtype)}
    own, theirs = run(ours, **given), run(oracle, **given)
    assert_same_outputs(own, theirs)
    assert not torch.allclose(own[0], run(ours, pixels())[0], atol=1e-3)


def test_attention_maps_under_a_mask_are_those_of_transformers(pair):
    oracle, ours = pair(MODEL, attention="sdpa")
    given = {"pixel_values": pixels(), "attention_mask": attention_mask(), "output_attentions": True}
    own = run(ours, **given)
    assert_same_outputs(own, run(oracle, **given))
    assert own.attentions[0][0, :, :, 5:9].abs().max() == 0


# --- files --------------------------------------------------------------------------------------------


def weights_of(folder: Any) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_of_transformers_opens_here_with_equal_tensors(pair, name, tmp_path):
    oracle, ours = pair(name)  # checks that no key is missing, unexpected or of another shape
    assert not ours.training
    assert_equal_tensors(published_tensors(ours.state_dict()), weights_of(tmp_path / "oracle"))
    assert_same_outputs(run(ours, pixels()), run(oracle, pixels()))


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_written_here_opens_in_transformers_with_equal_tensors(name, tiny_fields, redraw, tmp_path):
    model_class = getattr(deit, name)
    ours = redraw(model_class(model_class.config_class(**tiny_fields))).eval()
    ours.save_pretrained(tmp_path / "ours")
    oracle, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    oracle.save_pretrained(tmp_path / "back")
    assert_equal_tensors(weights_of(tmp_path / "ours"), weights_of(tmp_path / "back"))
    assert_same_outputs(run(ours, pixels()), run(oracle, pixels()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_file_of_another_precision_loads_as_such(pair, dtype, tmp_path):
    oracle, _ = pair(TWO_HEADED)
    oracle.to(dtype).save_pretrained(tmp_path / "cast")
    ours = deit.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path / "cast")
    assert ours.dtype == dtype
    assert ours.config.dtype == dtype
    assert ours.config.to_dict()["dtype"] == oracle.config.to_dict()["dtype"]
    assert_equal_tensors(published_tensors(ours.state_dict()), weights_of(tmp_path / "cast"))
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path / "ours")
    assert again.dtype == dtype


def test_double_precision_weights_keep_their_last_digits(pair, tmp_path):
    oracle, _ = pair(CLASSIFIER)
    oracle.double()
    with torch.no_grad():
        oracle.classifier.weight.add_(1e-12)
    oracle.save_pretrained(tmp_path / "double")
    ours = deit.DeiTForImageClassification.from_pretrained(tmp_path / "double")
    assert torch.equal(ours.classifier.weight, oracle.classifier.weight)


# Until 5.15 transformers itself gives such a model random weights.
needs_prefixes = pytest.mark.skipif(
    tuple(int(n) for n in transformers.__version__.split(".")[:2]) < (5, 16),
    reason="this version of transformers does not open the file of a trunk in a model with heads",
)


@needs_prefixes
@pytest.mark.parametrize("name", [CLASSIFIER, TWO_HEADED, MASKED])
def test_the_trunk_of_transformers_opens_in_a_model_with_heads(pair, name, tmp_path):
    oracle, _ = pair(MODEL, arguments={"add_pooling_layer": False})
    ours, info = getattr(deit, name).from_pretrained(tmp_path / "oracle", output_loading_info=True)
    _, their_info = getattr(transformers, name).from_pretrained(tmp_path / "oracle", output_loading_info=True)
    # transformers names a missing tensor without the prefix of the trunk's model
    assert {n.removeprefix("deit.") for n in info["missing_keys"]} == {
        n.removeprefix("deit.") for n in their_info["missing_keys"]
    }
    assert info["unexpected_keys"] == set()
    assert_near(run(ours.deit, pixels()).last_hidden_state, run(oracle, pixels()).last_hidden_state)


@pytest.mark.parametrize("name", [CLASSIFIER, TWO_HEADED, MASKED])
def test_a_model_of_transformers_with_heads_opens_as_a_bare_trunk(pair, name, tmp_path):
    oracle, _ = pair(name)
    ours, info = deit.DeiTModel.from_pretrained(tmp_path / "oracle", add_pooling_layer=False, output_loading_info=True)
    assert info["missing_keys"] == set()
    assert_near(run(ours, pixels()).last_hidden_state, run(oracle.deit, pixels()).last_hidden_state)


@needs_prefixes
@pytest.mark.parametrize("name", [CLASSIFIER, TWO_HEADED, MASKED])
def test_the_trunk_written_here_opens_in_transformers_with_heads(name, tiny_config, redraw, tmp_path):
    ours = redraw(deit.DeiTModel(tiny_config(), add_pooling_layer=False)).eval()
    ours.save_pretrained(tmp_path)
    oracle, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all("classifier" in n or "decoder" in n or "mask_token" in n for n in info["missing_keys"])
    assert_near(run(ours, pixels()).last_hidden_state, run(oracle.deit, pixels()).last_hidden_state)


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"hidden_size": 48, "num_attention_heads": 3, "pooler_output_size": 7, "hidden_act": "relu", "qkv_bias": False},
    {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}},
    {"num_labels": 11, "problem_type": "multi_label_classification"},
    {"num_labels": 0},
    {"image_size": [16, 24], "patch_size": [4, 8], "num_channels": 1},
    {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "initializer_range": 0.5, "layer_norm_eps": 1e-6},
    {"output_hidden_states": True, "architectures": ["DeiTForImageClassification"], "dtype": "bfloat16"},
    {"something_of_the_user": {"nested": [1, 2]}},
]


def fields_of(config: Any) -> dict[str, Any]:
    """The fields that both sides know, as plain values."""
    values = json.loads(config.to_json_string(use_diff=False))
    names = deit.DeiTConfig.field_names() - {"num_labels", "attn_implementation", "torch_dtype", "name_or_path"}
    ours_alone = {"drop_path_rate", "distillation_kind", "distillation_temperature", "distillation_weight"}
    ours_alone |= {"layer_scale_init", "pos_embed_prefix", "pruned_heads", "head_average", "decoder_init"}
    ours_alone |= {"fused_qkv", "qkv_names", "token_merging"}
    return {**{n: values[n] for n in names - ours_alone}, "num_labels": config.num_labels}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fields", CONFIGURATIONS, ids=str)
def test_transformers_reads_our_configuration_with_equal_fields(name, fields, tmp_path):
    ours = getattr(deit, name)(**fields)
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is getattr(transformers, name)
    assert fields_of(theirs) == fields_of(ours)
    assert getattr(theirs, "something_of_the_user", None) == getattr(ours, "something_of_the_user", None)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fields", CONFIGURATIONS, ids=str)
def test_we_read_the_configuration_of_transformers_with_equal_fields(name, fields, tmp_path):
    theirs = getattr(transformers, name)(**fields)
    theirs.save_pretrained(tmp_path)
    ours = getattr(deit, name).from_pretrained(tmp_path)
    assert fields_of(ours) == fields_of(theirs)
    assert getattr(theirs, "something_of_the_user", None) == getattr(ours, "something_of_the_user", None)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_default_configuration_writes_the_keys_that_transformers_writes(name, tmp_path):
    getattr(deit, name)().save_pretrained(tmp_path / "ours")
    getattr(transformers, name)().save_pretrained(tmp_path / "theirs")
    ours = json.loads((tmp_path / "ours" / "config.json").read_text())
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    theirs.pop("transformers_version")
    assert ours == theirs


def test_our_own_fields_survive_a_journey_through_transformers(tmp_path):
    ours = deit.DeiTConfig(drop_path_rate=0.1, distillation_kind="soft", distillation_temperature=3.0)
    ours.save_pretrained(tmp_path / "ours")
    transformers.DeiTConfig.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = deit.DeiTConfig.from_pretrained(tmp_path / "theirs")
    assert (again.drop_path_rate, again.distillation_kind, again.distillation_temperature) == (0.1, "soft", 3.0)

"""Numbers, gradients and behaviour of the Keras models; the expected ones come from PyTorch."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import deit
from deit.keras.activations import ACTIVATIONS
from deit.keras.layers import DropPath
from deit.keras.losses import classification_loss, distillation_loss, problem_loss
from deit.keras.position_embedding import bicubic_matrix
from tests.keras.gradients import gradients
from tests.keras.model_cases import ACTIVATION_INPUTS, CALLS, GRADIENTS, MASK, MODELS, TINY, fields_of, pixels

CASES = Path(os.environ["DEIT_KERAS_CASES"])
BACKEND = keras.backend.backend()


@cache
def expected(file: str) -> dict[str, np.ndarray]:
    with np.load(CASES / f"{file}.npz") as arrays:
        return dict(arrays)


@cache
def opened(name: str, **options: Any) -> Any:
    return getattr(deit, f"TF{MODELS[name][0]}").from_pretrained(CASES / name, **_arguments(name), **options)


def _arguments(name: str) -> dict[str, Any]:
    return MODELS[name][2]


def array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def flat(output: Any) -> dict[str, np.ndarray]:
    return {
        f"{field}/{i}": array(tensor)
        for field, value in output.items()
        for i, tensor in enumerate(value if isinstance(value, tuple) else (value,))
    }


def once(model: Any, x: np.ndarray, arguments: dict[str, Any]) -> Any:
    """Calls a model on a size of its own; JAX, which compiles each operation for it, compiles all as one."""
    if BACKEND != "jax":
        return model(x, **arguments)
    import jax

    weights = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
    return jax.jit(lambda *given: model.stateless_call(*given, **arguments)[0])(*weights, x)


def tiny(model_class: str = "TFDeiTForImageClassification", **fields: Any) -> Any:
    config = deit.ViTConfig if "ViT" in model_class else deit.DeiTConfig
    return getattr(deit, model_class)(config(**{**TINY, **fields}))


# --- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_every_output_is_that_of_pytorch_in(call):
    name, size, arguments = CALLS[call]
    model, x = opened(name), pixels(name, size)
    found = flat(model(x, **arguments) if size is None else once(model, x, arguments))
    wanted = {k.removeprefix(f"{call}/"): v for k, v in expected("outputs").items() if k.startswith(f"{call}/")}
    assert list(found) == list(wanted)
    for field, value in wanted.items():
        np.testing.assert_allclose(found[field], value, atol=2e-5, rtol=1e-5, err_msg=field)


@pytest.mark.parametrize("call", GRADIENTS)
def test_the_gradient_of_every_weight_is_that_of_pytorch_in(call):
    name, size, arguments = CALLS[call]
    inputs = {"pixel_values": pixels(name, size)}
    inputs |= {k: ops.convert_to_tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    inputs["pixel_values"] = ops.convert_to_tensor(inputs["pixel_values"])
    found = gradients(opened(name), inputs)
    wanted = {k.removeprefix(f"{call}/"): v for k, v in expected("gradients").items() if k.startswith(f"{call}/")}
    assert set(wanted) <= set(found)
    for weight, value in found.items():
        np.testing.assert_allclose(value, wanted.get(weight, 0.0), atol=2e-5, rtol=2e-4, err_msg=weight)


def test_activations_are_those_of_pytorch():
    values = expected("activations")
    assert set(values) == set(ACTIVATIONS)
    inputs = ops.convert_to_tensor(ACTIVATION_INPUTS)
    for name, function in ACTIVATIONS.items():
        np.testing.assert_allclose(array(function(inputs)), values[name], atol=2e-5, rtol=1e-5, err_msg=name)


def test_losses_are_those_of_pytorch():
    values = expected("losses")
    logits, teacher = values["logits"], values["teacher"]
    for kind in ("labels", "shares"):
        target = values[kind]
        close(classification_loss(logits, target), values[f"ce/{kind}"])
        close(classification_loss(logits, target, label_smoothing=0.1), values[f"smooth/{kind}"])
        close(classification_loss(logits, target, loss="bce"), values[f"bce/{kind}"])
    close(classification_loss(logits, np.full(4, -100)), values["nobody/labels"])
    close(distillation_loss(logits, teacher), values["hard"])
    close(distillation_loss(logits, teacher.argmax(1)), values["hard/classes"])
    for reduction in ("batchmean", "numel"):
        loss = distillation_loss(logits, teacher, kind="soft", temperature=2.5, reduction=reduction)
        close(loss, values[f"soft/{reduction}"])


@pytest.mark.parametrize("kind", ["standardized", "wttm", "dist"])
def test_kinds_of_distillation_that_pytorch_trainings_have_are_refused_by_name(kind):
    with pytest.raises(ValueError, match=rf"must be 'hard' or 'soft'. Received: '{kind}'. Only .* PyTorch trainings"):
        distillation_loss(np.zeros((2, 3)), np.zeros((2, 3)), kind=kind)


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(array(found), wanted, rtol=tolerance, atol=tolerance)


def test_the_masked_loss_by_hand_has_a_mask_of_its_own_for_each_image():
    output = opened("masked")(pixels("masked"), bool_masked_pos=MASK)
    error = np.abs(pixels("masked") - array(output.reconstruction))
    mask = MASK.reshape(3, 4, 4).repeat(4, 1).repeat(4, 2)[:, None]
    close(output.loss, (error * mask).sum() / mask.sum() / 3)


def test_channels_last_gives_the_same_numbers():
    for name in ("classifier", "oblong"):
        last = opened(name, data_format="channels_last")
        x = pixels(name)
        close(last(x.transpose(0, 2, 3, 1))[0], array(opened(name)(x)[0]))
    masked = opened("masked", data_format="channels_last")
    found = masked(pixels("masked").transpose(0, 2, 3, 1), bool_masked_pos=MASK)
    wanted = opened("masked")(pixels("masked"), bool_masked_pos=MASK)
    close(found.loss, array(wanted.loss))
    close(found.reconstruction, array(wanted.reconstruction))


def test_resizing_a_line_to_its_own_length_changes_nothing_and_keeps_a_constant():
    np.testing.assert_array_equal(bicubic_matrix(5, 5), np.eye(5, dtype=np.float32))
    np.testing.assert_allclose(bicubic_matrix(7, 12).sum(1), 1.0, rtol=1e-6)


# --- calling ------------------------------------------------------------------------------------------


def test_inputs_come_by_position_by_name_or_in_a_dict():
    model, x = opened("classifier"), pixels("classifier")
    wanted = array(model(x).logits)
    close(model(pixel_values=x).logits, wanted)
    close(model({"pixel_values": x}).logits, wanted)
    close(model(ops.convert_to_tensor(x)).logits, wanted)
    close(model(x.tolist()).logits, wanted)
    masked = array(model(x, np.array([1.0, 0.0, 1.0, 1.0])).logits)  # transformers: head_mask comes second
    close(model({"pixel_values": x, "head_mask": [1.0, 0.0, 1.0, 1.0]}).logits, masked)
    assert not np.allclose(masked, wanted)
    assert array(model(x, None, np.array([1, 2, 3]), True, False, None, False, False).loss).shape == ()


def test_outputs_are_dicts_with_attributes_and_tuples_when_asked():
    model, x = opened("classifier"), pixels("classifier")
    output = model(x, labels=[1, 2, 3])
    assert list(output) == ["loss", "logits"]
    assert output["loss"] is output.loss is output[0] is output.to_tuple()[0]
    loss, logits = model(x, labels=[1, 2, 3], return_dict=False)
    close(loss, array(output.loss))
    close(logits, array(output[1]))
    assert list(model(x)) == ["logits"]


def test_a_model_predicts_compiled_and_joins_its_batches():
    for name, inputs in (
        ("teacher", pixels("teacher")),
        ("masked", {"pixel_values": pixels("masked"), "bool_masked_pos": MASK}),
    ):
        model = opened(name)
        output = model.predict(inputs, batch_size=2, verbose=0)
        assert "loss" not in output
        for field, value in flat(model(inputs)).items():
            if field != "loss/0":
                np.testing.assert_allclose(output[field.split("/")[0]], value, atol=2e-5)


def test_the_problem_type_is_inferred_at_the_first_loss_and_kept():
    x = pixels("classifier")
    for labels, kind in (
        (np.array([1, 2, 3]), "single_label_classification"),
        (np.zeros((3, 5), np.float32), "multi_label_classification"),
        (np.zeros((3, 5), bool), "multi_label_classification"),
    ):
        model = tiny()
        model(x, labels=labels)
        assert model.config.problem_type == kind
    model = tiny(num_labels=1)
    model(x, labels=np.array([1, 2, 3]))
    assert model.config.problem_type == "regression"


# --- training mode and masks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}, {"drop_path_rate": 0.5}]
)
def test_dropout_and_drop_path_act_in_training_alone(fields):
    keras.utils.set_random_seed(1)
    model, x = tiny(**fields, initializer_range=0.5), pixels("classifier")
    close(model(x).logits, array(model(x, training=False).logits))
    assert not np.allclose(array(model(x, training=True).logits), array(model(x, training=True).logits))
    assert not np.allclose(array(model(x, training=True).logits), array(model(x).logits))
    still = tiny(initializer_range=0.5)
    close(still(x, training=True).logits, array(still(x).logits))


def test_drop_path_skips_whole_samples_and_keeps_the_mean():
    kept = array(DropPath(0.25)(np.ones((4000, 2, 3), np.float32), training=True))
    assert set(np.unique(kept)) == {np.float32(0.0), np.float32(1 / 0.75)}
    assert np.all(kept == kept[:, :1, :1])
    assert abs(kept.mean() - 1) < 0.05
    assert not array(DropPath(1.0)(np.ones((5, 2, 3), np.float32), training=True)).any()


def test_a_mask_changes_the_output_and_an_empty_one_does_not():
    model, x = opened("model"), pixels("model")
    plain = array(model(x).last_hidden_state)
    close(model(x, bool_masked_pos=np.zeros((3, 16), bool)).last_hidden_state, plain)
    one = np.zeros((3, 16), bool)
    one[1, 5] = True
    changed = array(model(x, bool_masked_pos=one).last_hidden_state)
    assert np.abs(changed[1] - plain[1]).max() > 1e-3
    np.testing.assert_allclose(changed[[0, 2]], plain[[0, 2]], atol=1e-5)


def test_both_heads_and_every_weight_are_trained():
    model = opened("teacher")
    found = gradients(
        model,
        {
            "pixel_values": ops.convert_to_tensor(pixels("teacher")),
            "labels": ops.convert_to_tensor(np.array([0, 1, 2])),
            "teacher_logits": ops.convert_to_tensor(np.eye(5, dtype=np.float32)[:3]),
        },
    )
    assert {"cls_classifier.weight", "distillation_classifier.bias"} <= set(found)
    key_bias = [name for name in found if not np.abs(found[name]).max() > 0]
    assert key_bias == []


def test_new_models_start_like_those_of_pytorch():
    keras.utils.set_random_seed(1)
    model = deit.TFDeiTModel(deit.DeiTConfig(**TINY))
    block = model.trunk.blocks[0]
    assert abs(array(block.mlp.fc1.kernel).std() - 0.02) < 0.002
    assert not array(block.attn.qkv.bias).any()
    kernel = array(model.trunk.patch_embed.proj.kernel)
    assert np.abs(kernel).max() <= 48**-0.5
    assert kernel.std() > 0.5 * 48**-0.5
    assert model.num_parameters() == sum(int(np.prod(v.shape)) for v in model.weights)
    names = [v.path for v in model.weights]
    assert len(set(names)) == len(names)
    assert any(name.endswith("/trunk/blocks_1/attn/qkv/kernel") for name in names)


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((1, 16, 16, 3)),
            r"the shape \(batch, 3, height, width\). Received: \(1, 16, 16, 3\). Its channels st",
        ),
        (np.zeros((3, 16, 16)), r"Received: \(3, 16, 16\). Does a batch axis lack"),
        (np.zeros((1, 4, 16, 16)), r"Received: \(1, 4, 16, 16\).$"),
        (np.zeros((1, 3, 20, 16)), "The image is 20 x 16 pixels, the model was made for 16 x 16."),
    ],
)
def test_pixels_of_a_wrong_shape_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        opened("classifier")(x)


def test_channels_first_are_refused_where_the_model_takes_them_last():
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\). Its channels stand first: .*data_format='channels_first'"):
        opened("classifier", data_format="channels_last")(np.zeros((1, 3, 16, 16)))
    with pytest.raises(ValueError, match="data_format must be"):
        deit.TFDeiTModel(deit.DeiTConfig(**TINY), data_format="NHWC")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.array(["cat", "dog", "cat"]), TypeError, "labels must hold numbers. Received: <U3"),
        (np.array([0, 1, 5]), ValueError, "from 0 to 4 .*Received: 5"),
        (np.array([0, -1, 2]), ValueError, "Received: -1"),
        (np.array([0, 1]), ValueError, r"the shape \(3,\). Received: \(2,\)"),
        (np.array([[0, 1, 2], [0, 1, 2]]), ValueError, r"Received: \(2, 3\)"),
        (np.array([0.0, 1.0, 2.0]), ValueError, r"must have the shape \(3, 5\). Received: \(3,\)"),
    ],
)
def test_labels_of_a_wrong_kind_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        tiny()(pixels("classifier"), labels=labels)


def test_class_numbers_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match=r"labels must be class numbers, integers. Received: float32"):
        tiny(problem_type="single_label_classification")(pixels("classifier"), labels=np.zeros(3, np.float32))


def test_a_wrong_class_number_inside_compiled_code_makes_the_loss_nan():
    loss = problem_loss(np.zeros((2, 5), np.float32), np.array([1, 7]), "single_label_classification")
    assert np.isnan(array(loss))


def test_other_wrong_arguments_are_refused():
    x = pixels("model")
    for call, error, message in (
        (lambda: opened("model")(), ValueError, "pixel_values is missing"),
        (lambda: opened("model")(x, head_mask=np.ones(3)), ValueError, r"head_mask must have .*Received: \(3,\)"),
        (lambda: opened("model")(x, bool_masked_pos=np.ones((3, 9))), ValueError, r"\(3, 16\). Received: \(3, 9\)"),
        (lambda: opened("no_pooler")(x, bool_masked_pos=MASK), ValueError, "has no mask token"),
        (lambda: opened("headless")(x, labels=np.zeros(3, int)), ValueError, "has no classifier"),
        (lambda: opened("teacher")(x, teacher_logits=np.zeros((3, 5))), ValueError, "teacher_logits need labels"),
        (lambda: opened("model")({"pixels": x}), TypeError, "does not know the input 'pixels'"),
        (lambda: opened("model")({"pixel_values": x, "labels": [1]}), TypeError, "does not know the input 'labels'"),
        (lambda: opened("model")(x > 0), TypeError, "Received: bool"),
        (lambda: deit.TFDeiTModel(deit.ViTConfig()), TypeError, "needs a DeiTConfig. Received: ViTConfig"),
        (lambda: tiny(hidden_act="gelo"), ValueError, "Unknown activation 'gelo'"),
        (
            lambda: tiny("TFDeiTForMaskedImageModeling", encoder_stride=8)(x, bool_masked_pos=MASK),
            ValueError,
            "encoder_stride 8 must equal patch_size 4",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_tensor_of_another_backend_is_refused():
    class Foreign:
        shape = (3, 3, 16, 16)

    Foreign.__module__ = "torch" if BACKEND != "torch" else "jaxlib.core"
    with pytest.raises(TypeError, match=f"is a tensor of '(torch|jax)', and Keras runs on '{BACKEND}'"):
        opened("model")(Foreign())


def test_nothing_imported_another_framework():
    # On PyTorch nothing can be said: Keras itself imports TensorFlow, if it is there, when it writes a .keras file.
    others = {"tensorflow": ("torch", "jax"), "jax": ("torch", "tensorflow"), "torch": ()}[BACKEND]
    assert [name for name in others if name in sys.modules] == []
    assert fields_of("model") == TINY

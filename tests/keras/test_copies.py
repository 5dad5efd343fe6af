"""What files, pickles, clones and copies keep of a Keras model: numbers, freezing, quantization, how it is trained."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from deit.keras.deit import TFDeiTForImageClassification
from deit.keras.optimization import keras_adamw
from deit.keras.optimizers import WarmupCosine
from tests.keras.tiny_models import BACKEND, EAGER, X, Y, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning"),
    pytest.mark.skipif(
        BACKEND != "torch", reason="The same code and slower there; test_contract.py has files on each backend."
    ),
]


def logits(model: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(model(X).logits))


def through_file(model: Any, folder: Path) -> Any:
    model.save(folder / "model.keras")
    return type(model).from_pretrained(folder / "model.keras", allow_code=True)


COPIES: dict[str, Callable[[Any, Path], Any]] = {
    ".keras": through_file,
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _: copy.deepcopy(model),
}
CLONES: dict[str, Callable[[Any, Path], Any]] = {
    **COPIES,
    "clone_model": lambda model, _: keras.models.clone_model(model),
    "from_config": lambda model, _: type(model).from_config(model.get_config()),
}


def names(variables: list[Any]) -> list[str]:
    return [v.path.partition("/")[2] for v in variables]


# --- freezing -----------------------------------------------------------------------------------------


def freeze_trunk(model: Any) -> None:
    model.deit.trainable = False


def freeze_all_but_a_norm(model: Any) -> None:
    model.trainable = False
    model.trainable = True
    model.deit.trainable = False
    model.deit.trunk.norm.trainable = True


@pytest.mark.parametrize("way", CLONES)
def test_what_is_frozen_stays_frozen_in(way, tmp_path):
    model = tiny()
    everything = len(model.trainable_variables)
    freeze_all_but_a_norm(model)
    again = CLONES[way](model, tmp_path)
    assert names(again.trainable_variables) == names(model.trainable_variables)
    assert 0 < len(again.trainable_variables) < everything
    for ours, theirs in zip(model._flatten_layers(), again._flatten_layers(), strict=True):
        assert (ours.name, ours.trainable) == (theirs.name, theirs.trainable) or ours is model
    again.trainable = False  # TensorFlow passes over a flag that does not change
    again.trainable = True
    assert len(again.trainable_variables) == everything


def test_a_frozen_copy_trains_what_is_left_alone(tmp_path):
    model = tiny()
    freeze_trunk(model)
    model.compile("sgd", run_eagerly=EAGER)
    again = through_file(model, tmp_path)
    before = [np.array(ops.convert_to_numpy(v.value)) for v in again.deit.variables]
    head = np.array(ops.convert_to_numpy(again.classifier.kernel.value))
    again.fit(X, Y, verbose=0)
    after = [ops.convert_to_numpy(v.value) for v in again.deit.variables]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.array_equal(head, ops.convert_to_numpy(again.classifier.kernel.value))


# --- how a model is trained ---------------------------------------------------------------------------


def decayed(model: Any) -> list[str]:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return names([v for v in model.trainable_variables if optimizer._use_weight_decay(v)])


def plain_adamw(model: Any) -> Any:
    """Keras's own optimizer, with exclusions of the user's choice."""
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[model.deit.trunk.pos_embed], var_names=["bias"])
    return optimizer


def scaled(model: Any) -> Any:
    return keras.optimizers.LossScaleOptimizer(plain_adamw(model))


@pytest.mark.parametrize(
    ("way", "make"),
    [
        (".keras", lambda m: keras_adamw(m, WarmupCosine(1e-3, steps_per_epoch=2))),
        ("pickle", plain_adamw),
        ("deepcopy", scaled),
    ],
)
def test_what_is_not_decayed_stays_so_in(way, make, tmp_path):
    model = tiny()
    model.compile(make(model))
    model.optimizer.build(model.trainable_variables)
    wanted = decayed(model)
    assert 0 < len(wanted) < len(model.trainable_variables)
    assert decayed(COPIES[way](model, tmp_path)) == wanted


def test_the_optimizer_keeps_its_rule_when_it_is_copied_alone():
    model = tiny()
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(keras_adamw(model, 1e-3)))
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    assert {name.rpartition("/")[2] for name in decayed(model)} == {"kernel"}


def test_a_training_goes_on_from_a_file_as_if_it_had_not_stopped(tmp_path):
    """Moments, running average, schedule, metrics and frozen tensors: one wrong one changes the weights."""
    model = tiny(drop_path_rate=0.0)
    model.deit.trunk.blocks[0].mlp.trainable = False
    optimizer = keras_adamw(model, WarmupCosine(1e-1, steps_per_epoch=1, epochs=9, warmup_epochs=2), weight_decay=1.0)
    if BACKEND != "jax":  # where Keras 3.15 donates one buffer twice when there is a running average
        optimizer.use_ema, optimizer.ema_momentum = True, 0.5
    model.compile(optimizer, metrics=["accuracy"], run_eagerly=EAGER)
    model.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    again = through_file(model, tmp_path)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert int(again.optimizer.iterations.value) == 2
    histories = [m.fit(X, Y, epochs=2, shuffle=False, verbose=0).history for m in (model, again)]
    assert set(histories[0]) == {"loss", "accuracy"}
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5)
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-5)
    ours, theirs = ([ops.convert_to_numpy(v.value) for v in m.optimizer.variables] for m in (model, again))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(other, mine, atol=1e-5)


# --- numbers ------------------------------------------------------------------------------------------


def rounded(kernel: np.ndarray, mode: str, block: int) -> np.ndarray:
    """What is left of a matrix (inputs, outputs) by the formulas: by column, int4 by block of inputs."""
    if mode == "float8":
        return kernel
    if mode == "int8" or block == -1:
        scale = np.abs(kernel).max(0) / {"int8": 127, "int4": 7}[mode]
        return np.round(kernel / scale) * scale
    parts = []
    for part in np.split(kernel, range(block, len(kernel), block)):
        filled = part if len(part) == block else np.concatenate([part, np.zeros_like(part[:1])])
        low, high = filled.min(0), filled.max(0)
        scale = (high - low) / 15
        zero = np.clip(np.round(-low / scale) - 8, -8, 7)
        parts.append((np.clip(np.round(part / scale) + zero, -8, 7) - zero) * scale)
    return np.concatenate(parts)


def quantize(model: Any, mode: str, block: int | None) -> None:
    if mode != "int4":
        model.quantize(mode)
        return
    model.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=block))


@pytest.mark.parametrize(("mode", "block"), [("int8", 0), ("int4", 128), ("int4", 12), ("int4", -1), ("float8", 0)])
def test_the_matrices_of_quantized_layers_are_saved_as_the_formulas_say(mode, block, tmp_path):
    keras.utils.set_random_seed(0)  # a weight halfway between two steps may be rounded either way
    model = tiny()
    mlp = model.deit.trunk.blocks[0].mlp  # matrices of 16 x 32 and 32 x 16: blocks of 12 do not divide them
    exact = [np.array(ops.convert_to_numpy(layer.kernel.value)) for layer in (mlp.fc1, mlp.fc2)]
    mlp.fc1.bias.assign(np.full(32, 3.0, "float32"))
    for layer in (mlp.fc1, mlp.fc2):
        quantize(layer, mode, block)
    model.save_pretrained(tmp_path)
    again = TFDeiTForImageClassification.from_pretrained(tmp_path)
    for layer, kernel in zip(
        (again.deit.trunk.blocks[0].mlp.fc1, again.deit.trunk.blocks[0].mlp.fc2), exact, strict=True
    ):
        found = np.asarray(ops.convert_to_numpy(layer.kernel.value))
        np.testing.assert_allclose(found, rounded(kernel, mode, block), atol=2e-6)
        assert mode == "float8" or np.abs(found - kernel).max() > 1e-4


def test_a_model_that_is_not_quantized_takes_no_quantized_weights(tmp_path):
    model = tiny()
    model.quantize("int8")
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="could not be loaded"):
        TFDeiTForImageClassification.from_pretrained(tmp_path / "model.weights.h5", config=model.config)


def test_a_model_that_is_built_quantized_takes_no_weights_of_files(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"A quantized layer cannot take weights of a file. Open the model in floating"
    ):
        TFDeiTForImageClassification.from_pretrained(tmp_path, dtype="int8_from_float32")


@pytest.mark.parametrize("way", [".keras", "clone_model"])
def test_the_types_of_single_layers_and_the_rates_are_kept_in(way, tmp_path):
    model = tiny(dtype="mixed_bfloat16", num_hidden_layers=2, drop_path_rate=0.3, hidden_dropout_prob=0.2)
    model.deit.trunk.blocks[0].mlp.fc1.dtype_policy = "float32"
    again = CLONES[way](model, tmp_path)
    assert again.dtype_policy.name == "mixed_bfloat16"
    block, last = again.deit.trunk.blocks
    assert (block.mlp.fc1.compute_dtype, block.mlp.fc2.compute_dtype) == ("float32", "bfloat16")
    assert (last.drop_path.rate, last.drop.rate) == (0.3, 0.2)
    assert again.config == model.config

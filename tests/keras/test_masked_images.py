"""Masked-image models against transformers' numbers, and what their masks and gradients must be."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import deit
from deit.keras.heads import KerasPixelDecoder
from tests.keras.gradients import derivative, gradients
from tests.keras.model_cases import BATCH, MASKED_MODELS, MODELS, fields_of, pixels

CASES = Path(os.environ["DEIT_KERAS_CASES"])
TOLERANCE = 1e-5


@cache
def opened(name: str) -> Any:
    return getattr(deit, f"TF{MODELS[name][0]}").from_pretrained(CASES / name)


@cache
def expected() -> dict[str, np.ndarray]:
    if not (CASES / "masked_images.npz").is_file():
        pytest.skip("transformers is not installed")
    with np.load(CASES / "masked_images.npz") as arrays:
        return dict(arrays)


def array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def hidden_pixels(name: str, mask: np.ndarray) -> np.ndarray:
    """(B, C, H, W), True where a pixel is hidden, from (B, P)."""
    patch = fields_of(name)["patch_size"]
    rows = fields_of(name)["image_size"] // patch
    grid = mask.astype(bool).reshape(BATCH, 1, rows, rows)
    return np.broadcast_to(grid.repeat(patch, 2).repeat(patch, 3), pixels(name).shape)


@pytest.mark.parametrize("kind", ["bool", "int64", "int32"])
@pytest.mark.parametrize("name", MASKED_MODELS)
def test_loss_and_reconstruction_are_those_of_transformers(name, kind):
    values = expected()
    output = opened(name)(pixels(name), bool_masked_pos=values[f"{name}/mask"].astype(kind))
    assert list(output) == ["loss", "reconstruction"]
    for field in output:
        wanted = values[f"{name}/{field}"]
        assert array(output[field]).shape == wanted.shape
        np.testing.assert_allclose(array(output[field]), wanted, atol=TOLERANCE, rtol=0, err_msg=field)


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_the_gradient_of_every_weight_is_that_of_transformers(name):
    values = {key.removeprefix(f"{name}/"): value for key, value in expected().items() if key.startswith(f"{name}/")}
    given = {"pixel_values": pixels(name), "bool_masked_pos": values["mask"]}
    assert values["mask"].dtype == MASKED_MODELS[name][1]
    found = gradients(opened(name), {key: ops.convert_to_tensor(value) for key, value in given.items()})
    wanted = {k.removeprefix("gradient/"): v for k, v in values.items() if k.startswith("gradient/")}
    assert set(found) == set(wanted)
    for weight, value in wanted.items():
        np.testing.assert_allclose(found[weight], value, atol=TOLERANCE, rtol=0, err_msg=weight)


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_only_masked_pixels_carry_gradient(name, monkeypatch):
    """The loss is the mean of |error| over the hidden pixels: each has the same gradient but for its sign."""
    model, mask = opened(name), expected()[f"{name}/mask"]
    decode = KerasPixelDecoder.call
    error = array(model(pixels(name), bool_masked_pos=mask).reconstruction) - pixels(name)

    def loss(change: Any) -> Any:
        monkeypatch.setattr(KerasPixelDecoder, "call", lambda *args, **kwargs: decode(*args, **kwargs) + change)
        return model(pixels(name), bool_masked_pos=mask).loss

    gradient = derivative(loss, np.zeros_like(error))
    hidden = hidden_pixels(name, mask)
    assert not gradient[~hidden].any()
    np.testing.assert_allclose(gradient, hidden * np.sign(error) / hidden.sum(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_an_empty_mask_gives_the_plain_forward_and_a_loss_of_zero(name):
    plain = opened(name)(pixels(name))
    empty = opened(name)(pixels(name), bool_masked_pos=np.zeros_like(expected()[f"{name}/mask"]))
    assert list(plain) == ["reconstruction"]
    assert array(empty.loss) == 0
    np.testing.assert_array_equal(array(empty.reconstruction), array(plain.reconstruction))


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_a_mask_changes_its_own_image_alone_and_hides_what_is_under_it(name):
    model, mask = opened(name), np.zeros_like(expected()[f"{name}/mask"])
    mask[1, 13] = 1
    other = np.where(hidden_pixels(name, mask), np.float32(5.0), pixels(name))
    plain = array(model(pixels(name)).reconstruction)
    masked = array(model(pixels(name), bool_masked_pos=mask).reconstruction)
    assert np.abs(masked[1] - plain[1]).max() > 0.01
    np.testing.assert_allclose(masked[[0, 2]], plain[[0, 2]], atol=TOLERANCE)
    assert np.abs(array(model(other).reconstruction)[1] - plain[1]).max() > 0.01
    np.testing.assert_array_equal(array(model(other, bool_masked_pos=mask).reconstruction), masked)


def test_a_keras_file_holds_the_masked_image_model_of_a_vit(tmp_path):
    model = opened("masked_vit")
    assert type(model) is deit.KerasViTForMaskedImageModeling
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert (type(again), again.config) == (type(model), model.config)
    for ours, theirs in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs), err_msg=theirs.path)


def test_a_stride_that_is_not_the_patch_size_is_refused():
    config = deit.ViTConfig(**{**fields_of("masked_vit"), "encoder_stride": 8})
    with pytest.raises(ValueError, match="encoder_stride 8 must equal patch_size 16"):
        deit.TFViTForMaskedImageModeling(config)(pixels("masked_vit"), bool_masked_pos=np.ones((BATCH, 16), bool))

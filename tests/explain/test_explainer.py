"""From a file to pictures: what the model sees, where that lies in the original image, and what is drawn over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deit
from deit.core.errors import UserError
from deit.explain.explainer import Explainer
from deit.explain.maps import explain_image
from deit.explain.overlay import blended, color_bar, colors, over_original, over_seen
from deit.explain.placement import placement_of, sample, seen_image

PROCESSORS: dict[str, dict[str, Any]] = {
    "crop": {"size": {"shortest_edge": 20}, "crop_size": 16},
    "squash": {"size": {"height": 16, "width": 16}, "do_center_crop": False},
    "border": {"size": {"shortest_edge": 12}, "crop_size": 16},
    "as it is": {"do_resize": False, "crop_size": 16},
    "whole": {"do_resize": False, "do_center_crop": False},
}


def photo(width: int, height: int) -> Image.Image:
    """Returns an image whose red rises to the right and whose green rises downward, so that a pixel tells its place."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.stack([255 * x, 255 * y, 0 * x], -1).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (64, 64), (21, 90)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_place_in_the_original_is_where_the_preprocessing_puts_it(name, size):
    processor = deit.DeiTImageProcessor(**PROCESSORS[name], resample=2)
    image = photo(*size)
    pixels = processor(image, return_tensors="np").pixel_values[0]
    seen = np.asarray(seen_image(processor, pixels), np.float32)
    place = placement_of(processor, (image.height, image.width))
    assert place is not None
    for channel, axis in ((0, "x"), (1, "y")):
        back = place.to_original(seen[..., channel], (image.height, image.width), outside=np.nan)
        expected = np.asarray(image, np.float32)[..., channel]
        inside = ~np.isnan(back)
        inner = inside.copy()
        for step in (3, -3):
            inner &= np.roll(inside, step, 0) & np.roll(inside, step, 1)
        if name == "border":  # next to a border of zeros, values between pixels are darker
            both = np.asarray(image)[..., :2]
            inner &= ((both > 80) & (both < 175)).all(-1)
        assert inner.any()
        np.testing.assert_allclose(back[inner], expected[inner], atol=20 if name == "border" else 14, err_msg=axis)


def test_what_the_model_sees_is_the_preprocessed_image():
    processor = deit.DeiTImageProcessor(size={"shortest_edge": 20}, crop_size=16)
    image = photo(40, 30)
    resized = image.resize((26, 20), Image.Resampling.BICUBIC).crop((5, 2, 21, 18))
    seen = seen_image(processor, processor(image, return_tensors="np").pixel_values[0])
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(resized))
    raw = deit.DeiTImageProcessor(do_normalize=False, do_rescale=False, do_resize=False, do_center_crop=False)
    pixels = raw(image, return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(np.asarray(seen_image(raw, pixels)), np.asarray(image))
    assert seen_image(raw, pixels[:1]).mode == "RGB"


def test_a_replaced_step_has_no_known_place():
    class Mirrored(deit.DeiTImageProcessor):
        def resize(self, image: Any, *args: Any, **options: Any) -> Any:
            return super().resize(image[..., ::-1], *args, **options)

    assert placement_of(Mirrored(size={"shortest_edge": 20}, crop_size=16), (30, 40)) is None


def test_values_between_pixels_are_bilinear():
    picture = np.random.default_rng(0).random((3, 5)).astype(np.float32)
    ours = sample(picture, (np.arange(9) + 0.5) / 9, (np.arange(20) + 0.5) / 20)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(picture)[None, None], size=(9, 20), mode="bilinear")
    np.testing.assert_allclose(ours, theirs[0, 0], atol=1e-6)


# --- pictures -----------------------------------------------------------------------------------------


def lab(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns CIE Lab (D65) of sRGB (..., 3) of 8 bit, by the standard's formulas."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / [0.9505, 1, 1.089]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def test_colors_rise_in_lightness_in_even_steps():
    every = lab(colors()[::15].astype(float))
    steps = np.diff(every[:, 0])
    assert (steps > 0).all()
    assert steps.max() / steps.min() < 2.5  # of CIE's lightness; Oklab's is even by construction
    assert np.linalg.norm(np.diff(every, axis=0), axis=1).min() > 3
    assert color_bar(20, 3).size == (20, 3)


def test_a_map_is_drawn_where_its_patches_lie():
    grid_map = np.zeros((4, 4), np.float32)
    grid_map[0, 3] = 1
    gray = Image.new("RGB", (18, 16), (128, 128, 128))
    drawn = np.asarray(over_seen(gray, grid_map, (4, 4))).astype(int)
    assert (drawn[:, 16:] == round(128 * 0.35)).all()  # a rest that fills no patch is dark
    spread = drawn.max(-1) - drawn.min(-1)
    assert np.unravel_index(drawn[..., 0].argmax(), spread.shape)[0] < 4
    assert drawn[1, 14, 0] > drawn[13, 1, 0] + 40
    flat = np.asarray(blended(gray, np.zeros((16, 18)), np.ones((16, 18))))
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1


def test_over_the_original_what_the_crop_leaves_out_is_dark():
    processor = deit.DeiTImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    image = Image.new("RGB", (64, 32), (200, 200, 200))
    place = placement_of(processor, (32, 64))
    assert place is not None
    drawn = np.asarray(over_original(image, np.ones((4, 4), np.float32), (4, 4), (16, 16), place)).astype(int)
    dark = (drawn == round(200 * 0.35)).all(-1)
    assert dark[:, :16].all()
    assert dark[:, 48:].all()
    assert not dark[:, 16:48].any()


# --- files --------------------------------------------------------------------------------------------


@pytest.fixture
def explainer(model_of: Any) -> Explainer:
    return Explainer(model_of("distilled"), deit.DeiTImageProcessor(size={"shortest_edge": 20}, crop_size=16))


def test_an_image_is_explained_as_its_pixels_are(explainer, tmp_path):
    photo(50, 30).save(tmp_path / "a.png")
    found = explainer.explain(tmp_path / "a.png", method="legrad", target=2)
    pixels = explainer.processor(photo(50, 30), return_tensors="pt").pixel_values
    expected = explain_image(explainer.model, pixels, method="legrad", target=2)
    for name, maps in expected.heads.items():
        np.testing.assert_array_equal(found.explanation.heads[name].values, maps.values)
        np.testing.assert_array_equal(found.array()[list(expected.heads).index(name), -1], maps.overall)
    assert found.array().shape == (3, 4, 4, 4)
    assert list(found.scores) == ["both", "class", "distillation"]
    told = found.to_dict()
    assert told["heads"]["class"]["score"]["random_orders"] == 10
    assert told["region"] == pytest.approx([25 - 12, 15 - 12, 25 + 12, 15 + 12], abs=1.5)
    assert found.draw("class").size == (50, 30)
    assert found.draw(block=1, original=False).size == (16, 16)
    for wrong in ({"head": "other"}, {"block": 0}, {"block": 4}):
        with pytest.raises(UserError, match="Received"):
            found.draw(**wrong)


def test_arrays_images_and_rotated_files_are_explained(explainer, tmp_path):
    image = photo(50, 30)
    by_image = explainer.explain(image, random_orders=0)
    assert (by_image.scores, image.size) == ({}, (50, 30))
    by_array = explainer.explain(np.asarray(image), random_orders=0)
    np.testing.assert_array_equal(by_array.array(), by_image.array())
    assert (by_array.size, by_array.draw().size) == (None, (16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = explainer.explain(tmp_path / "turned.png", random_orders=0)
    np.testing.assert_array_equal(turned.array(), by_image.array())
    assert turned.draw().size == (50, 30)


def test_a_large_photo_is_drawn_smaller_at_the_same_place(explainer):
    found = explainer.explain(photo(3200, 1600), random_orders=0)
    drawn = np.asarray(found.draw()).astype(int)
    assert drawn.shape[:2] == (800, 1600)
    rows, columns = np.nonzero(drawn.max(-1) - drawn.min(-1) > 8)  # outside of the crop the photo is gray
    assert abs(rows.min() - 80) < 30
    assert abs(columns.min() - 480) < 30


def test_a_regression_has_maps_and_no_score(model_of):
    explainer = Explainer(
        model_of("vit", num_labels=1), deit.DeiTImageProcessor(size={"shortest_edge": 20}, crop_size=16)
    )
    assert explainer.explain(photo(20, 20)).scores == {}


def test_models_of_others_and_exports_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a model of torchvision"):
        Explainer.open("torchvision/vit_b_16")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="an export has no gradients"):
        Explainer.open(tmp_path / "model.onnx")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "resnet18", "num_classes": 3}')
    with pytest.raises(UserError, match=r"is a model of timm\. .* `deit convert`"):
        Explainer.open(tmp_path / "timm")
    with pytest.raises(FileNotFoundError):
        Explainer.open(Path("/nowhere/at-all"))

"""Near copies: every planted one is found and no other, with all pairs compared and with buckets."""

import numpy as np
import pytest
from PIL import Image

from deit.inspection import near_copies as module
from deit.inspection.near_copies import COLORS, SIDE, Limits, near_copies, usual_detail
from tests.inspection.planted import cropped, digits, jpeg, scenes

CHANGES = {
    "smaller": lambda image: image.resize((40, 40), Image.Resampling.BILINEAR),
    "larger": lambda image: image.resize((150, 150), Image.Resampling.BICUBIC),
    "stretched": lambda image: image.resize((90, 50), Image.Resampling.BICUBIC),
    "recompressed": lambda image: jpeg(image, 40),
    "cropped a little": lambda image: cropped(image, 0.03, 0.03, 0.03, 0.03),
    "cropped on two sides": lambda image: cropped(image, 0.0, 0.08, 0.06, 0.0),
    "cropped, smaller and recompressed": lambda image: jpeg(cropped(image, 0.05, 0, 0, 0.05).resize((48, 48)), 60),
    "brighter": lambda image: image.point(lambda value: min(int(value * 1.15), 255)),
}


def thumbnails(images):
    gray = [image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    colors = [image.convert("RGB").resize((COLORS, COLORS), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(each) for each in gray]), np.stack([np.asarray(each) for each in colors])


@pytest.mark.parametrize("few", [True, False], ids=["all pairs", "buckets"])
def test_every_planted_copy_is_found_and_no_other(few, monkeypatch):
    if not few:
        monkeypatch.setattr(module, "_FEW", 0)
    originals = scenes(240)
    copies = [change(originals[i]) for i, change in enumerate(list(CHANGES.values()) * 3)]
    found = near_copies(*thumbnails([*originals, *copies]))
    assert found.pairs.tolist() == [[i, len(originals) + i] for i in range(len(copies))]
    assert (found.correlations > 0.88).all()


def test_images_without_contrast_are_copies_of_none():
    flat = [Image.new("RGB", (32, 32), (i, i, i)) for i in range(0, 250, 10)]
    assert len(near_copies(*thumbnails(flat)).pairs) == 0


def test_digits_resemble_each_other_and_are_no_copies():
    images = [Image.fromarray(image) for image in digits()[0][:150]]
    gray, colors = thumbnails([*images, jpeg(images[7].convert("RGB"), 60), images[9].resize((50, 50))])
    assert usual_detail(gray) > 0.7
    assert {(7, 150), (9, 151)} <= {tuple(pair) for pair in near_copies(gray, colors).pairs.tolist()}
    assert len(near_copies(gray, colors).pairs) <= 3
    assert len(near_copies(gray, colors, limits=Limits()).pairs) > 10  # by the limits for photos


def test_other_colors_of_the_same_shapes_are_no_copy():
    gray = thumbnails(scenes(1))[0][0]
    colors = np.stack([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)])
    colors[1, :, :2] = 120
    assert len(near_copies(np.stack([gray, gray]), colors).pairs) == 0
    colors[1, :, 2:] = 120  # another exposure
    assert len(near_copies(np.stack([gray, gray]), colors).pairs) == 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_are_no_error(count):
    gray, colors = thumbnails(scenes(3))
    assert len(near_copies(gray[:count], colors[:count]).pairs) == 0


def test_many_copies_of_one_picture_are_found_without_comparing_all_pairs(monkeypatch):
    monkeypatch.setattr(module, "_FEW", 50)
    gray, colors = thumbnails([*scenes(60), *[scenes(60)[0]] * 100])
    noise = np.random.default_rng(0).integers(-2, 3, gray[60:].shape)
    gray[60:] = np.clip(gray[60:].astype(int) + noise, 0, 255)
    pairs = near_copies(gray, colors).pairs.tolist()
    assert {number for pair in pairs for number in pair} == {0, *range(60, 160)}
    assert len({b for a, b in pairs if a == 0}) > 80
    assert len(pairs) <= 100 * 12

"""Tests how a plan finds out whether left and right mean something."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from deit.planning import look
from deit.planning.look import mirrored_share


class Pictures:
    """A source of pictures in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = [Image.fromarray(image.astype(np.uint8)).convert("RGB") for image in images]

    def image(self, index: int) -> Image.Image:
        return self.images[index]


def share(images: np.ndarray) -> float:
    return mirrored_share(Pictures(images), np.arange(len(images)))  # type: ignore[arg-type]


def test_digits_do_not_resemble_mirrored_digits() -> None:
    assert share(load_digits().images[:100] * 15) < 0.1


def test_digits_of_which_half_are_mirrored_do() -> None:
    images = load_digits().images[:400] * 15
    mirrored = np.random.default_rng(0).permutation(400)[:200]
    images[mirrored] = images[mirrored][:, :, ::-1]
    assert share(images) == pytest.approx(0.5, abs=0.12)


def test_noise_has_no_sides() -> None:
    assert share(np.random.default_rng(0).integers(0, 255, (200, 16, 16))) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("images", [np.zeros((200, 16, 16)), load_digits().images[:30] * 15])
def test_too_few_or_empty_pictures_tell_nothing(images: np.ndarray) -> None:
    assert share(images) == 0.5


def test_copies_do_not_count_as_neighbors() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 16, 16))
    assert share(np.repeat(noise, 2, axis=0)) == pytest.approx(0.5, abs=0.15)


def test_large_images_are_read_up_to_a_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pictures = Pictures(load_digits().images[:200] * 15)
    image = pictures.image
    monkeypatch.setattr(pictures, "image", lambda index: [read.append(index), image(index)][1])
    monkeypatch.setattr(look, "_MOST_PIXELS_READ", 64 * 50)
    found = mirrored_share(pictures, np.arange(200))  # type: ignore[arg-type]
    assert len(read) == 51
    assert found < 0.15

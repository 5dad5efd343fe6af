"""Draws a map over an image, in colors of even steps."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.explain.placement import Placement, sample

Array = npt.NDArray[Any]

# From dark violet over red to light yellow, in Oklab (Ottosson, 2020): lightness, then the two axes of color. Lightness
# rises evenly and so does the distance between colors, so that a step of a map looks the same everywhere; who cannot
# tell the colors apart still sees the lightness.
_ANCHORS = (
    (0.20, 0.03, -0.10), (0.36, 0.12, -0.10), (0.52, 0.17, 0.02), (0.68, 0.12, 0.12), (0.84, 0.02, 0.15),
    (0.96, -0.02, 0.07),
)  # fmt: skip
_SHADE = 0.35  # of the brightness of what the model does not see
_LEAST, _MOST = 0.15, 0.75  # opacity of a map's 0 and 1


@cache
def colors() -> Array:
    """Returns the (256, 3) colors of values from 0 to 1, 8 bit."""
    anchors = np.array(_ANCHORS)
    along = np.linspace(0, 1, 4096)
    path = np.stack([np.interp(along, np.linspace(0, 1, len(anchors)), axis) for axis in anchors.T], -1)
    path = _into_gamut(path)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    even = np.interp(np.linspace(0, length[-1], 256), length, np.arange(len(path)))
    levels = _to_srgb(path[even.round().astype(int)])
    return (255 * levels.clip(0, 1)).round().astype(np.uint8)


def _to_srgb(oklab: Array) -> Array:
    """Maps Oklab (..., 3) to sRGB, 0..1 inside the gamut."""
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_linear = np.array(
        [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
         [-0.0041960863, -0.7034186147, 1.7076147010]]
    )  # fmt: skip
    linear = (oklab @ to_cones.T) ** 3 @ to_linear.T
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055)


def _into_gamut(oklab: Array) -> Array:
    """Takes color away, at the same lightness, until a screen can show it."""
    result = oklab.copy()
    for _ in range(200):
        rgb = _to_srgb(result)
        outside = ((rgb < 0) | (rgb > 1)).any(-1)
        if not outside.any():
            break
        result[outside, 1:] *= 0.99
    return result


def over_seen(image: Image.Image, grid_map: Array, patch_size: tuple[int, int]) -> Image.Image:
    """Draws a map over the pixels that the model sees.

    Args:
        image: What the model sees, see `seen_image`.
        grid_map: (rows, columns) in 0..1.
        patch_size: (height, width) of a patch in pixels. A rest beyond the last patch is dark: the model ignores it.
    """
    values, seen = spread(grid_map, patch_size, (image.height, image.width))
    return blended(image, values, seen)


def over_original(
    image: Image.Image, grid_map: Array, patch_size: tuple[int, int], seen_size: tuple[int, int], place: Placement
) -> Image.Image:
    """Draws a map over the original image, where its patches lie; what the model does not see is dark.

    Args:
        image: The original image, upright. It may be smaller than the file by the same factor in both directions.
        grid_map: (rows, columns) in 0..1.
        patch_size: (height, width) of a patch in pixels.
        seen_size: (height, width) of the pixels that the model sees.
        place: Where they lie, in pixels of `image`.
    """
    values, seen = spread(grid_map, patch_size, seen_size)
    size = (image.height, image.width)
    return blended(image, place.to_original(values, size), place.to_original(seen, size) >= 0.5)


def spread(grid_map: Array, patch_size: tuple[int, int], size: tuple[int, int]) -> tuple[Array, Array]:
    """Spreads a map of patches over pixels, bilinear between the centers of the patches.

    Returns:
        (height, width) values, and 1 where a patch lies, else 0.
    """
    inside = [min(n * p, s) for n, p, s in zip(grid_map.shape, patch_size, size, strict=True)]
    places = [(np.arange(s) + 0.5) / n for s, n in zip(size, inside, strict=True)]
    seen = np.outer(places[0] < 1, places[1] < 1).astype(np.float32)
    return sample(grid_map, places[0], places[1]) * seen, seen


def blended(image: Image.Image, values: Array, seen: Array) -> Image.Image:
    """Lays the colors of values (H, W) in 0..1 over the image in gray, the more opaque the larger they are."""
    gray = np.asarray(image.convert("L"), np.float32)[..., None]
    levels = values.clip(0, 1)
    heat = colors()[(255 * levels).round().astype(int)].astype(np.float32)
    opacity = (_LEAST + (_MOST - _LEAST) * levels)[..., None]
    mixed = np.where(seen[..., None] > 0, gray * (1 - opacity) + heat * opacity, gray * _SHADE)
    return Image.fromarray(mixed.round().astype(np.uint8))


def color_bar(width: int, height: int) -> Image.Image:
    """Returns the colors from 0, on the left, to 1."""
    row = colors()[np.linspace(0, 255, width).round().astype(int)]
    return Image.fromarray(np.repeat(row[None], height, axis=0))

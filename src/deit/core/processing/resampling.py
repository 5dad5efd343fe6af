"""Resizes images with Pillow, in an order of passes that its version does not change, or only a part of the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Array: TypeAlias = npt.NDArray[Any]

_PRECISION = 22  # bits after the point of Pillow's weights for 8-bit pixels


def _bilinear(x: Array) -> Array:
    return np.maximum(1 - np.abs(x), 0)


def _bicubic(x: Array) -> Array:
    x, a = np.abs(x), -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Array) -> Array:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


_MOST_BETWEEN = 2**26  # pixels between the two passes


def resized(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """Resizes an image as Pillow up to 12 does: columns first, rounded to 8 bits, then rows.

    Pillow 13 begins with the rows of an image that loses more of its height, which gives other pixels. Here its
    version decides nothing. Rows come first only where the columns would give more than `_MOST_BETWEEN` pixels: of
    images that are hundreds of thousands of pixels tall. docs/export.md describes the whole preprocessing.

    Args:
        image: Of mode L or RGB; of other modes, Pillow decides.
        size: (height, width) of the result.
        resample: A Pillow filter.
    """
    height, width = size
    is_plain = image.mode in ("L", "RGB") and height < image.height and width != image.width
    if is_plain and width * image.height <= _MOST_BETWEEN:
        image = image.resize((width, image.height), resample)
    elif is_plain:
        image = image.resize((image.width, height), resample)
    return image.resize((width, height), resample)


# Filter -> function and the distance from which on it is zero, in pixels of the smaller scale.
_FILTERS: dict[int, tuple[Callable[[Array], Array], float]] = {
    Image.Resampling.BILINEAR: (_bilinear, 1),
    Image.Resampling.BICUBIC: (_bicubic, 2),
    Image.Resampling.LANCZOS: (_lanczos, 3),
}


def can_resize_part(resample: int) -> bool:
    """Whether `resized_part` supports a filter."""
    return resample in _FILTERS


def resized_part(image: Array, size: tuple[int, int], part: tuple[slice, slice], resample: int) -> Array:
    """Returns some rows and columns of a resized image, as Pillow computes them.

    Pillow weighs columns, rounds to 8 bits, then weighs rows; its weights have 22 bits after the point. That holds
    where neither side shrinks; elsewhere it may begin with the rows.

    Args:
        image: (C, H, W) uint8.
        size: (height, width) of the whole result, at least those of the image.
        part: Its rows and columns.
        resample: A filter that `can_resize_part` knows.
    """
    rows = _Pass(image.shape[1], size[0], part[0], resample)
    columns = _Pass(image.shape[2], size[1], part[1], resample)
    read = rows.read()  # a thin image may have millions of rows, of which the part needs a few
    return rows.along(columns.along(image[:, read], 2), 1, read.start)


class _Pass:
    """Resizes a part of one axis.

    Args:
        length: Of the axis before.
        size: Of it after.
        part: Its places after that are wanted.
        resample: A filter that `can_resize_part` knows.
    """

    def __init__(self, length: int, size: int, part: slice, resample: int) -> None:
        self._length, self._size, self._part = length, size, part
        self._function, self._reach = _FILTERS[resample]
        self._scale = length / size
        self._wide = max(self._scale, 1.0)

    def read(self) -> slice:
        """Returns the places before that the part is computed from."""
        if self._length == self._size:
            return self._part
        return slice(self._window(self._part.start)[0], self._window(self._part.stop - 1)[1])

    def along(self, image: Array, axis: int, cut: int = 0) -> Array:
        """Returns the part.

        Args:
            image: (C, H, W) uint8.
            axis: Which axis.
            cut: Places that it lacks at its begin.
        """
        if self._length == self._size:
            return image[(slice(None),) * axis + (slice(self._part.start - cut, self._part.stop - cut),)]
        result = []
        for place in range(self._part.start, self._part.stop):
            first, last, center = self._window(place)
            weights = self._function((np.arange(first, last) - center + 0.5) * (1.0 / self._wide))
            total = math.fsum(weights)
            fixed = weights * (1.0 / total) * (1 << _PRECISION)
            whole = np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int64)
            pixels = np.take(image, range(first - cut, last - cut), axis=axis).astype(np.int64)
            summed = np.tensordot(pixels, whole, axes=([axis], [0])) + (1 << (_PRECISION - 1))
            result.append(np.clip(summed >> _PRECISION, 0, 255).astype(np.uint8))
        return np.stack(result, axis=axis)

    def _window(self, place: int) -> tuple[int, int, float]:
        center = (place + 0.5) * self._scale
        first = max(int(center - self._reach * self._wide + 0.5), 0)
        last = min(int(center + self._reach * self._wide + 0.5), self._length)
        return first, last, center

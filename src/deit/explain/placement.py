"""Where the pixels that a model sees lie in the original image: the geometry of the preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.processing.options import resized_size
from deit.core.processing.parts import is_replaced
from deit.core.processing.settings import ImageProcessor

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The part of an original image that becomes the pixels of the model.

    Attributes:
        top: In pixels of the original image, not rounded; negative where the preprocessing adds a border.
        left: Likewise.
        height: Of the part, in pixels of the original image; more than the image where there is a border.
        width: Likewise.
    """

    top: float
    left: float
    height: float
    width: float

    def to_original(self, picture: Array, size: tuple[int, int], *, outside: float = 0.0) -> Array:
        """Brings a map of the model's pixels to the original image.

        Args:
            picture: (h, w) float32, over all that the model sees.
            size: (height, width) of the original image.
            outside: Value where the model sees nothing.

        Returns:
            (height, width) float32, bilinear.
        """
        rows = (np.arange(size[0]) + 0.5 - self.top) / self.height
        columns = (np.arange(size[1]) + 0.5 - self.left) / self.width
        found = sample(picture, rows, columns)
        seen = ((rows >= 0) & (rows < 1))[:, None] & ((columns >= 0) & (columns < 1))
        return np.where(seen, found, np.float32(outside)).astype(np.float32)


def sample(picture: Array, rows: Array, columns: Array) -> Array:
    """Returns values of a picture (h, w) between its pixels, bilinear; beyond the last pixels' centers theirs.

    Args:
        picture: (h, w).
        rows: (m,) places from 0 (upper edge) to 1 (lower edge).
        columns: (n,) likewise.

    Returns:
        (m, n) float32.
    """
    result = picture.astype(np.float32)
    for axis, places in enumerate((rows, columns)):
        at = np.clip(places * picture.shape[axis] - 0.5, 0, picture.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, picture.shape[axis] - 1)
        part = (at - low).astype(np.float32)
        part = part[:, None] if axis == 0 else part
        result = np.take(result, low, axis) * (1 - part) + np.take(result, high, axis) * part
    return result


def placement_of(processor: Any, size: tuple[int, int]) -> Placement | None:
    """Returns where an image goes in the preprocessing; None if a step of it was replaced, so that nobody knows.

    Args:
        processor: The preprocessing.
        size: (height, width) of the original image, upright.
    """
    if not isinstance(processor, ImageProcessor) or is_replaced(processor):
        return None
    height, width = resized_size(processor.size, *size) if processor.do_resize else size
    wanted = (processor.crop_size["height"], processor.crop_size["width"]) if processor.do_center_crop else None
    ends: list[tuple[float, float]] = []
    for full, crop, original in zip((height, width), wanted or (height, width), size, strict=True):
        start = -ceil((crop - full) / 2) if full < crop else (full - crop) // 2
        if processor.do_pad and processor.pad_size is not None:
            crop = max(crop, processor.pad_size["height" if not ends else "width"])
        ends.append((start * original / full, crop * original / full))
    (top, part_height), (left, part_width) = ends
    return Placement(top=top, left=left, height=part_height, width=part_width)


def seen_image(processor: Any, pixels: Array) -> Image.Image:
    """Returns the pixels of a model as an image: undoes the scaling to mean and deviation.

    Args:
        processor: The preprocessing.
        pixels: (C, H, W).
    """
    values = pixels.astype(np.float64)
    if processor.do_normalize:
        mean, std = (_per_channel(each, len(values)) for each in (processor.image_mean, processor.image_std))
        values = values * std + mean
    if processor.do_rescale:
        values = values / processor.rescale_factor
    levels = values.clip(0, 255).round().astype(np.uint8)
    if len(levels) != 3:  # gray, or channels that have no colors
        return Image.fromarray(levels.mean(0).round().astype(np.uint8)).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(levels, 0, -1)))


def _per_channel(value: Any, channels: int) -> Array:
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * channels
    return np.array(numbers, np.float64)[:, None, None]

"""The picture of reconstructions: which images are in it, and how they stand side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from deit.core.scores.chart_style import INK
from deit.data.sources import Source, place_of

HEADINGS = ("original", "what the model sees", "what it makes of it")

_GAP = 2  # pixels between two images
_LEAST_SIDE = 96  # smaller images are enlarged
_TEXT = 13  # height of a heading in pixels, made smaller where a column is narrow


def varied(images: Source, count: int) -> npt.NDArray[np.int64]:
    """Chooses images that differ: of each class, or of each folder, one after the other, evenly spaced within it.

    Args:
        images: Their labels say the classes; without labels the folders of their places do.
        count: How many, at most.

    Returns:
        Their numbers, class by class as often as it takes.
    """
    total = len(images.labels)
    groups: dict[Any, list[int]] = {}
    for i in range(total):
        groups.setdefault(_kind(images, i), []).append(i)
    each = -(-count // len(groups)) if groups else 0
    chosen = [_spread(members, each) for members in groups.values()]
    if len(chosen) > count:  # more classes than places: of classes over the whole list
        chosen = [chosen[i] for i in _spread(list(range(len(chosen))), count)]
    order = [members[turn] for turn in range(each) for members in chosen if turn < len(members)]
    return np.array(order[:count], np.int64)


def _kind(images: Source, index: int) -> Any:
    label = images.labels[index]
    if np.ndim(label) == 0 and np.issubdtype(images.labels.dtype, np.integer) and label >= 0:
        return int(label)
    return os.path.dirname(place_of(images, index))


def _spread(items: Sequence[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def side_by_side(columns: Sequence[npt.NDArray[np.uint8]]) -> Image.Image:
    """Lays columns of images (N, H, W, 3) side by side below their `HEADINGS`.

    Small images are enlarged without smoothing.
    """
    count, height, width, _ = columns[0].shape
    times = max(-(-_LEAST_SIDE // min(height, width)), 1)
    height, width = height * times, width * times
    font, top = _fitting_font(width)
    size = (len(columns) * (width + _GAP) - _GAP, top + count * (height + _GAP) - _GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for column, images in enumerate(columns):
        left = column * (width + _GAP)
        draw.text((left + width / 2, top / 2), HEADINGS[column], fill=INK, font=font, anchor="mm", align="center")
        for row, image in enumerate(images):
            enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(enlarged, (left, top + row * (height + _GAP)))
    return picture


def _fitting_font(width: int) -> tuple[Any, int]:
    """Returns a font whose headings fit into a column, and the height of the line that holds them."""
    for size in range(_TEXT, 4, -1):
        font = ImageFont.load_default(size)
        if max(font.getlength(text) for text in HEADINGS) <= width - 2:
            break
    return font, size + 10

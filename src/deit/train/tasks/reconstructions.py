"""Draws reconstructions: chooses images, hides patches, and lays out original, input and reconstruction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from deit.core.file_names import PICTURES_NAME, RECONSTRUCTION_NAME
from deit.core.files import replaced_file
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.chart_style import INK
from deit.core.writing import writing
from deit.data.loader import EvaluationBatches
from deit.data.masks import BlockMasks
from deit.data.sources import Source, Subset, place_of
from deit.train.recipes.sections import Masking
from deit.train.tasks.pseudo_labels import evaluation_mode

HEADINGS = ("original", "what the model sees", "what it makes of it")

_GAP = 2  # pixels between two images
_LEAST_SIDE = 96  # smaller images are enlarged
_TEXT = 13  # height of a heading in pixels, made smaller where a column is narrow
_GREY = 128  # of a hidden patch


class ReconstructionPicture:
    """Draws images in rows of three: the original, the input with hidden patches, and the reconstruction.

    The third column shows the student's pixels in hidden patches, and the original elsewhere, since the loss counts
    hidden pixels alone. Implements `RunFile`: pictures during a run go into the folder `pictures`, the last one beside
    the model.

    Args:
        processor: The preprocessing of the student.
        masks: Draws the masks; those of evaluations are used.
        masking: Number of images, and steps between two pictures.
    """

    def __init__(self, processor: DeiTImageProcessor, masks: BlockMasks, masking: Masking) -> None:
        self.every = masking.picture_steps
        self._count = masking.pictures
        self._processor, self._masks = processor, masks

    def write(self, student: nn.Module, images: Source, device: torch.device, folder: Path, step: int | None) -> None:
        """Draws images of different classes or folders; see `RunFile.write`. Draws nothing if none can be read."""
        numbers = varied(images, self._count)
        batches = EvaluationBatches(Subset(images, numbers), self._processor, max(len(numbers), 1))
        first = next(iter(batches), None)
        if first is None:  # the evaluation reports it
            return
        pixels = torch.from_numpy(first[0]).to(device)
        columns = self._columns(student, pixels, numbers[np.asarray(batches.numbers)])
        path = folder / RECONSTRUCTION_NAME
        if step is not None:
            path = folder / PICTURES_NAME / f"step-{step:08d}.png"
            with writing(path):
                path.parent.mkdir(exist_ok=True)
        with replaced_file(path) as temporary:
            side_by_side([_bytes(tensor) for tensor in columns]).save(temporary, "PNG")

    def _columns(self, student: Any, pixels: Tensor, numbers: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Returns originals, inputs and reconstructions, each (N, 3, H, W) with values from 0 to 255."""
        masks = self._masks.for_images(numbers).to(pixels.device)
        with evaluation_mode(student), torch.inference_mode():
            drawn = student(pixels, bool_masked_pos=masks).reconstruction.float()
        patch_size = student.config.grid_patch_size
        rows, columns = (side // patch for side, patch in zip(pixels.shape[-2:], patch_size, strict=True))
        hidden = masks.reshape(len(masks), 1, rows, columns)
        for dim in (2, 3):
            hidden = hidden.repeat_interleave(pixels.shape[dim] // hidden.shape[dim], dim)
        mean, std = (
            torch.tensor(values, device=pixels.device).view(3, 1, 1)
            for values in (self._processor.channel_mean, self._processor.channel_std)
        )
        original, made = ((tensor * std + mean) * 255 for tensor in (pixels, drawn))
        return original, original.where(~hidden, float(_GREY)), made.where(hidden, original)


def _bytes(pixels: Tensor) -> Any:
    return pixels.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def varied(images: Source, count: int) -> npt.NDArray[np.int64]:
    """Chooses images of different classes, or of different folders, evenly spaced within each.

    Args:
        images: Images with labels; without labels, their folders are used.
        count: Largest number of images.

    Returns:
        Numbers of images: one of each class, then a second of each, and so on.
    """
    total = len(images.labels)
    groups: dict[Any, list[int]] = {}
    for i in range(total):
        groups.setdefault(_kind(images, i), []).append(i)
    each = -(-count // len(groups)) if groups else 0
    chosen = [_spread(members, each) for members in groups.values()]
    if len(chosen) > count:  # more classes than places: classes over the whole list
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

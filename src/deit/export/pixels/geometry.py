"""Reads from an image processor what an exported preprocessing computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import UserError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.processing.operations import rescale_and_normalize

CHANNELS = 3
LEVELS = 256
# Which source pixels these take depends on rounding errors of floating-point numbers.
_REFUSED = (Image.Resampling.NEAREST, Image.Resampling.BOX)


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """The preprocessing of 8-bit RGB images.

    Attributes:
        size: (height, width) that images are resized to; the length of their shorter side; or None for no resizing.
        output: (height, width) of the pixels: the center of what was resized, with zeros around it where it is smaller.
        resample: A Pillow filter.
        pixels: (3, 256) float32: what becomes of each level of each channel.
    """

    size: tuple[int, int] | int | None
    output: tuple[int, int]
    resample: int
    pixels: npt.NDArray[np.float32]

    @property
    def step(self) -> float:
        """Largest difference of the pixels of two neighboring levels."""
        return float(np.abs(np.diff(self.pixels, axis=1)).max())


def geometry_of(processor: DeiTImageProcessor, image_size: tuple[int, int] | None, num_channels: int) -> Geometry:
    """Returns what a processor does with 8-bit RGB images.

    Args:
        processor: The preprocessing.
        image_size: (height, width) that the model takes; None for any.
        num_channels: Channels that the model takes.

    Raises:
        UserError: An export cannot contain it: the model does not take 3 channels, the size of the result is open or
            not the model's, images are padded, or they are resized without interpolation or up to a longer side.
    """
    advice = "Export without the preprocessing (--pixels), and preprocess with Pillow."
    if num_channels != CHANNELS:
        raise UserError(f"Preprocessing is exported for 3 channels, and the model takes {num_channels}. {advice}")
    if processor.do_pad:
        raise UserError(f"Padding (do_pad) cannot be exported. {advice}")
    if processor.do_resize and processor.resample in _REFUSED:
        name = Image.Resampling(processor.resample).name.lower()
        raise UserError(f"Resizing with the filter {name} cannot be exported. {advice}")
    sides = dict(processor.size) if processor.do_resize else {}
    if set(sides) - {"height", "width"} and set(sides) != {"shortest_edge"}:
        raise UserError(
            f"Resizing to {sides} cannot be exported: only to a height and width, or a shorter side. {advice}"
        )
    if not (processor.do_center_crop or "height" in sides):
        raise UserError(f"The settings of the processor leave the size of the pixels open. {advice}")
    output = processor.output_size
    if image_size is not None and output != image_size:
        raise UserError(f"The processor makes images of {output}, and the model takes {image_size}. {advice}")
    size = None if not sides else sides.get("shortest_edge") or (sides["height"], sides["width"])
    return Geometry(
        size=size,
        output=output,
        resample=int(processor.resample or Image.Resampling.BICUBIC),
        pixels=_pixels(processor),
    )


def _pixels(processor: DeiTImageProcessor) -> npt.NDArray[np.float32]:
    levels = np.tile(np.arange(LEVELS, dtype=np.uint8), (CHANNELS, 1))[:, None]  # (3, 1, 256)
    factor = processor.rescale_factor if processor.do_rescale else None
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (None, None)
    return rescale_and_normalize(levels, factor, mean, std)[:, 0].astype(np.float32)

"""Images into pixels for a model, one decoded at a time; one that cannot be read does not keep the others back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.image_processor import DeiTImageProcessor
from deit.core.images import DECODING, ImageError, ImageFile, load_image


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What became of some images.

    Attributes:
        pixels: (n, 3, H, W) float32 of those that could be read, in order; None when there is none.
        errors: For each image why it could not be read, or an empty string.
    """

    pixels: npt.NDArray[np.float32] | None
    errors: list[str]


def read_pixels(
    processor: DeiTImageProcessor, images: Sequence[ImageFile | Image.Image], *, strict: bool = False
) -> Read:
    """Reads images and prepares them as the model needs.

    Args:
        processor: The preprocessing; its `value_range` says what grey of more than 8 bits means.
        images: Paths, bytes of files, or PIL images.
        strict: Raise at the first image that cannot be read.

    Raises:
        FileNotFoundError: A path does not exist, and `strict` is on.
        ImageError: An image cannot be read, and `strict` is on.
    """
    pixels: list[npt.NDArray[np.float32]] = []
    opened: list[Image.Image] = []
    errors = []
    for given in images:
        try:
            with DECODING.kept():
                image = load_image(given, value_range=processor.value_range)
                if processor.do_pad:  # what is added to an image may depend on its neighbours
                    opened.append(image)
                else:
                    pixels.append(np.asarray(processor(image, return_tensors="np").pixel_values, np.float32))
            errors.append("")
        except (ImageError, FileNotFoundError) as error:
            if strict:
                raise
            missing = isinstance(error, FileNotFoundError)
            errors.append(f"{given if isinstance(given, str) else error} is not there." if missing else str(error))
    if opened:
        pixels.append(np.asarray(processor(opened, return_tensors="np").pixel_values, np.float32))
    return Read(pixels=np.concatenate(pixels) if pixels else None, errors=errors)

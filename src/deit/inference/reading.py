"""Images into pixels for a model, one decoded at a time; one that cannot be read does not keep the others back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.image_inputs import image_of, is_array, name_of
from deit.core.images.reading import DECODING, ImageError, load_image
from deit.core.processing.image_processor import DeiTImageProcessor


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What became of some images.

    Attributes:
        pixels: (n, 3, H, W) float32 of those that could be read, in order; None when there is none.
        errors: For each image why it could not be read, or an empty string.
    """

    pixels: npt.NDArray[np.float32] | None
    errors: list[str]


def read_pixels(processor: DeiTImageProcessor, images: Sequence[Any], *, strict: bool = False) -> Read:
    """Reads images and prepares them as the model needs.

    Args:
        processor: The preprocessing; its `value_range` says what grey of more than 8 bits means.
        images: Paths, bytes or base64 text of files, open files, PIL images, or arrays and tensors, which the processor
            takes as they are: (H, W), (H, W, C) or (C, H, W).
        strict: Raise at the first image that cannot be read.

    Raises:
        FileNotFoundError: A path does not exist, and `strict` is on.
        ImageError: An image cannot be read, and `strict` is on.
    """
    pixels: list[npt.NDArray[np.float32]] = []
    opened: list[Any] = []
    errors = []
    for given in images:
        try:
            with DECODING.kept():
                image = _opened(given, processor)
                if processor.do_pad:  # what is added to an image may depend on its neighbours
                    opened.append(image)
                else:
                    pixels.append(np.asarray(processor(image, return_tensors="np").pixel_values, np.float32))
            errors.append("")
        except (ImageError, OSError) as error:
            if strict:
                raise
            errors.append(_reason(given, error))
        except UserError as error:
            if strict or not is_array(given):  # an array that the processor cannot take is as bad as a broken file
                raise
            errors.append(f"{name_of(given)} cannot be used: {error}")
    if opened:
        pixels.append(np.asarray(processor(opened, return_tensors="np").pixel_values, np.float32))
    return Read(pixels=np.concatenate(pixels) if pixels else None, errors=errors)


def _opened(given: Any, processor: DeiTImageProcessor) -> Any:
    image = image_of(given)
    return image if is_array(image) else load_image(image, value_range=processor.value_range)


def _reason(given: Any, error: ImageError | OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name_of(given)} is not there."
    return str(error) if isinstance(error, ImageError) else f"{name_of(given)} cannot be read ({error.strerror})."

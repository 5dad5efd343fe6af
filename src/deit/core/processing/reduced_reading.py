"""Reads images for a processor, large JPEG files at a reduced size."""

from __future__ import annotations

import os
import threading
from typing import Any

from PIL import Image

from deit.core.images.image_inputs import image_of, is_array
from deit.core.images.reading import load_image, load_reduced
from deit.core.processing.options import resized_size
from deit.core.processing.parts import is_replaced
from deit.core.processing.settings import ImageProcessor

EXACT_VARIABLE = "DEIT_EXACT_DECODING"


def wants_exact_decoding() -> bool:
    """Whether the environment turns reduced decoding off: `DEIT_EXACT_DECODING` is set, and not to 0 or nothing."""
    return os.environ.get(EXACT_VARIABLE, "") not in ("", "0")


class ReducedReader:
    """Reads the image of an item for a processor.

    A JPEG file that is at least 4 times as large as the processor's resize in both directions is decoded at 1/2, 1/4 or
    1/8 of its size, at least twice that of the resize. Its values after the resize differ from those of the whole image
    by less than one of 255 levels on average. Other files, and everything that is no file, are read whole.

    Args:
        processor: The preprocessing. One with a replaced step, or without a resize, gets whole images.
        exact: Read every image whole.
        limit: Pixels of an image file at most; None for what is safe to decode.
    """

    def __init__(self, processor: Any, *, exact: bool = False, limit: int | None = None) -> None:
        self._processor = processor
        self._limit = limit
        self._whole = exact or not _may_reduce(processor)
        self._lock = threading.Lock()
        self._reduced = 0

    def __call__(self, item: Any) -> Any:
        """Returns the image of an item as `image_of` takes it: an array as it is, else a PIL image."""
        image = image_of(item)
        if is_array(image):
            return image
        processor = self._processor
        value_range = getattr(processor, "value_range", None)
        if self._whole or isinstance(image, Image.Image):
            return load_image(image, value_range=value_range, limit=self._limit)
        resample = int(processor.resample)
        read, divisor = load_reduced(image, self._size, resample, value_range=value_range, limit=self._limit)
        if divisor > 1:
            with self._lock:
                self._reduced += 1
        return read

    def taken(self) -> int:
        """Returns how many images were decoded at a reduced size since the last call."""
        with self._lock:
            count, self._reduced = self._reduced, 0
        return count

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size after the resize; the whole size where the processor would resize that once more."""
        size = resized_size(self._processor.size, height, width)
        return size if resized_size(self._processor.size, *size) == size else (height, width)


def _may_reduce(processor: Any) -> bool:
    """Whether a processor takes a resized image for the whole one. The nearest pixel is another one after reducing."""
    if not isinstance(processor, ImageProcessor) or is_replaced(processor):
        return False
    return bool(processor.do_resize) and int(processor.resample) != Image.Resampling.NEAREST

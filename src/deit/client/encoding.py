"""Turns images into the bytes of image files, which are what a server takes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from deit.core.errors import ImageError, UserError, shown
from deit.core.images.image_inputs import image_of, is_array, name_of
from deit.core.images.reading import load_image, stored_bytes
from deit.core.processing.operations import to_channels_first

_PNG_EFFORT = 1  # of 9: an image is sent once


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One image on its way.

    Attributes:
        name: Name in results and messages. The server is not told it.
        content: Bytes of an image file; empty if there is an error.
        error: Why the image cannot be sent; else empty.
        cause: The exception behind `error`; None without one.
    """

    name: str
    content: bytes = b""
    error: str = ""
    cause: UserError | OSError | None = None


def encode(item: Any) -> Sent:
    """Returns an image as a file: files as they are stored, PIL images and arrays as PNG, which loses nothing.

    Args:
        item: What `image_of` takes. An array or tensor must hold uint8: (H, W), (H, W, C) or (C, H, W), C 1, 3 or 4.

    Raises:
        UserError: It is no image.
    """
    image, name = image_of(item), name_of(item)
    try:
        if is_array(image):
            return Sent(name=name, content=_png(_from_array(image)))
        if isinstance(image, Image.Image):
            return Sent(name=name, content=_png(load_image(image)))
        content = stored_bytes(image)
    except ImageError as error:
        return Sent(name=name, error=str(error), cause=error)
    except FileNotFoundError as error:
        return Sent(name=name, error=f"{name} is not there.", cause=error)
    if not content:
        empty = ImageError(f"{name} is empty.")
        return Sent(name=name, error=str(empty), cause=empty)
    return Sent(name=name, content=content)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_PNG_EFFORT)
    return file.getvalue()


def _from_array(given: Any) -> Image.Image:
    planes = to_channels_first(given, None, 3, True)
    if planes.dtype != np.uint8 or len(planes) != 3:
        raise UserError(
            "An array that is sent to a server must hold uint8 (0 to 255) and 1, 3 or 4 channels. Received: "
            f"{planes.dtype}, shape {shown(tuple(given.shape))}."
        )
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(planes, 0, -1)))

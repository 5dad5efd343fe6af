"""Recognizes the kinds of image inputs without importing a framework."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from deit.core.errors import UserError


def is_array(value: Any) -> bool:
    """Returns True for a NumPy array or a tensor of a framework."""
    return hasattr(value, "ndim") and hasattr(value, "shape") and hasattr(value, "dtype")


def is_file_object(value: Any) -> bool:
    """Returns True for an open file or similar object."""
    return callable(getattr(value, "read", None))


def is_one_image(inputs: Any) -> bool:
    """Returns True if the inputs are one image; an array of 4 dimensions is a batch."""
    if is_array(inputs):
        return bool(inputs.ndim != 4)
    return isinstance(inputs, (str, bytes, os.PathLike, Image.Image, Mapping)) or is_file_object(inputs)


def is_whole(inputs: Any) -> bool:
    """Returns True if the inputs are in memory as a whole, so that the results are returned as a list."""
    return isinstance(inputs, (list, tuple)) or is_array(inputs)


def items_of(inputs: Any) -> Iterable[Any]:
    """Returns the inputs as an iterable.

    Raises:
        ValueError: The inputs are neither a collection nor an iterator.
    """
    if isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return (inputs[i] for i in range(len(inputs)))
    raise UserError(f"Pass an image, a list of images, an iterator or a data set. Received: {type(inputs).__name__}.")


def image_of(item: Any) -> Any:
    """Returns the image of an item, which may be a dict with an "image".

    Raises:
        ValueError: It is neither.
    """
    if isinstance(item, Mapping):
        if "image" not in item:
            raise UserError(f"A dict needs the key 'image'. Received the keys: {sorted(map(str, item))}.")
        item = item["image"]
    if not (is_array(item) or is_file_object(item) or isinstance(item, (str, bytes, os.PathLike, Image.Image))):
        raise UserError(
            "An image must be a path, bytes, base64 text, an open file, a PIL image, an array or a tensor. "
            f"Received: {type(item).__name__}."
        )
    return item


def name_of(image: Any) -> str:
    """Returns a name of an image for messages: its path, or its type."""
    if isinstance(image, Mapping):
        image = image.get("image")
    if isinstance(image, bytes):
        return "standard input"
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    name = getattr(image, "name", None) if is_file_object(image) else None
    return name if isinstance(name, str) else "an image"

"""Checks and converts the options of an image processor."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from deit.core.config.field_checks import is_finite
from deit.core.errors import UserError, WrongTypeError, shown
from deit.core.images.sample_values import checked_range

_SIZE_KEYS: tuple[frozenset[str], ...] = (
    frozenset({"height", "width"}),
    frozenset({"shortest_edge"}),
    frozenset({"shortest_edge", "longest_edge"}),
    frozenset({"max_height", "max_width"}),
)
_SIDES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
_FILTERS = {"nearest": 0, "nearest-exact": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
# The settings that each step needs.
_NEEDED = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}
CHANNELS_FIRST, CHANNELS_LAST = "channels_first", "channels_last"
# 4096 x 4096 as float32 takes 192 MiB. Models see 1,024 x 1,024 at most.
MOST_INPUT_PIXELS = 2**24
MOST_SIDE = 16_384


class SizeDict(dict[str, int]):
    """A size as a dict whose sides are also attributes. A missing side is None."""

    def __missing__(self, side: str) -> None:
        if side not in _SIDES:
            raise KeyError(side)

    def __getattr__(self, side: str) -> int | None:
        if side not in _SIDES:
            raise AttributeError(f"A size has no side {side!r}. Known: {', '.join(_SIDES)}.")
        return self.get(side)


def size_dict(size: Any, name: str, *, default_to_square: bool = True) -> SizeDict:
    """Returns a size as a dict: a number is a square, a pair is (height, width).

    Args:
        size: A number, a pair, or a dict (or the like: what `dict` accepts) with sides.
        name: Of the option, for messages.
        default_to_square: Whether a number is a square; else it is the shorter edge.

    Raises:
        ValueError: A dict has other keys than {height, width}, {shortest_edge}, {shortest_edge, longest_edge} or
            {max_height, max_width}, or a side is smaller than 1.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size} if default_to_square else {"shortest_edge": size}
    elif isinstance(size, (tuple, list)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif type(size).__name__ == "SizeDict":  # transformers' one iterates over pairs
        size = dict(size)
    if not isinstance(size, Mapping):
        raise UserError(f"{name} must be a number, a pair or a dict. Received: {size!r}.")
    sides = {k: v for k, v in size.items() if v is not None}
    if frozenset(sides) not in _SIZE_KEYS:
        allowed = "; ".join(", ".join(sorted(keys)) for keys in _SIZE_KEYS)
        raise UserError(f"{name} must have exactly the keys of one of: {allowed}. Received: {sorted(size)}.")
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in sides.values()):
        raise UserError(f"{name} must hold whole numbers of at least 1. Received: {sides}.")
    height, width = sides.get("height") or sides.get("max_height"), sides.get("width") or sides.get("max_width")
    pixels = height * width if height and width else sides["shortest_edge"] ** 2
    if max(sides.values()) > MOST_SIDE or pixels > MOST_INPUT_PIXELS:
        raise UserError(
            f"{name} may be at most {MOST_SIDE} on a side and {MOST_INPUT_PIXELS} pixels. Received: {shown(sides)}."
        )
    return SizeDict(sides)


def resized_size(size: Mapping[str, int], height: int, width: int) -> tuple[int, int]:
    """Returns the (height, width) that an image is resized to.

    Args:
        size: As `size_dict` gives it.
        height: Of the image, in pixels.
        width: Likewise.
    """
    if "height" in size:
        return size["height"], size["width"]
    if "shortest_edge" in size:
        return _scale_to_shortest_edge(height, width, size["shortest_edge"], size.get("longest_edge"))
    scale = min(size["max_height"] / height, size["max_width"] / width)
    return max(int(height * scale), 1), max(int(width * scale), 1)


def _scale_to_shortest_edge(height: int, width: int, shortest: int, longest: int | None) -> tuple[int, int]:
    """Returns the size with the shorter side at `shortest`, the other truncated, as torchvision does."""
    low, high = min(height, width), max(height, width)
    exact = float(shortest)
    if longest is not None and high / low * shortest > longest:
        exact = longest * low / high
        shortest = max(round(exact), 1)
    if low == shortest:
        return height, width
    other = max(int(exact * high / low), 1)
    return (shortest, other) if height <= width else (other, shortest)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise WrongTypeError(f"{name} must be True or False. Received: {value!r}.")
    return bool(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise WrongTypeError(f"{name} must be a number. Received: {value!r}.")
    if not is_finite(value):
        raise UserError(f"{name} must be finite. Received: {shown(value)}.")
    return value if isinstance(value, (int, float)) else value.item()


def _numbers(value: Any, name: str) -> float | list[float]:
    """One number, or a list with one for each channel."""
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        if not value:
            raise UserError(f"{name} must hold a number for each channel. Received: {value!r}.")
        numbers: float | list[float] = [_number(v, name) for v in value]
    else:
        numbers = _number(value, name)
    if name == "image_std" and 0 in (numbers if isinstance(numbers, list) else [numbers]):
        raise UserError(f"image_std must not hold 0: pixels are divided by it. Received: {value!r}.")
    return numbers


def _filter(value: Any, name: str) -> Image.Resampling:
    """A Pillow filter, from its number, Pillow's enumeration or torchvision's."""
    given = value
    if not isinstance(value, int) and isinstance(getattr(value, "value", None), str):
        value = _FILTERS.get(value.value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongTypeError(f"{name} must be a number or PIL.Image.Resampling. Received: {given!r}.")
    if value not in _FILTERS.values():
        known = ", ".join(f"{f.value} ({f.name.lower()})" for f in Image.Resampling)
        raise UserError(f"{name} must be one of {known}. Received: {given!r}.")
    return Image.Resampling(value)


def _crop(value: Any, name: str) -> SizeDict:
    size = size_dict(value, name)
    if "height" not in size:
        raise UserError(f"{name} needs 'height' and 'width'. Received: {dict(size)}.")
    return size


def _layout(value: Any, name: str) -> str:
    plain = getattr(value, "value", value)  # of transformers' ChannelDimension
    if plain not in (CHANNELS_FIRST, CHANNELS_LAST):
        raise UserError(f"{name} must be 'channels_first' or 'channels_last'. Received: {value!r}.")
    return str(plain)


def _tensor_type(value: Any, name: str) -> str:
    plain = getattr(value, "value", value)  # of transformers' TensorType
    if plain not in ("np", "pt", "tf", "jax", "mlx"):
        raise UserError(f"{name} must be None, 'np', 'pt', 'tf', 'jax' or 'mlx'. Received: {value!r}.")
    return str(plain)


def _value_range(value: Any, name: str) -> list[float]:
    return list(checked_range(value, name))


def _device(value: Any, name: str) -> Any:
    if isinstance(value, bool) or not (isinstance(value, (int, str)) or type(value).__name__ == "device"):
        raise WrongTypeError(f"{name} must be the name of a device, such as 'cpu' or 'cuda:0'. Received: {value!r}.")
    return value


# Every option and how it is checked; None means "not set" for all of them.
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "do_resize": _flag,
    "size": size_dict,
    "resample": _filter,
    "do_center_crop": _flag,
    "crop_size": _crop,
    "do_rescale": _flag,
    "rescale_factor": _number,
    "do_normalize": _flag,
    "image_mean": _numbers,
    "image_std": _numbers,
    "do_convert_rgb": _flag,
    "do_pad": _flag,
    "pad_size": _crop,
    "default_to_square": _flag,
    "disable_grouping": _flag,
    "return_tensors": _tensor_type,
    "data_format": _layout,
    "input_data_format": _layout,
    "device": _device,
    "value_range": _value_range,
}
OPTIONS = tuple(_CHECKS)


def checked_option(name: str, value: Any) -> Any:
    """Returns the value of an option in canonical form: sizes as `SizeDict`, filters as Pillow's, means as a list.

    Raises:
        TypeError: It has the wrong type.
        ValueError: It has the right type and means nothing.
    """
    return None if value is None else _CHECKS[name](value, name)


def refuse_unknown_options(names: Iterable[str]) -> None:
    """Raises an error for unknown options.

    Raises:
        TypeError: There is one; the message suggests the nearest.
    """
    unknown = sorted(set(names) - set(OPTIONS))
    if unknown:
        near = difflib.get_close_matches(unknown[0], OPTIONS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise WrongTypeError(f"Unknown option {', '.join(unknown)}.{hint} Known: {', '.join(OPTIONS)}.")


def require_settings(processor: Any) -> None:
    """Checks that each step that is on has its settings.

    Raises:
        ValueError: One is None.
    """
    for switch, names in _NEEDED.items():
        for name in names:
            if getattr(processor, switch) and getattr(processor, name) is None:
                raise UserError(f"{name} is None although {switch} is on. Set {name}, or {switch}=False.")

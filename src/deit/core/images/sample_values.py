"""Converts images of more than 8 bits to 8 bits, by one rule.

| values | range that becomes 0 to 255 |
|---|---|
| 8 bits and fewer, palettes | range of the type |
| 16-bit gray, 12-bit TIFF, PGM with a maximum value | range of the type, or the range in the file |
| 16-bit gray whose largest value fits 14 bits | unknown: 10, 12 or 14 bits are often stored this way |
| signed, 32-bit and floating-point gray | unknown |
| 16-bit colors | range of the type: Pillow reads their high bytes; refused if these are all below 64 |

`value_range` applies to every gray image of more than 8 bits, and is required if the table says "unknown". It belongs
to a data set, never to one image, so that the values of two images stay comparable. The TIFF tags MinSampleValue and
MaxSampleValue are not used: most writers store the extremes of each image there, and the standard forbids using them
to change the appearance of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.config.field_checks import is_finite
from deit.core.errors import ImageError, UserError, ValueRangeError, WrongTypeError, shown

ValueRange: TypeAlias = tuple[float, float]

_STRIP_PIXELS = 1 << 20  # pixels processed at a time: 8 MiB as float64
_FULL_16_BIT = (0.0, 65535.0)
_FITS_14_BITS = 1 << 14  # values below this use at most a quarter of the 16-bit range
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


@dataclass(frozen=True)
class Samples:
    """The sample format of an image file.

    Attributes:
        gray: "unsigned", "unsigned 32-bit", "signed" or "float" for gray of more than 8 bits or with a sign; empty for
            all other images.
        stated: Range given in the file; None if there is none.
        scale: Factor by which Pillow multiplied the values of the file.
        inverted: True if the lowest value is white.
        wide_colors: True if colors had 16 bits, of which Pillow returns the high bytes.
        white: Value that is transparent.
    """

    gray: str = ""
    stated: ValueRange | None = None
    scale: float = 1.0
    inverted: bool = False
    wide_colors: bool = False
    white: int | None = None


def checked_range(value: Any, name: str = "value_range") -> ValueRange:
    """Returns a range as two numbers.

    Raises:
        TypeError: The value is not two numbers.
        ValueError: They are not finite, or the first is not below the second.
    """
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(numbers) != 2 or any(isinstance(n, (bool, str)) or not isinstance(n, (int, float)) for n in numbers):
        raise WrongTypeError(
            f"{name} must be two numbers, the values that become black and white. Received: {value!r}."
        )
    if not (is_finite(numbers[0]) and is_finite(numbers[1]) and float(numbers[0]) < float(numbers[1])):
        raise UserError(f"{name} must be two finite numbers, the lower one first. Received: {shown(value)}.")
    return float(numbers[0]), float(numbers[1])


def samples_of(image: Image.Image) -> Samples:
    """Returns the sample format of an image. Call it before decoding, which loses a part of it."""
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF
    tiles = getattr(image, "tile", None) or ()
    layout = " ".join(str(tile[3]) for tile in tiles)
    signed = _first(tags, _TIFF_FORMAT) == _SIGNED
    if image.mode == "L" and signed:
        return Samples(gray="signed", inverted=_first(tags, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO)
    if not image.mode.startswith(("I", "F")):
        return Samples(wide_colors=";16" in layout and len(image.getbands()) > 1)
    inverted = _first(tags, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    white = image.info.get("transparency")
    if image.mode == "F":
        return Samples(gray="float", inverted=inverted)
    if image.mode.startswith("I;16"):
        stated = (0.0, 4095.0) if _first(tags, _TIFF_BITS) == 12 else None
        return Samples(
            gray="unsigned", stated=stated, inverted=inverted, white=white if isinstance(white, int) else None
        )
    if image.format == "PPM":
        largest = next((tile[3][-1] for tile in tiles if isinstance(tile[3], tuple) and tile[3]), None)
        if isinstance(largest, int) and largest != 65535:
            return Samples(gray="unsigned", stated=(0.0, float(largest)), scale=65535 / largest)
        return Samples(gray="unsigned")
    unsigned_32 = bool(tags) and not signed
    return Samples(gray="unsigned 32-bit" if unsigned_32 else "signed", inverted=inverted)


def _first(tags: Any, number: int) -> Any:
    value = tags.get(number)
    return value[0] if isinstance(value, tuple) and value else value


def in_8_bits(image: Image.Image, samples: Samples, value_range: ValueRange | None) -> Image.Image:
    """Converts an image to 8 bits by the rule of this module.

    Args:
        image: Decoded image of any mode.
        samples: Its sample format, from `samples_of` before decoding.
        value_range: The values that become black and white; values outside are clipped.

    Returns:
        The image itself, or one of mode "L".

    Raises:
        ImageError: Pixels are NaN or infinite.
        ValueRangeError: The range is not known.
    """
    value_range = None if value_range is None else checked_range(value_range)
    if samples.wide_colors:
        _refuse_dark_colors(image, value_range)
    if not samples.gray:
        return image
    low, high = _extremes(image, samples)
    black, white = _range_of(samples, low, high, value_range)
    result = Image.new("L", image.size)
    for top, values in _strips(image, samples):
        clear = None if samples.white is None else values == samples.white
        values -= black
        values *= 255 / (white - black)
        values += 0.5
        np.clip(values, 0, 255, out=values)
        gray = values.astype(np.uint8)
        if samples.inverted:
            gray = 255 - gray
        if clear is not None:
            gray[clear] = 255
        result.paste(Image.fromarray(gray), (0, top))
    return result


def _strips(image: Image.Image, samples: Samples) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Yields the values in strips of rows, so that a large image is never held as float64."""
    rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if samples.gray == "unsigned 32-bit":  # Pillow stores them as signed numbers
            strip = strip.view(np.uint32)
        elif strip.dtype == np.uint8:  # Pillow stores signed 8-bit values as unsigned
            strip = strip.view(np.int8)
        yield top, strip.astype(np.float64) / samples.scale


def _extremes(image: Image.Image, samples: Samples) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for _, values in _strips(image, samples):
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not (math.isfinite(values.min()) and math.isfinite(values.max())):
            raise ImageError("The image has pixels that are NaN or infinite. Repair or leave it out.")
    return low, high


def _range_of(samples: Samples, low: float, high: float, value_range: ValueRange | None) -> ValueRange:
    if value_range is not None:
        return value_range
    if samples.stated is not None:
        return samples.stated
    if samples.gray == "unsigned":
        if high == 0 or high >= _FITS_14_BITS:
            return _FULL_16_BIT
        kind, example = "16-bit gray that uses a quarter of the range or less", f"0,{2 ** int(high).bit_length() - 1}"
    else:
        kind = {"float": "floating-point gray", "signed": "gray with a sign"}.get(samples.gray, "32-bit gray")
        whole = 1 if samples.gray == "float" and high <= 1 else 255
        example = f"0,{whole}" if low >= 0 and high <= whole else f"{low:g},{high:g}"
    raise ValueRangeError(
        f"The image is {kind}, with values from {low:g} to {high:g}. The values of black and white are unknown. "
        f"Set value_range for all images of this kind, such as {example} "
        "(--value-range; for training --set data.value_range=...)."
    )


def _refuse_dark_colors(image: Image.Image, value_range: ValueRange | None) -> None:
    if value_range == _FULL_16_BIT:
        return
    bands = [band for band, name in zip(image.split(), image.getbands(), strict=True) if name not in "Aa"]
    highest: int = max(int(band.getextrema()[1]) for band in bands)  # type: ignore[arg-type]
    if value_range is None and highest >= _FITS_14_BITS >> 8:
        return
    raise ValueRangeError(
        f"The image has 16-bit colors. Only their high bytes are read, and these reach {highest} of 255. "
        + (
            f"The range {value_range[0]:g},{value_range[1]:g} cannot be applied to them. "
            if value_range
            else "Values of 8 to 14 bits in 16 would lose most of their levels. "
        )
        + "Save such images with 8 bits; if they are as dark as this, set value_range to 0,65535."
    )

"""Names images that differ from all others in a way that a number shows: empty, tiny, long, dark, bright or blurred."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deit.inspection.facts import Facts

Masks = npt.NDArray[np.bool_]

CONSTANT, TINY, LONG, DARK, BRIGHT, BLURRED = "constant", "tiny", "long", "dark", "bright", "blurred"

_CONSTANT = 2.0  # standard deviation of gray values, of 255: JPEG leaves that much of one color
_BLACK, _WHITE = 8, 247  # mean gray values
_DARK, _BRIGHT = 30.0, 225.0
_TINY_SIDE = 16  # one patch of the published models
_TINY_SHARE = 0.25  # of the median side
_LONG = 4.0  # ratio of the sides
_FAR = 4.0  # median absolute deviations, of a normal distribution's standard deviation each
_BLUR_FACTOR = 20.0


@dataclass(frozen=True, kw_only=True)
class Odd:
    """One image that is odd.

    Attributes:
        number: Its row in the facts.
        kind: "constant", "tiny", "long", "dark", "bright" or "blurred".
        reason: What was measured, and what is usual.
        drop: Whether it can teach nothing.
    """

    number: int
    kind: str
    reason: str
    drop: bool = False


def odd_images(facts: Facts) -> list[Odd]:
    """Returns the odd images, each under the first kind that applies.

    * constant: all of one gray value (standard deviation below 2 of 255);
    * tiny: a side below 16 pixels, or below a quarter of the median side;
    * long: one side four times the other, or more, and twice what is usual;
    * dark, bright: mean gray value below 30 or above 225, and four standard deviations from the median;
    * blurred: sharpness (see `Facts`) below a twentieth of the median, and four standard deviations from it.

    Args:
        facts: Of all images.
    """
    rows = facts.rows
    readable = np.flatnonzero(rows["readable"])
    if not len(readable):
        return []
    seen = rows[readable]
    short = np.minimum(seen["width"], seen["height"])
    ratio = np.maximum(seen["width"], seen["height"]) / np.maximum(short, 1)
    gray, sharp = seen["brightness"], np.log10(np.maximum(seen["sharpness"], 1e-9))
    usual_side, usual_ratio = float(np.median(short)), float(np.median(ratio))
    middle, sharpness = float(np.median(gray)), float(np.median(sharp))
    far = np.abs(gray - middle) > _FAR * _spread(gray)
    constant = seen["contrast"] < _CONSTANT
    blurred = (sharp < sharpness - np.log10(_BLUR_FACTOR)) & (sharp < sharpness - _FAR * _spread(sharp))
    masks: dict[str, Masks] = {
        CONSTANT: constant,
        TINY: (short < _TINY_SIDE) | (short < _TINY_SHARE * usual_side),
        LONG: (ratio >= _LONG) & (ratio >= 2 * usual_ratio),
        DARK: far & (gray < _DARK),
        BRIGHT: far & (gray > _BRIGHT),
        BLURRED: blurred,
    }
    found: dict[int, Odd] = {}
    for kind, mask in masks.items():
        for i in np.flatnonzero(mask).tolist():
            number, row = int(readable[i]), seen[i]
            reasons = {
                CONSTANT: f"is {_color(float(row['brightness']))} all over",
                TINY: f"has {row['width']} x {row['height']} pixels; the median of the shorter side is {usual_side:g}",
                LONG: f"has {row['width']} x {row['height']} pixels: one side is {ratio[i]:.1f} times the other",
                DARK: f"has a mean gray value of {gray[i]:.0f} of 255; the median is {middle:.0f}",
                BRIGHT: f"has a mean gray value of {gray[i]:.0f} of 255; the median is {middle:.0f}",
                BLURRED: f"has {10 ** (sharp[i] - sharpness):.2g} times the median sharpness",
            }
            found.setdefault(number, Odd(number=number, kind=kind, reason=reasons[kind], drop=kind == CONSTANT))
    return [found[number] for number in sorted(found)]


def _spread(values: npt.NDArray[np.floating]) -> float:
    """Returns a standard deviation that a few odd values do not move."""
    return max(1.4826 * float(np.median(np.abs(values - np.median(values)))), 1e-6)


def _color(gray: float) -> str:
    return "black" if gray <= _BLACK else "white" if gray >= _WHITE else "of one gray value"

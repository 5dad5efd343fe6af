"""The preprocessing of an export, written once for all libraries: 8-bit images of any size to pixels.

docs/export.md defines it. Each axis of the image is one pass. A pass weighs source pixels with whole numbers of 22 bits
after the point, adds them up, rounds and clips to 8 bits. Columns come first.

Weights are divided into two numbers, of 8 bits and of the bits above. Both products are sums of whole numbers below
2**24, which float32 holds exactly in any order of adding, so every library finds the same ones. That holds up to 512
source pixels for one result: for bicubic filters, images up to 128 times the size of the result.

Only the source pixels that a group of 16 neighbors needs are multiplied. Parts of the result that a crop leaves out are
never made.

Letters in shape comments: B batch, L source length, R resized length, O output length, G group, g groups, S source
pixels of a group, N everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from deit.export.pixels.geometry import CHANNELS, LEVELS, Geometry

_BITS = 22
_LOW_BITS = 8
_GROUP = 16


class Operations(Protocol):
    """What a library must be able to do, beside + - * / of its values with each other and with numbers.

    Lengths are whole numbers: of Python, or values of the library.

    Attributes:
        is_double: Whether weights are computed in float64.
    """

    is_double: bool

    def lengths(self, images: Any) -> tuple[Any, Any]:
        """Returns height and width of (B, H, W, 3)."""

    def whole(self, numbers: Any) -> Any:
        """Returns a constant of int64."""

    def count(self, length: Any) -> Any:
        """Returns 0, 1, 2, ... (length,), of int64."""

    def real(self, x: Any) -> Any:
        """Converts to the type in which weights are computed."""

    def single(self, x: Any) -> Any:
        """Converts to float32."""

    def index(self, x: Any) -> Any:
        """Converts to int64."""

    def quotient(self, x: Any, y: Any) -> Any:
        """Divides whole numbers, and cuts off what is after the point."""

    def larger(self, x: Any, y: Any) -> Any:
        """Returns the larger one of each two."""

    def smaller(self, x: Any, y: Any) -> Any:
        """Returns the smaller one of each two."""

    def floor(self, x: Any) -> Any:
        """Rounds down."""

    def absolute(self, x: Any) -> Any:
        """Returns absolute values."""

    def sine(self, x: Any) -> Any:
        """Returns sines."""

    def below(self, x: Any, y: Any) -> Any:
        """Returns 1 where x < y, else 0, in the type of x."""

    def total(self, x: Any) -> Any:
        """Returns sums over the last axis, which stays."""

    def unsqueeze(self, x: Any, axis: int) -> Any:
        """Adds an axis of length 1."""

    def column(self, x: Any, number: int) -> Any:
        """Returns a part (n,) of (n, m)."""

    def join(self, x: Any, y: Any) -> Any:
        """Joins (g, G, S) and (g, G, S) along axis 1."""

    def take(self, x: Any, places: Any) -> Any:
        """Returns the parts (B, g, S, N) of (B, L, N) at places (g, S)."""

    def product(self, x: Any, y: Any) -> Any:
        """Multiplies (g, 2G, S) and (B, g, S, N) to (B, g, 2G, N)."""

    def part(self, x: Any, axis: int, start: int, stop: int) -> Any:
        """Returns a part along one axis."""

    def shape(self, x: Any, *sides: int) -> Any:
        """Gives a value another shape: 0 keeps a side, -1 is what remains."""

    def swap(self, x: Any, *order: int) -> Any:
        """Permutes axes."""

    def look_up(self, table: Any, places: Any) -> Any:
        """Returns the entries of a constant table of float32 at places."""


def preprocess(ops: Operations, geometry: Geometry, images: Any) -> Any:
    """Returns pixels (B, 3, h, w), float32, of images (B, H, W, 3), uint8."""
    height, width = ops.lengths(images)
    rows, columns = _resized(ops, geometry.size, height, width)
    tall, wide = geometry.output
    x = ops.shape(ops.swap(images, 0, 2, 1, 3), 0, 0, -1)  # (B, W, H * 3)
    x = _one_pass(ops, geometry, x, width, columns, wide)
    x = ops.swap(ops.shape(x, 0, wide, -1, CHANNELS), 0, 2, 1, 3)  # (B, H, w, 3)
    x = _one_pass(ops, geometry, ops.shape(x, 0, -1, wide * CHANNELS), height, rows, tall)
    x = ops.swap(ops.shape(x, 0, tall, wide, CHANNELS), 0, 3, 1, 2)  # (B, 3, h, w)
    first = ops.whole(np.arange(CHANNELS).reshape(1, CHANNELS, 1, 1) * LEVELS)
    return ops.look_up(geometry.pixels.reshape(-1), ops.index(x) + first)


def _resized(ops: Operations, size: tuple[int, int] | int | None, height: Any, width: Any) -> tuple[Any, Any]:
    if size is None:
        return height, width
    if isinstance(size, tuple):
        return size
    low = ops.smaller(height, width)
    return ops.larger(ops.quotient(height * size, low), 1), ops.larger(ops.quotient(width * size, low), 1)


def _one_pass(ops: Operations, geometry: Geometry, x: Any, length: Any, resized: Any, out: int) -> Any:
    """Resizes the axis of length L of (B, L, N) to R, and returns O of its center, (B, O, N)."""
    groups = -(-out // _GROUP)
    weights, places = _weights(ops, geometry.resample, length, resized, out)
    y = ops.product(weights, ops.single(ops.take(x, places)))
    high, low = ops.part(y, 2, 0, _GROUP), ops.part(y, 2, _GROUP, 2 * _GROUP)
    half = float(1 << (_BITS - _LOW_BITS - 1))
    total = high + ops.floor(low * 2.0**-_LOW_BITS) + half
    y = ops.larger(ops.smaller(ops.floor(total * 2.0 ** (_LOW_BITS - _BITS)), 255.0), 0.0)
    return ops.part(ops.shape(y, 0, groups * _GROUP, -1), 1, 0, out)


def _weights(ops: Operations, resample: int, length: Any, resized: Any, out: int) -> tuple[Any, Any]:
    """Returns weights (g, 2G, S), both parts, and the places (g, S) of the source pixels that they weigh."""
    function, reach = _FILTERS[resample]
    groups = -(-out // _GROUP)
    # The place of each result in the whole resized axis; outside of it there are zeros.
    start = ops.quotient(ops.larger(resized - out, 0), 2) - ops.quotient(ops.larger(out - resized, 0) + 1, 2)
    place = ops.whole(np.arange(groups * _GROUP).reshape(groups, _GROUP)) + start  # (g, G)
    longest = ops.larger(length, resized)
    # One more at both ends than needed: some libraries divide whole numbers with an error of one.
    first = ops.quotient((ops.column(place, 0) * 2 + 1) * length - longest * reach + resized, resized * 2) - 1
    first = ops.larger(first, 0)  # (g,)
    taps = ops.quotient(length * (_GROUP - 1), resized) + ops.quotient(longest * reach, resized) + 6
    source = ops.unsqueeze(first, 1) + ops.count(taps)  # (g, S)
    one, many = ops.unsqueeze(source, 1), ops.unsqueeze(place, 2)  # (g, 1, S), (g, G, 1)
    distance = (one * 2 + 1) * resized - (many * 2 + 1) * length  # (g, G, S), in halves of 1 / longest
    inside = ops.below(one, length) * ops.below(many, resized) * ops.below(many * 0 - 1, many)
    if ops.is_double or resample not in _POLYNOMIALS:
        fixed = _fixed(ops, function, distance, longest * 2, ops.real(inside))
    else:
        fixed = _fixed_by_digits(ops, _POLYNOMIALS[resample], distance, longest * 2, ops.real(inside))
    high = ops.floor((fixed + float(1 << (_LOW_BITS - 1))) * 2.0**-_LOW_BITS)
    both = ops.join(high, fixed - high * float(1 << _LOW_BITS))
    return ops.single(both), ops.smaller(source, length - 1)


def _fixed(ops: Operations, function: Any, distance: Any, unit: Any, inside: Any) -> Any:
    """Returns weights as whole numbers, with 22 bits after the point, rounded half away from zero."""
    weights = function(ops, ops.real(distance) / ops.real(unit)) * inside
    total = ops.total(weights)
    nothing = ops.below(ops.absolute(total), 1e-6)  # outside of the resized axis
    scaled = weights / (total + nothing) * float(1 << _BITS)
    negative = ops.below(scaled, 0.0)
    return ops.floor(ops.absolute(scaled) + 0.5) * (negative * -2.0 + 1.0)


def _fixed_by_digits(ops: Operations, pieces: Any, distance: Any, unit: Any, inside: Any) -> Any:
    """Returns what `_fixed` returns, without numbers of 64 bits.

    Numbers are held in two parts: a whole multiple of 2**-12, and a rest that float32 knows to about 2**-36.
    """
    far = ops.absolute(distance)
    high: Any = 0.0
    low: Any = 0.0
    for begin, sign, factors in pieces:
        given = ops.smaller(ops.larger(far * sign + unit * begin, 0), unit)
        powers = [_divided(ops, given, unit)]
        powers.append(_multiplied(ops, powers[0], powers[0]))
        powers.append(_multiplied(ops, powers[1], powers[0]))
        high = powers[0][0] * 0.0 + (factors[0] * _DIGIT) + high
        for factor, (whole, rest) in zip(factors[1:], powers, strict=True):
            high, low = whole * factor + high, rest * factor + low
    high, low = high * inside, low * inside
    total_high, total_low = ops.total(high), ops.total(low)
    total = total_high + total_low
    total = total + ops.below(ops.absolute(total), 1.0)  # outside of the resized axis
    step = float(1 << (_BITS // 2))
    first = ops.floor((high + low) / total * step)
    whole = ops.index(high) * int(step) - ops.index(first) * ops.index(total_high)
    left = ops.real(whole) + (low * step - first * total_low)
    return first * step + ops.floor(left / total * step + 0.5)


def _divided(ops: Operations, x: Any, unit: Any) -> tuple[Any, Any]:
    """Divides whole numbers, x / unit <= 1; returns both parts in units of 2**-12."""
    first = ops.floor(ops.real(x) / ops.real(unit) * _DIGIT)
    left = x * int(_DIGIT) - ops.index(first) * unit
    return first, ops.real(left) / ops.real(unit)


def _multiplied(ops: Operations, x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    whole = x[0] * y[0]
    first = ops.floor(whole * (1 / _DIGIT))
    rest = (whole - first * _DIGIT) + (x[0] * y[1] + x[1] * y[0] + x[1] * y[1])
    return first, rest * (1 / _DIGIT)


def _bilinear(ops: Operations, x: Any) -> Any:
    return ops.larger(ops.absolute(x) * -1.0 + 1.0, 0.0)


def _bicubic(ops: Operations, x: Any) -> Any:
    x = ops.absolute(x)
    near, far = ops.below(x, 1.0), ops.below(x, 2.0)
    inner = (x * 1.5 - 2.5) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return inner * near + outer * (far - near)


def _hamming(ops: Operations, x: Any) -> Any:
    x = ops.absolute(x)
    cosine = ops.sine(x * math.pi + math.pi / 2)
    window = cosine * _SINGLE_046 + _SINGLE_054
    return _sinc(ops, x) * window * ops.below(x, 1.0)


def _lanczos(ops: Operations, x: Any) -> Any:
    return _sinc(ops, x) * _sinc(ops, x * (1 / 3)) * ops.below(ops.absolute(x), 3.0)


def _sinc(ops: Operations, x: Any) -> Any:
    angle = x * math.pi
    at_zero = ops.below(ops.absolute(angle), 1e-12)
    return (ops.sine(angle) + at_zero) / (angle + at_zero)


# Pillow's source has these two as single-precision constants.
_SINGLE_054, _SINGLE_046 = float(np.float32(0.54)), float(np.float32(0.46))

_DIGIT = 4096.0

# Filters that are polynomials of third degree in pieces: the number t in [0, 1] that each piece takes, as a
# start and a sign of the distance, and twice its coefficients from 1 to t**3. Beyond their ends, pieces are 0.
_POLYNOMIALS = {
    2: ((0, 1, (2.0, -2.0, 0.0, 0.0)),),
    3: ((0, 1, (2.0, 0.0, -5.0, 3.0)), (2, -1, (0.0, 0.0, -1.0, 1.0))),
}

# Filter of Pillow -> function, and twice the distance from which on it is zero, in pixels of the smaller scale.
# The box filter depends on rounding where a source pixel lies on its edge, so it is not defined well enough.
_FILTERS: dict[int, tuple[Callable[[Operations, Any], Any], int]] = {
    1: (_lanczos, 6),
    2: (_bilinear, 2),
    3: (_bicubic, 4),
    5: (_hamming, 2),
}

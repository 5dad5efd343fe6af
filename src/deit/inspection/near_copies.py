"""Finds copies of images that were resized, compressed again or slightly cropped, in time that grows with their number.

1. Each image is described by several views: the whole of it, and the whole less a margin on some of its sides. A view
   is 8 x 8 gray values, freed of brightness and contrast, in the axes of largest variance, all of one size.
2. Views whose signs along random directions agree in a whole band of bits are compared (locality-sensitive hashing,
   Charikar 2002): the whole of one image with the views of another. A bucket of many views costs a fixed number of
   comparisons for each of them.
3. What is left is measured: the correlation of 16 x 16 gray values and of their detail at the best of 256 margins, and
   the difference of colors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Gray = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

SIDE = 32  # of the gray thumbnails that are compared
COLORS = 4  # side of the thumbnails of colors
_VIEW, _FINE = 8, 16
# Shares of a side that the views lack: left, right, top, bottom.
_VIEWS = (
    (0.0, 0.0, 0.0, 0.0),
    *((m, m, m, m) for m in (0.03, 0.06, 0.1)),
    *((2 * m * x, 2 * m * (1 - x), 2 * m * y, 2 * m * (1 - y)) for m in (0.03, 0.06) for x in (0, 1) for y in (0, 1)),
    *((0.1 * x, 0.1 * (1 - x), 0.0, 0.0) for x in (0, 1)),
    *((0.0, 0.0, 0.1 * y, 0.1 * (1 - y)) for y in (0, 1)),
)
_MARGINS = (0.0, 0.04, 0.08, 0.12)
_AXES, _BANDS = 24, 20
_FEW = 1500  # images of which all pairs are compared
_NEAR = 0.88  # cosine of two views that are worth measuring
_MOST_IN_A_BUCKET = 32  # views that one is compared with
_MOST_OF_EACH, _SAME = 6, 0.95  # pairs of an image that are measured; cosine of those that are as good as the same
_FLAT = 6.0  # standard deviation of gray values, of 255, under which an image has nothing to compare
_TOGETHER, _MEASURED_TOGETHER = 2048, 128
_ASKED, _AMONG, _EIGHTH, _CLEAR = 128, 4096, 8, 0.95
_DISTINCT = 0.17  # share of the distance to what images usually resemble, within which others are copies
_KEY = 11  # of the random directions


@dataclass(frozen=True, kw_only=True, eq=False)
class NearCopies:
    """Pairs of images that show the same picture.

    Attributes:
        pairs: (P, 2) int64, the smaller number first. Of an image with many copies before it, the pairs with the
            nearest and with the first of them.
        correlations: (P,) of their detail at the best margin, up to 1.
    """

    pairs: Numbers
    correlations: Floats


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What makes a pair of images copies of one picture.

    The defaults lie between pairs that were made as copies (resized to three quarters, JPEG of quality 40, cropped by
    up to 6 % on each side; at least 0.96, 0.92 and at most 18) and pairs of different pictures that look alike, such
    as ships at sea under a plain sky (detail up to 0.86).

    Attributes:
        whole: Least correlation of 16 x 16 gray values.
        detail: Least correlation of what these values have beyond the means around them.
        colors: Largest mean difference of colors, of 255, after the difference of brightness is taken away.
    """

    whole: float = 0.94
    detail: float = 0.88
    colors: float = 20.0

    def fitted(self, usual: float) -> Limits:
        """Returns limits for a data set whose images resemble others by `usual`, see `usual_detail`.

        Scans of digits on 8 x 8 pixels resemble others by 0.83, photos by 0.24: of digits, 0.97 and more are copies.
        """
        return replace(self, detail=max(self.detail, 1 - _DISTINCT * (1 - usual)))


def near_copies(
    gray: Gray,
    colors: Gray,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NearCopies:
    """Finds pairs of images that are copies but for size, compression and a margin of up to an eighth of a side.

    Images without contrast are copies of none: nearly all of them look the same.

    Args:
        gray: (N, 32, 32) thumbnails, the whole image squeezed into a square.
        colors: (N, 4, 4, 3) likewise.
        limits: See `Limits`.
        progress: Called with (steps done, steps in all).
    """
    textured = np.flatnonzero(gray.reshape(len(gray), -1).std(axis=1) >= _FLAT) if len(gray) else np.zeros(0, np.int64)
    told = progress or (lambda done, total: None)
    candidates = _candidates(gray[textured], lambda done: told(min(done, _BANDS), _BANDS + 1))
    chosen = limits or Limits().fitted(usual_detail(gray[textured]))
    pairs, correlations = _measured(gray[textured], colors[textured], candidates, chosen)
    told(_BANDS + 1, _BANDS + 1)
    return NearCopies(pairs=textured[pairs], correlations=correlations)


# --- windows ------------------------------------------------------------------------------------------


def _shrinking(start: float, end: float, size: int) -> Floats:
    """Returns a matrix (size, 32) that averages a line of 32 pixels, less a share at both ends, to `size` values."""
    edges = np.linspace(SIDE * start, SIDE * (1 - end), size + 1)
    pixels = np.arange(SIDE)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    covered = np.maximum(shares, 0)
    matrix: Floats = (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _window(gray: Floats, margins: tuple[float, float, float, float], size: int) -> Floats:
    """Returns (n, size * size) values of the same window of (n, 32, 32) images, with mean 0 and length 1."""
    left, right, top, bottom = margins
    small = _shrinking(top, bottom, size) @ gray @ _shrinking(left, right, size).T
    return _unit(_lines(small.astype(np.float32, copy=False)))


def _unit(values: Floats) -> Floats:
    centered = values - values.mean(axis=-1, keepdims=True)
    unit: Floats = centered / np.maximum(np.linalg.norm(centered, axis=-1, keepdims=True), 1e-6)
    return unit


# --- candidates ---------------------------------------------------------------------------------------


def _candidates(gray: Gray, told: Callable[[int], None]) -> Numbers:
    """Returns (C, 2) different pairs that are worth measuring."""
    if len(gray) < 2:
        return np.zeros((0, 2), np.int64)
    axes, center = _axes(gray)
    views = np.stack([_described(gray, margins, axes, center) for margins in _VIEWS])  # (V, N, D)
    pairs, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for step, (whole, other) in enumerate(_colliding(views)):
        for start in range(0, len(whole), _TOGETHER * 16):
            part = slice(start, start + _TOGETHER * 16)
            first, view, second = whole[part], *np.divmod(other[part], len(gray))
            cosines = np.einsum("nd,nd->n", views[0, first], views[view, second])
            near = (cosines >= _NEAR) & (first != second)
            low, high = np.minimum(first, second)[near], np.maximum(first, second)[near]
            pairs, values = np.concatenate([pairs, high * len(gray) + low]), np.concatenate([values, cosines[near]])
        pairs, values = _nearest_of_each(pairs, values, len(gray))
        told(step + 1)
    return np.stack(np.divmod(pairs, len(gray)), axis=1)[:, ::-1]


def _nearest_of_each(pairs: Numbers, cosines: Floats, count: int) -> tuple[Numbers, Floats]:
    """Keeps each pair once, and of each image the pairs with a few of those before it: the nearest ones.

    Also the first of those that are as good as the same: a thousand copies of a picture are all compared with one.
    """
    order = np.lexsort((-cosines, pairs))
    pairs, cosines = pairs[order], cosines[order]
    new = np.flatnonzero(np.diff(pairs, prepend=-1))
    pairs, cosines = pairs[new], cosines[new]
    high, low = np.divmod(pairs, count)
    kept = np.zeros(len(pairs), bool)
    for which, key in ((np.arange(len(pairs)), -cosines), (np.flatnonzero(cosines >= _SAME), low)):
        order = which[np.lexsort((key[which], high[which]))]
        rank = np.arange(len(order)) - np.searchsorted(high[order], high[order])
        kept[order[rank < _MOST_OF_EACH]] = True
    return pairs[kept], cosines[kept]


def _axes(gray: Gray) -> tuple[Floats, Floats]:
    """Returns matrix (64, D) and center that make the views of these images uncorrelated, and their sizes equal.

    Of few images the variances say little: their views stay as they are.
    """
    if len(gray) < _VIEW**2:
        return np.eye(_VIEW**2, dtype=np.float32), np.zeros(_VIEW**2, np.float32)
    sample = np.linspace(0, len(gray) - 1, min(len(gray), 20_000)).astype(np.int64)
    whole = _window(gray[sample].astype(np.float32), _VIEWS[0], _VIEW)
    center = whole.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov((whole - center).T))
    chosen = slice(-1, -1 - _AXES, -1)
    sizes = np.sqrt(np.maximum(variances[chosen], 1e-4 * variances[-1]) + 1e-12)
    return (vectors[:, chosen] / sizes).astype(np.float32), center


def _described(gray: Gray, margins: tuple[float, float, float, float], axes: Floats, center: Floats) -> Floats:
    parts = [
        (_window(gray[start : start + _TOGETHER].astype(np.float32), margins, _VIEW) - center) @ axes
        for start in range(0, len(gray), _TOGETHER)
    ]
    whole = np.concatenate(parts)
    unit: Floats = whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-6)
    return unit


def _colliding(views: Floats) -> Iterator[tuple[Numbers, Numbers]]:
    """Yields numbers of whole images and of views (view * N + image) that share a bucket, band after band."""
    count = views.shape[1]
    if count <= _FEW:
        for view in range(len(views)):
            first, second = np.divmod(np.arange(count * count), count)
            yield first, view * count + second
        return
    bits = max(int(np.log2(count)), 8)
    random = np.random.default_rng(_KEY)
    powers = 2 ** np.arange(bits)
    for _ in range(_BANDS):
        directions = random.standard_normal((views.shape[2], bits)).astype(np.float32)
        keys = ((views @ directions > 0) @ powers).reshape(-1)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        whole = np.arange(count)
        starts, stops = np.searchsorted(ordered, keys[:count]), np.searchsorted(ordered, keys[:count], side="right")
        for step in range(int(min((stops - starts).max(), _MOST_IN_A_BUCKET))):
            there = starts + step < stops
            yield whole[there], order[(starts + step)[there]]


# --- measuring ----------------------------------------------------------------------------------------


def _measured(gray: Gray, colors: Gray, candidates: Numbers, limits: Limits) -> tuple[Numbers, Floats]:
    kept = [np.zeros((0, 2), np.int64)]
    values = [np.zeros(0, np.float32)]
    for start in range(0, len(candidates), _MEASURED_TOGETHER):
        pairs = candidates[start : start + _MEASURED_TOGETHER]
        ways = [_best_window(gray[pairs[:, i]], gray[pairs[:, 1 - i]]) for i in (0, 1)]
        best = np.where(ways[1].sum(axis=1, keepdims=True) > ways[0].sum(axis=1, keepdims=True), ways[1], ways[0])
        shift = colors[pairs[:, 0]].astype(np.float32) - colors[pairs[:, 1]]
        differences = np.abs(shift - shift.mean(axis=(1, 2, 3), keepdims=True)).mean(axis=(1, 2, 3))
        good = (best[:, 0] >= limits.whole) & (best[:, 1] >= limits.detail) & (differences <= limits.colors)
        kept.append(pairs[good])
        values.append(best[good, 1])
    return np.concatenate(kept), np.concatenate(values)


def usual_detail(gray: Gray) -> float:
    """Returns how much images resemble others that are no copies: the median correlation of detail.

    Of 128 images, each with the eighth of those it resembles most, clear copies aside.

    Args:
        gray: (N, 32, 32) thumbnails.
    """
    if len(gray) <= _EIGHTH:
        return 0.0
    random = np.random.default_rng(_KEY)
    among = gray[random.permutation(len(gray))[:_AMONG]]
    small = _shrinking(0, 0, _FINE) @ among.astype(np.float32) @ _shrinking(0, 0, _FINE).T
    details = _unit(_lines(_detail(small)))
    correlations = details[:_ASKED] @ details.T
    correlations[correlations > _CLEAR] = -1  # the image itself among them
    eighth = np.argsort(-correlations, axis=1)[:, _EIGHTH - 1]
    told = np.flatnonzero(correlations[np.arange(len(eighth)), eighth] > -1)  # else there are no eight others
    if not len(told):
        return 0.0
    one, two = among[told], among[eighth[told]]
    parts = [slice(start, start + 32) for start in range(0, len(told), 32)]
    best = [np.maximum(_best_window(one[p], two[p]), _best_window(two[p], one[p]))[:, 1] for p in parts]
    return float(np.median(np.concatenate(best)))


def _best_window(whole: Gray, cropped: Gray) -> Floats:
    """Returns (n, 2) correlations of `cropped` with that window of `whole` which it resembles most: all, detail."""
    spans = [_shrinking(a, b, _FINE) for a in _MARGINS for b in _MARGINS]
    stacked = np.concatenate(spans)  # (16 * 16, 32)
    windows = stacked @ whole.astype(np.float32) @ stacked.T  # (n, 16 * 16, 16 * 16)
    windows = windows.reshape(len(whole), len(spans), _FINE, len(spans), _FINE).transpose(0, 1, 3, 2, 4)
    small = _shrinking(0, 0, _FINE) @ cropped.astype(np.float32) @ _shrinking(0, 0, _FINE).T
    pairs = ((windows, small), (_detail(windows), _detail(small)))
    found = [np.einsum("nijd,nd->nij", _unit(_lines(a)), _unit(_lines(b))).reshape(len(whole), -1) for a, b in pairs]
    best = (found[0] + found[1]).argmax(axis=1)[:, None]
    correlations: Floats = np.concatenate([np.take_along_axis(each, best, axis=1) for each in found], axis=1)
    return correlations


def _lines(images: Floats) -> Floats:
    lines: Floats = images.reshape(*images.shape[:-2], -1)
    return lines


def _detail(images: Floats) -> Floats:
    """Returns images (..., 16, 16) less the means of 5 x 5 values around each."""
    near = (np.abs(np.arange(_FINE)[:, None] - np.arange(_FINE)) <= 2).astype(np.float32)
    near /= near.sum(axis=1, keepdims=True)
    detail: Floats = images - near @ images @ near.T
    return detail

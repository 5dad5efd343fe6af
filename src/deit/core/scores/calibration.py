"""Measures calibration: reliability bins, expected calibration error, temperature scaling (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.scores.intervals import Z_95 as _Z
from deit.core.scores.metrics import Array, Floats, Integers, softmax

NUM_BINS = 15  # as in Guo et al. 2017, section 5
TEMPERATURE_RANGE = (0.01, 100.0)

# Rows of logits that are widened to float64 together, as a number of values: 32 MiB.
_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images whose highest probability lies between two numbers.

    Attributes:
        lower: Exclusive.
        upper: Inclusive.
        images: How many.
        confidence: Mean highest probability; NaN without images.
        accuracy: Share of right answers; NaN without images.
    """

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float


def reliability(confidences: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Divides images into 15 bins of equal width by the highest probability, and compares it with the accuracy.

    Args:
        confidences: (N,), highest probability of each image.
        right: (N,), whether its class is the true one.

    Raises:
        ValueError: Shapes disagree, or a number does not lie in (0, 1].
    """
    wide = confidences.astype(np.float64)
    if wide.ndim != 1 or right.shape != wide.shape:
        raise UserError(f"One answer for each probability is needed. Received: {wide.shape} and {right.shape}.")
    if not ((wide > 0) & (wide <= 1 + 1e-6)).all():
        raise UserError("Probabilities must lie in (0, 1]. Leave out images whose logits are not finite.")
    edges = np.linspace(0, 1, NUM_BINS + 1)
    numbers = np.clip(np.searchsorted(edges, wide, side="left") - 1, 0, NUM_BINS - 1)
    images = np.bincount(numbers, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(numbers, weights=wide, minlength=NUM_BINS) / images
        accuracy = np.bincount(numbers, weights=right.astype(np.float64), minlength=NUM_BINS) / images
    columns = zip(edges[:-1], edges[1:], images, confidence, accuracy, strict=True)
    return [
        ReliabilityBin(lower=float(a), upper=float(b), images=int(n), confidence=float(c), accuracy=float(r))
        for a, b, n, c, r in columns
    ]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """Returns the mean distance of confidence and accuracy, weighted by images (Guo et al. 2017, equation 3).

    Returns:
        Between 0 and 1; NaN without images.
    """
    images = sum(b.images for b in bins)
    if not images:
        return float("nan")
    return sum(b.images * abs(b.confidence - b.accuracy) for b in bins if b.images) / images


def confidences(logits: Array, temperature: float = 1.0) -> Array:
    """Returns the highest probability (N,) of each row of logits (N, K), divided by a temperature."""
    result: Array = np.empty(len(logits), np.float32)
    for rows in _parts(logits):
        result[rows] = softmax(logits[rows].astype(np.float64) / temperature).max(axis=1)
    return result


def mean_cross_entropy(logits: Array, labels: npt.NDArray[np.integer], temperature: float = 1.0) -> float:
    """Returns the mean cross-entropy of logits (N, K), divided by a temperature, against true classes (N,), in nats."""
    return _cross_entropy(logits, labels, 1 / temperature)[0]


def fit_temperature(logits: Array, labels: npt.NDArray[np.integer]) -> float:
    """Finds the temperature that makes the mean cross-entropy smallest (Guo et al. 2017, section 4.2).

    The cross-entropy is convex in 1 / T, so its slope has one root: Newton's steps, kept between bounds that close in.

    Args:
        logits: (N, K), finite in each row's largest. Fit on images that are not used to judge the result, where there
            are enough: one number for a whole data set overfits little, but it does.
        labels: (N,), true classes in [0, K).

    Returns:
        Above 1 for a model that is too sure, below 1 for one that is not sure enough. 0.01 or 100 at the ends of the
        range, where there is no best one: every answer is right, or the answers are worse than none.

    Raises:
        ValueError: There are no images.
    """
    if not len(logits):
        raise UserError("A temperature cannot be fitted without images.")
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    if _cross_entropy(logits, labels, low)[1] >= 0:
        return TEMPERATURE_RANGE[1]
    if _cross_entropy(logits, labels, high)[1] <= 0:
        return TEMPERATURE_RANGE[0]
    inverse = 1.0
    for _ in range(100):
        _, slope, curvature = _cross_entropy(logits, labels, inverse)
        if slope < 0:
            low = inverse
        else:
            high = inverse
        following = inverse - slope / curvature if curvature > 0 else 0.0
        if not low < following < high:
            following = float(np.sqrt(low * high))
        if abs(following - inverse) <= 1e-9 * inverse:
            break
        inverse = following
    return 1 / inverse


def temperature_interval(logits: Array, labels: npt.NDArray[np.integer], temperature: float) -> tuple[float, float]:
    """Returns the 95 % interval of a temperature that was fitted on these images.

    From the slopes and the curvature of the cross-entropy at the fit (the sandwich of White 1982), so it holds where
    no temperature makes the probabilities exactly right, too.

    Args:
        logits: (N, K), of the fit.
        labels: (N,), true classes.
        temperature: Result of `fit_temperature`.
    """
    squares = curvature = 0.0
    inverse = 1 / temperature
    for rows in _parts(logits):
        wide: Floats = logits[rows].astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        true = np.take_along_axis(wide, labels[rows][:, None].astype(np.int64), axis=1)[:, 0]
        weights = np.exp(wide * inverse)
        weights /= weights.sum(axis=1, keepdims=True)
        wide[np.isneginf(wide)] = 0
        mean = (weights * wide).sum(axis=1)
        squares += ((mean - true) ** 2).sum()
        curvature += ((weights * wide**2).sum(axis=1) - mean**2).sum()
    # Of the logarithm, which stays above 0: its error is that of 1 / T times T.
    half = _Z * np.sqrt(squares) / curvature * temperature if curvature > 0 else np.inf
    return float(temperature * np.exp(-half)), float(temperature * np.exp(min(half, 50.0)))


def pairs_of(logits: Array, labels: npt.NDArray[Any]) -> tuple[Array, Integers]:
    """Returns yes-or-no questions as choices of two classes, so that one temperature can be fitted to sigmoids.

    Args:
        logits: (N, K).
        labels: (N, K), zeros and ones.

    Returns:
        (N K, 2) logits of no and yes, and (N K,) answers.
    """
    yes = logits.reshape(-1).astype(np.float32)
    return np.stack([np.zeros_like(yes), yes], axis=1), (labels.reshape(-1) == 1).astype(np.int64)


def _cross_entropy(
    logits: Array, labels: npt.NDArray[np.integer], inverse_temperature: float
) -> tuple[float, float, float]:
    """Returns the mean cross-entropy, and its first two derivatives with respect to the inverse temperature."""
    sums = np.zeros(3)
    for rows in _parts(logits):
        # Relative to the largest: the shift cancels in all three. Classes at minus infinity have no part in them.
        wide: Floats = logits[rows].astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        true = np.take_along_axis(wide, labels[rows][:, None].astype(np.int64), axis=1)[:, 0]
        exponentials = np.exp(wide * inverse_temperature)
        total = exponentials.sum(axis=1)
        wide[np.isneginf(wide)] = 0
        mean = (exponentials * wide).sum(axis=1) / total
        mean_square = (exponentials * wide**2).sum(axis=1) / total
        sums += [
            (np.log(total) - true * inverse_temperature).sum(),
            (mean - true).sum(),
            (mean_square - mean**2).sum(),
        ]
    loss, slope, curvature = (sums / len(logits)).tolist()
    return loss, slope, curvature


def _parts(logits: Array) -> Iterator[slice]:
    rows = max(_VALUES_AT_ONCE // max(logits.shape[1], 1), 1)
    return (slice(start, start + rows) for start in range(0, len(logits), rows))

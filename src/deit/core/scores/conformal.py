"""Computes prediction sets that hold the truth with a chosen probability: split conformal prediction.

A threshold is the score of rank ceil((n + 1) c) among the scores of n held-out images (Vovk et al. 2005; Papadopoulos
et al. 2002). If those and the next image are exchangeable, such as drawn from the same place in any order, the next
image's true class is in the set with probability at least c, whatever the model is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.config.field_checks import is_finite
from deit.core.errors import UserError, shown
from deit.core.labels import REGRESSION, SINGLE_LABEL
from deit.core.printable import counted, some_of
from deit.core.scores.metrics import Array, Floats, Integers, softmax

SETS = ("lac", "aps", "raps")
RESIDUAL = "residual"  # of a regression: the distance from the true number

# Of RAPS (Angelopoulos et al. 2021). They are fixed: chosen by the held-out images they would void the guarantee.
_FREE_RANKS, _PENALTY = 2, 0.1


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How sure prediction sets must be, and how they are made.

    Attributes:
        percent: Of 100 images, so many have their true class in their set; above 1 and below 100.
        sets: "lac" makes the sets smallest on average (Sadinle et al. 2019). "aps" makes them larger for difficult
            images and smaller for easy ones (Romano et al. 2020), here without randomness. "raps" does so with a
            penalty on long sets (Angelopoulos et al. 2021).
        per_class: Keep the promise for the images of each class, not only over all images.
    """

    percent: float = 95.0
    sets: str = "lac"
    per_class: bool = False

    def __post_init__(self) -> None:
        coverage_level(self.percent)
        if self.sets not in SETS:
            raise UserError(f"sets must be one of {', '.join(SETS)}. Received: {shown(self.sets)}.")


def wanted_coverage(
    percent: float | None, *, sets: str = "lac", per_class: bool = False, abstain: bool = False
) -> Coverage | None:
    """Returns what prediction sets must keep. Abstaining needs sets too, by default at the percentage of `Coverage`.

    Args:
        percent: See `Coverage`; None for none.
        sets: See `Coverage`.
        per_class: See `Coverage`.
        abstain: See `Predictor.classify`.

    Returns:
        None for no sets.

    Raises:
        UserError: See `Coverage`.
    """
    if percent is None:
        return Coverage(sets=sets, per_class=per_class) if abstain else None
    return Coverage(percent=percent, sets=sets, per_class=per_class)


def coverage_level(percent: Any) -> Fraction:
    """Returns a coverage in percent as an exact share.

    Raises:
        UserError: It is not a number above 1 and below 100.
    """
    is_number = isinstance(percent, (int, float)) and not isinstance(percent, bool) and is_finite(percent)
    if not is_number or not 1 < percent < 100:
        advice = f" Did you mean {100 * percent:g}?" if is_number and 0 < percent <= 1 and percent != 1 else ""
        raise UserError(f"coverage must be a percentage above 1 and below 100. Received: {shown(percent)}.{advice}")
    return Fraction(str(percent)) / 100


def images_needed(percent: float) -> int:
    """Returns the smallest number of held-out images for which a coverage can be promised: 19 for 95 %."""
    level = coverage_level(percent)
    return math.ceil(level / (1 - level))


def threshold(scores: npt.NDArray[Any], percent: float) -> float:
    """Returns the score of rank ceil((n + 1) c) of n held-out images: sets take in every class up to it.

    Raises:
        UserError: There are too few images for this coverage.
    """
    rank = _rank(len(scores), percent)
    if rank > len(scores):
        raise UserError(
            f"A coverage of {percent:g} % needs at least {images_needed(percent)} held-out images. "
            f"The calibration has {len(scores)}."
        )
    return float(np.partition(scores, rank - 1)[rank - 1])


def coverage_interval(images: int, percent: float) -> tuple[float, float]:
    """Returns between which percentages the coverage of one calibration lies, with 95 % probability.

    A threshold from n images has a coverage of its own, over all images to come, which scatters about the one asked
    for: it is distributed as Beta(k, n + 1 - k), k the rank of the threshold (Vovk 2012).

    Args:
        images: Held-out images, n.
        percent: The coverage that was asked for.
    """
    rank = _rank(images, percent)
    return 100 * _beta_quantile(images, rank, 0.025), 100 * _beta_quantile(images, rank, 0.975)


def class_scores(sets: str, logits: Array) -> Floats:
    """Returns the scores (N, K) of all classes; those of the likelier classes are smaller.

    Uses the raw probabilities: a temperature that was fitted on the same images would void the guarantee.

    Args:
        sets: One of `SETS`.
        logits: (N, K).
    """
    probabilities: Floats = softmax(logits.astype(np.float64))
    if sets == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    summed = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    if sets == "raps":
        summed += _PENALTY * np.maximum(np.arange(1, logits.shape[1] + 1) - _FREE_RANKS, 0)
    result = np.empty_like(summed)
    np.put_along_axis(result, order, summed, axis=1)
    return result


def true_scores(sets: str, logits: Array, labels: Integers) -> Floats:
    """Returns the scores (N,) of the true classes, from logits (N, K) and labels (N,)."""
    result: Floats = np.take_along_axis(class_scores(sets, logits), labels[:, None], axis=1)[:, 0]
    return result


def class_thresholds(scores: Floats, labels: Integers, classes: Sequence[str], coverage: Coverage) -> Floats:
    """Returns the threshold (K,) of each class.

    With `coverage.per_class`, those of a class with enough images come from its images alone; the classes with too few
    share one threshold, from all of their images (Mondrian conformal prediction: Vovk 2012). Otherwise all are equal.

    Args:
        scores: (n,), of the true classes of the held-out images.
        labels: (n,), their classes.
        classes: Class names.
        coverage: The promise.

    Raises:
        UserError: There are too few images.
    """
    if not coverage.per_class:
        return np.full(len(classes), threshold(scores, coverage.percent))
    counts, needed = np.bincount(labels, minlength=len(classes)), images_needed(coverage.percent)
    rest = np.flatnonzero(counts < needed)
    shared = scores[np.isin(labels, rest)]
    if len(rest) and len(shared) < needed:
        named = some_of([f"{classes[i]} ({counts[i]})" for i in rest.tolist()], 5)
        raise UserError(
            f"A coverage of {coverage.percent:g} % per class needs at least {needed} held-out images of each class. "
            f"These have fewer, and fewer together: {named}. Calibrate with more images, or leave out per_class."
        )
    result = np.empty(len(classes))
    for k in range(len(classes)):
        result[k] = threshold(shared if counts[k] < needed else scores[labels == k], coverage.percent)
    return result


def classes_sharing(labels: Integers, classes: Sequence[str], coverage: Coverage) -> list[str]:
    """Returns the classes that have too few images for a threshold of their own; none without `per_class`."""
    if not coverage.per_class:
        return []
    counts = np.bincount(labels, minlength=len(classes))
    return [classes[k] for k in np.flatnonzero(counts < images_needed(coverage.percent)).tolist()]


def describe_sets(images: int, coverage: Coverage, problem_type: str = SINGLE_LABEL) -> str:
    """Returns a sentence that says what a coverage from so many held-out images promises."""
    what = "Intervals hold the truth" if problem_type == REGRESSION else "Sets hold the true class"
    low, high = coverage_interval(images, coverage.percent)
    if coverage.per_class:
        return f"{what} for at least {coverage.percent:g} of 100 images of each class, on average."
    return (
        f"{what} for at least {coverage.percent:g} of 100 images, on average over calibrations; this "
        f"one, from {counted(images, 'image')}, for {low:.1f} to {high:.1f} (95 % probability)."
    )


def _rank(images: int, percent: float) -> int:
    return math.ceil((images + 1) * coverage_level(percent))


def _beta_quantile(images: int, rank: int, probability: float) -> float:
    """Returns x with P(Beta(rank, images + 1 - rank) <= x) = probability: that of rank successes in images trials."""
    if rank > images:
        return 1.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, images + 1)))])
    counts = np.arange(rank, images + 1)
    choices = logs[images] - logs[counts] - logs[images - counts]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = np.exp(choices + counts * math.log(middle) + (images - counts) * math.log1p(-middle)).sum()
        low, high = (middle, high) if chance < probability else (low, middle)
    return (low + high) / 2

"""Chooses the score from which on a class is named, for a precision or a recall that is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.config.field_checks import is_finite
from deit.core.errors import UserError, shown
from deit.core.scores.intervals import share_interval

PRECISION, RECALL = "precision", "recall"


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """From which score on a class is named, and what that gave on the held-out images.

    Attributes:
        label: Name of the class.
        aim: "precision" or "recall".
        asked: The share that was asked for, between 0 and 1.
        threshold: Scores of at least this name the class.
        positives: Held-out images of the class.
        named: Held-out images that the threshold names.
        right: Those of them that are of the class.
    """

    label: str
    aim: str
    asked: float
    threshold: float
    positives: int
    named: int
    right: int

    def describe(self) -> str:
        """Returns a sentence with the precision and the recall, each with its 95 % interval."""
        return (
            f"{self.label}: named from {100 * self.threshold:.1f} % on; "
            f"precision {_with_interval(self.right, self.named)}, recall {_with_interval(self.right, self.positives)}"
        )


def check_share(name: str, share: Any) -> float:
    """Returns a share between 0 and 1, both excluded.

    Raises:
        UserError: It is something else, such as a percentage.
    """
    is_number = isinstance(share, (int, float)) and not isinstance(share, bool) and is_finite(share)
    if not is_number or not 0 < share < 1:
        advice = f" Did you mean {share / 100:g}?" if is_number and 1 < share < 100 else ""
        raise UserError(f"{name} must be a share above 0 and below 1. Received: {shown(share)}.{advice}")
    return float(share)


def choose_point(
    label: str, scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_], aim: str, share: float
) -> OperatingPoint | None:
    """Chooses the threshold of one class from held-out images.

    For a recall r, the score of rank floor((m + 1) (1 - r)) of the m images of the class, from below: split conformal
    prediction, so that the next image of the class is named with a probability of at least r. For a precision, the
    lowest threshold at which, with one more wrong answer than were seen, the share of right ones is still large
    enough; that is an estimate, not a guarantee.

    Args:
        label: Name of the class.
        scores: (N,) scores between 0 and 1.
        positive: (N,), whether an image is of the class.
        aim: "precision" or "recall".
        share: The precision or recall, between 0 and 1.

    Returns:
        None where no threshold is good enough, or there are too few images of the class.
    """
    found = (
        _recall_threshold(scores[positive], share) if aim == RECALL else _precision_threshold(scores, positive, share)
    )
    if found is None:
        return None
    said = scores >= found
    return OperatingPoint(
        label=label,
        aim=aim,
        asked=share,
        threshold=found,
        positives=int(positive.sum()),
        named=int(said.sum()),
        right=int((said & positive).sum()),
    )


def _recall_threshold(scores: npt.NDArray[Any], share: float) -> float | None:
    rank = math.floor((len(scores) + 1) * (1 - Fraction(str(share))))
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank >= 1 else None


def _precision_threshold(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_], share: float) -> float | None:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    right = np.cumsum(positive[order])[ends]
    precise = np.flatnonzero(right >= float(share) * (ends + 2) - 1e-9)  # ends + 1 are named, and one more is wrong
    return float(scores[order[ends[precise[-1]]]]) if len(precise) else None


def _with_interval(part: int, whole: int) -> str:
    if not whole:
        return "unknown"
    low, high = share_interval(100 * part / whole, whole)
    return f"{100 * part / whole:.1f} % ({low:.1f} to {high:.1f}, {part} of {whole})"

"""Scores out-of-fold answers: all images together, each class, and which class is taken for which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.scores.intervals import describe_width, score_intervals, share_interval
from deit.core.scores.metrics import SINGLE_LABEL, AnyScores, evaluate, score_title

_ANSWER = "answer"


@dataclass(frozen=True, kw_only=True)
class OutOfFoldScores:
    """Scores of answers that were given by models that did not learn from the images.

    Attributes:
        scores: Of all images that could be read.
        unreadable: Images that could not.
        per_class: For single classes: "class", "images", "accuracy" (share of its images that are found), its 95 %
            "interval", and "precision" (share of the answers of this class that are right), in percent.
        confusion: (K, K) numbers of images, true classes down, answers across; None for other problem types.
    """

    scores: AnyScores
    unreadable: int
    per_class: list[dict[str, Any]] = field(default_factory=list)
    confusion: npt.NDArray[np.int64] | None = None

    def summary(self) -> dict[str, Any]:
        """Returns scores and intervals as plain values."""
        intervals = {name: list(ends) for name, ends in score_intervals(self.scores).items()}
        return {"images": self.scores.images, **self.scores.as_dict(), "intervals": intervals}

    def to_dict(self) -> dict[str, Any]:
        """Returns all as plain values; the confusion of more than 100 classes is left out."""
        small = self.confusion is not None and len(self.confusion) <= 100
        return {
            "scores": self.summary(),
            "unreadable": self.unreadable,
            "per_class": self.per_class,
            **({"confusion": self.confusion.tolist()} if small and self.confusion is not None else {}),
        }

    def notes(self, folds: int) -> list[str]:
        """Returns sentences that a reader of the scores should know.

        Args:
            folds: How many there were.
        """
        lines = [
            f"Out-of-fold: each of the {self.scores.images} images is answered by a model that learned from the other "
            f"{folds - 1} of {folds} folds. The last model learns from all images; its own score is not measured."
        ]
        for name, ends in list(score_intervals(self.scores).items())[:1]:
            lines += describe_width(score_title(name).removesuffix(" %"), ends, self.scores.images)
        if self.unreadable:
            lines.append(f"{self.unreadable} images could not be read and are not counted.")
        return lines


def score_answers(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[Any], classes: list[str], problem_type: str
) -> OutOfFoldScores:
    """Returns the scores of answers.

    Args:
        logits: (N, K); rows of NaN are images that could not be read.
        labels: (N,) or (N, K), see `Source.labels`.
        classes: Names of the K classes.
        problem_type: One of `PROBLEM_TYPES`.

    Raises:
        ValueError: There are none.
    """
    read = ~np.isnan(logits).all(axis=1)
    if not read.any():
        raise UserError("No held-out image could be read.")
    logits, labels = logits[read], labels[read]
    heads = evaluate(lambda pixels: {_ANSWER: pixels}, [(logits, labels)], problem_type=problem_type)
    scores: AnyScores = heads[_ANSWER]
    unreadable = int((~read).sum())
    if problem_type != SINGLE_LABEL:
        return OutOfFoldScores(scores=scores, unreadable=unreadable)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    rows = []
    for number, name in enumerate(classes):
        images, right, named = (
            int(n) for n in (confusion[number].sum(), confusion[number, number], confusion[:, number].sum())
        )
        accuracy = 100 * right / images if images else float("nan")
        rows.append(
            {
                "class": name,
                "images": images,
                "accuracy": accuracy if images else None,
                "interval": list(share_interval(accuracy, images)) if images else None,
                "precision": 100 * right / named if named else None,
            }
        )
    return OutOfFoldScores(scores=scores, unreadable=unreadable, per_class=rows, confusion=confusion)

"""Chooses the epoch after which a model learns no more, by the scores of all folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.scores.comparing import is_better

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class EpochChoice:
    """Which evaluation is the best.

    Attributes:
        score: Name of the score that was compared.
        evaluations: How many there were.
        epoch: Best epoch of all folds together, for the model that learns from all images.
        value: Mean score of the folds there, weighted by their images.
        of_fold: For each fold the number of the evaluation that is best for all others. The answers of that evaluation
            were not chosen by the images that they are about.
    """

    score: str
    evaluations: int
    epoch: int
    value: float
    of_fold: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        """Returns plain values for a file."""
        return {"score": self.score, "evaluations": self.evaluations, "epoch": self.epoch, "value": self.value}


def choose_epoch(histories: Sequence[Rows], images: Sequence[int], score: str, prefix: str) -> EpochChoice:
    """Returns the choice. Of equal scores the one of lower loss counts as better, then the earlier one.

    Args:
        histories: Rows of each fold's history, one for each evaluation.
        images: Number of held-out images of each fold.
        score: Name of the score.
        prefix: Of the scores in a row: "val" for the student's, "ema" for those of the average of its weights.

    Raises:
        ValueError: The folds have other evaluations, or no score is a number.
    """
    epochs = [[row["epoch"] for row in rows] for rows in histories]
    if any(each != epochs[0] for each in epochs):
        raise UserError("The folds were evaluated after other epochs. Begin anew in another folder.")
    scores, losses = (
        np.array([[float(row[f"{prefix}_{name}"]) for row in rows] for rows in histories]) for name in (score, "loss")
    )
    weights = np.array(images, np.float64)
    best = _best(score, scores, losses, weights)
    others = [np.where(np.arange(len(weights)) == fold, 0.0, weights) for fold in range(len(weights))]
    return EpochChoice(
        score=score,
        evaluations=len(epochs[0]),
        epoch=epochs[0][best],
        value=float(np.average(scores[:, best], weights=weights)),
        of_fold=tuple(_best(score, scores, losses, each) for each in others),
    )


def _best(
    score: str, scores: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> int:
    used = weights > 0
    means, of_loss = (np.average(each[used], axis=0, weights=weights[used]) for each in (scores, losses))
    best = -1
    for number, value in enumerate(means.tolist()):
        if np.isnan(value):
            continue
        is_equal = best >= 0 and value == means[best] and of_loss[number] < of_loss[best]
        if best < 0 or is_better(score, value, float(means[best])) or is_equal:
            best = number
    if best < 0:
        raise UserError(f"No evaluation of the folds has a {score} that is a number.")
    return best

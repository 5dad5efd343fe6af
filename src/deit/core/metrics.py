"""Scores of a classifier, counted in integers, from any function that gives logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Batches: TypeAlias = Iterable[tuple[Array, npt.NDArray[np.integer]]]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one set of logits over a data set.

    Attributes:
        top1: Top-1 accuracy in percent.
        top5: Top-5 accuracy in percent; 100 when there are at most five classes.
        loss: Mean cross-entropy against the true class, in nats.
        images: Number of images counted.
    """

    top1: float
    top5: float
    loss: float
    images: int


class ScoreCounter:
    """Adds up the scores of batches of logits.

    Example:
        >>> counter = ScoreCounter()
        >>> counter.add(np.array([[2.0, 1.0], [0.0, 3.0]], np.float32), np.array([0, 0]))
        >>> counter.scores().top1
        50.0
    """

    def __init__(self) -> None:
        self._images = self._top1 = self._top5 = 0
        self._loss = 0.0

    def add(self, logits: Array, labels: npt.NDArray[np.integer]) -> None:
        """Counts one batch.

        Args:
            logits: (B, K).
            labels: (B,), true classes in [0, K).

        Raises:
            ValueError: Shapes disagree, or a label is out of range.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(f"Logits (B, K) and labels (B,) are needed. Received: {logits.shape} and {labels.shape}.")
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            raise ValueError(
                f"Labels must lie in [0, {logits.shape[1]}). Received: {int(labels.min())} to {int(labels.max())}."
            )
        wide = logits.astype(np.float64)
        true = np.take_along_axis(wide, labels[:, None].astype(np.int64), axis=1)
        # A class ranks before the true one when its logit is larger, or equal with a smaller number:
        # constant logits then count as right only for class 0, never for every class.
        before = (wide > true) | ((wide == true) & (np.arange(wide.shape[1]) < labels[:, None]))
        rank = np.where(np.isnan(wide).any(axis=1), wide.shape[1], before.sum(axis=1))
        highest = wide.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(wide - highest).sum(axis=1)) + highest[:, 0]
        self._images += len(labels)
        self._top1 += int((rank < 1).sum())
        self._top5 += int((rank < 5).sum())
        self._loss += float((log_sum - true[:, 0]).sum())

    def scores(self) -> Scores:
        """Returns the scores of all batches so far.

        Raises:
            ValueError: No image was counted.
        """
        if not self._images:
            raise ValueError("No images were evaluated.")
        return Scores(
            top1=100.0 * self._top1 / self._images,
            top5=100.0 * self._top5 / self._images,
            loss=self._loss / self._images,
            images=self._images,
        )


def evaluate(
    predict: Callable[[Array], Mapping[str, Array]],
    batches: Batches,
) -> dict[str, Scores]:
    """Scores every output of a predictor over batches of images.

    Args:
        predict: pixels (B, C, H, W) -> named logits (B, K), such as `{"both": ..., "class": ...}`.
        batches: Pairs of pixels and true classes.

    Returns:
        Scores by the names that `predict` gives.

    Raises:
        ValueError: There are no images.
    """
    counters: dict[str, ScoreCounter] = {}
    for pixels, labels in batches:
        for name, logits in predict(pixels).items():
            counters.setdefault(name, ScoreCounter()).add(logits, labels)
    if not counters:
        raise ValueError("No images were evaluated.")
    return {name: counter.scores() for name, counter in counters.items()}


def softmax(logits: Array) -> Array:
    """Returns class probabilities (B, K) of logits (B, K), without overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result

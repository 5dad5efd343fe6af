"""Turns the measured speed of a training into seconds and epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deit.planning.facts import Speed

WRITING = 3.0  # seconds at the end of a run: model, card, curves
_EVALUATIONS = 12  # of a training, at most
_EVALUATION_SHARE = 0.08  # of the time


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the parts of one training.

    Attributes:
        speed: What was measured.
        images: Training images in an epoch.
        val_images: Validation images.
        batch_size: Images in a step.
        workers: Processes that prepare images beside the training.
        strong: Whether views are strong.
        averaged: Whether an average of the weights is evaluated as well.
        evaluated_each: Epochs from one evaluation to the next; 0 chooses.
    """

    speed: Speed
    images: int
    val_images: int
    batch_size: int
    workers: int = 0
    strong: bool = True
    averaged: bool = False
    evaluated_each: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(self.images // self.batch_size, 1)

    @property
    def epoch(self) -> float:
        """Seconds of an epoch, without evaluation."""
        view = self.speed.strong_view if self.strong else self.speed.light_view
        loading = view * self.batch_size
        if self.workers == 0:
            return self.steps_per_epoch * (loading + self.speed.step)
        return self.steps_per_epoch * max(loading / self.workers, self.speed.step)

    @property
    def evaluation(self) -> float:
        """Seconds of an evaluation and of the state that is saved before it."""
        return self.speed.evaluation * self.val_images * (2 if self.averaged else 1) + self.speed.saving

    def eval_epochs(self, epochs: int) -> int:
        """Returns the epochs from one evaluation to the next: few enough evaluations to cost little time."""
        if self.evaluated_each:
            return self.evaluated_each
        affordable = (
            math.floor(_EVALUATION_SHARE * epochs * self.epoch / self.evaluation) if self.evaluation else epochs
        )
        return math.ceil(epochs / min(max(affordable, 1), _EVALUATIONS, epochs))

    def seconds(self, epochs: int) -> float:
        """Returns the seconds of a training of so many epochs."""
        evaluations = math.ceil(epochs / self.eval_epochs(epochs))
        return epochs * self.epoch + evaluations * self.evaluation + WRITING

    def epochs_in(self, seconds: float) -> int:
        """Returns the largest number of epochs that a time allows; 0 if not one."""
        if self.seconds(1) > seconds:
            return 0
        low, high = 1, max(int(seconds / max(self.epoch, 1e-9)), 1) + 1  # low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.seconds(middle) <= seconds else (low, middle)
        return low

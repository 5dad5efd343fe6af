"""Defines what a run reports: the progress of a step, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """Progress of a run, after a step.

    Attributes:
        step: Steps done.
        total_steps: Steps in all.
        epoch: Epochs begun.
        loss: Loss of this step, over this process's share of the batch.
        lr: Learning rate of this step.
        images_per_second: Since the run was started or resumed, evaluation included, over all processes.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    lr: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Result of a run.

    Attributes:
        out: The model directory.
        scores: Scores of the saved weights on the validation images, by head.
        history: One row of metrics for each evaluated epoch.
        steps: Steps done in all.
        seconds: Duration of the training, with that of the calls that were resumed.
        notes: Sentences that a reader of the scores should know: how uncertain they are, which weights were kept.
        student: The module with the weights that were saved; None where somebody else made this result.
    """

    out: Path
    scores: dict[str, Any]
    history: list[dict[str, Any]]
    steps: int
    seconds: float
    notes: tuple[str, ...] = ()
    student: nn.Module | None = None

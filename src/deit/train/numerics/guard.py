"""Counts the steps that were skipped because a loss or gradient was not finite, and notes losses that stand out."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deit.core.config.file_fields import FileFields
from deit.core.printable import counted
from deit.runtime.processes import Processes

logger = logging.getLogger(__name__)

_WINDOW, _LEAST = 128, 32  # losses that a loss is compared with: at most, at least
_DEVIATIONS, _SPREAD = 8.0, 0.02  # see `_median_below_spike`
_MOST_TOLD = 10  # streaks of skipped steps, and spikes, that are told one by one; the others are only counted


class Guard:
    """What is known of the steps of a run: which were skipped, and whether the run has to go back to a state.

    Every process comes to the same counts: the flags of the steps follow from gradients that all have, and the losses
    are means over the processes.

    Args:
        limit: Skipped steps in a row after which the run goes back; 0 ends it at the first one.
        processes: Processes of the run.
        scales: True if the loss is scaled (fp16). A gradient that overflows then lowers the scale and is no fault.

    Attributes:
        skipped: Steps skipped in all.
        in_row: Steps skipped in a row until now.
        good: Step of the newest state that was saved at a planned place in calm; None before the first.
        returns: How often the run went back: the step after which, and the step of the state.
        spikes: Losses that stood out: step, loss, and median of the losses before it.
    """

    def __init__(self, limit: int, processes: Processes, *, scales: bool = False) -> None:
        self.limit, self._processes, self._scales = limit, processes, scales
        self.skipped = self.in_row = 0
        self.good: int | None = None
        self.returns: list[dict[str, int]] = []
        self.spikes: list[dict[str, float]] = []
        self.loss = math.nan  # of the last step that was looked at
        self._calm = limit  # steps taken since the last one that was skipped, or since the run went back
        self._spike_count = self._streaks = 0
        self._losses: list[float] = []
        self._pending: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, loss: Tensor, taken: Tensor) -> None:
        """Takes note of a step, without a look at its numbers: no GPU has to be waited for.

        Args:
            step: Steps done, with this one.
            loss: (), over this process's share.
            taken: (), False if the step was skipped.
        """
        self._pending.append((step, loss.detach().float(), taken))

    def look(self) -> None:
        """Looks at the numbers of the steps since the last look. Every process must call it after the same step."""
        if not self._pending:
            return
        steps, losses, taken = zip(*self._pending, strict=True)
        self._pending = []
        means = self._processes.sum_tensor(torch.stack(losses)) / self._processes.world_size
        for step, loss, was_taken in zip(steps, means.tolist(), torch.stack(taken).tolist(), strict=True):
            self.loss = loss
            if was_taken:
                self.in_row, self._calm = 0, self._calm + 1
                self._compare(step, loss)
            else:
                self._note_skipped(step, loss)

    def _note_skipped(self, step: int, loss: float) -> None:
        self.skipped, self.in_row, self._calm = self.skipped + 1, self.in_row + 1, 0
        if self.in_row > 1:
            return
        self._streaks += 1
        if not self._processes.is_first or (self.is_fault and self._streaks > _MOST_TOLD):
            return
        what = f"its loss is {loss}" if not math.isfinite(loss) else f"a gradient is infinite or NaN (loss {loss:.4g})"
        last = " Others that follow are counted and not told." if self._streaks == _MOST_TOLD else ""
        logger.log(logging.WARNING if self.is_fault else logging.INFO, "Step %d is skipped: %s.%s", step, what, last)

    def _compare(self, step: int, loss: float) -> None:
        median = _median_below_spike(self._losses, loss)
        if median is not None:
            self._spike_count += 1
            if self._spike_count <= _MOST_TOLD:
                self.spikes.append({"step": step, "loss": loss, "median": median})
                if self._processes.is_first:
                    last = " Others that follow are counted and not told." if self._spike_count == _MOST_TOLD else ""
                    logger.warning("The loss of step %d, %.4g, stands out: %.4g is usual.%s", step, loss, median, last)
        self._losses = [*self._losses[1 - _WINDOW :], loss]

    def gives_up(self, span: int) -> bool:
        """Returns True if so many steps were skipped in a row that skipping does not help.

        Args:
            span: Steps between two evaluations, if one comes now, else 0. More than half of it is too many then: short
                runs must not end with a model that has hardly been trained.
        """
        if self.in_row >= max(self.limit, 1):
            return True
        return 0 < span < 2 * self.in_row and self.is_fault

    @property
    def is_fault(self) -> bool:
        """Whether the last step was skipped for another reason than a scale that has to become smaller."""
        return self.in_row > 0 and not (self._scales and math.isfinite(self.loss))

    def saves(self, step: int) -> None:
        """Takes note of a state that is saved where the recipe plans one, before it is written.

        It is good, to go back to, if as many steps as the limit were taken since the last one that was skipped: the
        weights of a run that is about to diverge are finite too.
        """
        if self._calm >= self.limit:
            self.good = step

    @property
    def way_back(self) -> int | None:
        """Step of the good state; None if there is none, or the run went back to it before, which did not help."""
        gone = self.returns[-1]["to_state"] if self.returns else None
        return self.good if self.limit and self.good != gone else None

    def go_back(self, step: int, state: int) -> None:
        """Takes note that the run has gone back to the state of a step, after another one."""
        self.returns.append({"after_step": step, "to_state": state})
        self.in_row = self._calm = 0

    # --- going on and records --------------------------------------------------------------------------

    def values(self) -> dict[str, Any]:
        """Returns plain values for a training state."""
        self.look()
        return {
            **self.record(),
            "in_row": self.in_row,
            "calm": self._calm,
            "streaks": self._streaks,
            "good": self.good,
            "losses": self._losses,
        }

    def restore(self, values: Mapping[str, Any], step: int, fields: FileFields) -> None:
        """Takes over what a training state holds; one of an older version holds nothing and is good.

        Raises:
            DamagedFileError: It holds something else.
        """

        def count(name: str, default: int = 0) -> int:
            return fields.whole({name: default, **values}, name, 0, sys.maxsize)

        def rows(name: str) -> list[dict[str, Any]]:
            return fields.listed({name: [], **values}, name, dict, sys.maxsize)

        self.skipped, self.in_row = count("skipped_steps"), count("in_row")
        self._calm, self._streaks = count("calm", self.limit), count("streaks")
        self.good = None if values.get("good", step) is None else count("good", step)
        returns, spikes = ("after_step", "to_state"), ("step", "loss", "median")
        self.returns = [{key: fields.whole(row, key, 0, sys.maxsize) for key in returns} for row in rows("returns")]
        self.spikes = [{key: fields.any_number(row, key) for key in spikes} for row in rows("loss_spikes")]
        self._spike_count = count("loss_spikes_in_all")
        self._losses = fields.any_numbers({"losses": [], **values}, "losses", _WINDOW)

    def record(self) -> dict[str, Any]:
        """Returns what `training.json` says; nothing where nothing happened."""
        record = {
            "skipped_steps": self.skipped,
            "returns": self.returns,
            "loss_spikes": self.spikes,
            "loss_spikes_in_all": self._spike_count,
        }
        return {name: value for name, value in record.items() if value}


def describe_guard(record: Mapping[str, Any]) -> list[str]:
    """Returns a sentence on skipped steps for who reads the scores of a run; none where there were none.

    Args:
        record: From `Guard.record`.
    """
    skipped, returns = record.get("skipped_steps", 0), record.get("returns", ())
    if not skipped and not returns:
        return []
    back = f"; the run went back to an earlier state {counted(len(returns), 'time')}" if returns else ""
    were = "was" if skipped == 1 else "were"
    return [f"{counted(skipped, 'step')} {were} skipped, as a loss or gradient was infinite or NaN{back}."]


def _median_below_spike(losses: list[float], loss: float) -> float | None:
    """Returns the median of the losses before, if a loss stands out from them, else None.

    It stands out if it is more than 8 standard deviations above the median. The deviation is estimated from the median
    absolute deviation, so earlier spikes do not hide the next, and is at least 2 % of the median: a curve that is
    nearly flat has no spikes.
    """
    if len(losses) < _LEAST or not math.isfinite(loss):
        return None
    values = np.asarray(losses)
    median = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - median)))
    return median if loss > median + _DEVIATIONS * max(deviation, _SPREAD * abs(median)) else None

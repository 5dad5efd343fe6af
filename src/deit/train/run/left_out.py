"""Tracks training images that become unreadable during a run. Reports each once, and detects too many."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from deit.core.config.file_fields import FileFields
from deit.data.loader import Batch
from deit.runtime.processes import Processes

logger = logging.getLogger(__name__)


class LeftOut:
    """The unreadable images of this process and, after `share`, of all processes.

    Args:
        most: Maximum number of images that may be left out.
        images: Number of training images.
        tells: True if this process logs: its own images at once, those of other processes in `share`. Only one process
            may log, because its progress bar would overwrite messages of the others.

    Attributes:
        reasons: Number of the image -> reason, over the whole run.
        unreadable: Numbers of the images that were unreadable since the run was started or resumed.
    """

    def __init__(self, most: int, images: int, *, tells: bool = True) -> None:
        self._most, self._images, self._tells = most, images, tells
        self.reasons: dict[int, str] = {}
        self.unreadable: set[int] = set()
        self._own: list[tuple[int, int, str]] = []  # number, step and reason of images that are not shared yet
        self._new: dict[int, str] = {}  # of the current step, which may still be abandoned

    def note(self, batch: Batch) -> None:
        """Counts the unreadable images of a batch. `accept` reports them after the step."""
        for number, reason in batch.left_out:
            self.unreadable.add(number)
            if number not in self.reasons:
                self._new[number] = reason

    def accept(self, step: int) -> None:
        """Reports the images that a step left out, each once."""
        for number, reason in self._new.items():
            self._own.append((number, step, reason))
            if self._tells:
                _tell(step, reason)
        self.reasons.update(self._new)
        self._new = {}

    def restore(self, values: Any, fields: FileFields) -> None:
        """Takes the reasons of a training state, which may be damaged: pairs of a number and a text."""
        pairs = fields.listed({"images left out": values}, "images left out", list, self._images)
        ok = all(len(pair) == 2 and type(pair[0]) is int and isinstance(pair[1], str) for pair in pairs)
        fields.require(ok, "images left out", "pairs of a number and a text")
        self.reasons = dict(pairs)

    def share(self, processes: Processes) -> None:
        """Exchanges the unreadable images among all processes."""
        if processes.world_size == 1:
            return
        marks = np.zeros(self._images)
        marks[list(self.unreadable)] = 1
        self.unreadable.update(np.flatnonzero(processes.sum(marks)).tolist())
        for number, step, reason in [each for part in processes.gather(self._own) for each in part]:
            if number not in self.reasons:
                self.reasons[number] = reason
                if self._tells:
                    _tell(step, reason)
        self._own = []

    def too_many(self) -> bool:
        """Returns True if more images are unreadable than allowed."""
        return len(self.unreadable) > self._most

    def explain(self) -> str:
        """Returns the last reason and the number of unreadable images."""
        reason = next(reversed((self.reasons | self._new).values()), "").rstrip(".")
        count = len(self.unreadable)
        return (
            f"{reason}. {count} images cannot be read any more, data.max_bad_images={self._most}" * (count > 1)
            or reason
        )


def _tell(step: int, reason: str) -> None:
    logger.warning("Left out of training from step %d on: %s", step, reason)

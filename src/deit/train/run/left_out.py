"""Training images that turn out to be unreadable during a run: each is told of once, and too many of them stop it."""

from __future__ import annotations

import logging

import numpy as np

from deit.data.loader import Batch
from deit.runtime.processes import Processes

logger = logging.getLogger(__name__)


class LeftOut:
    """What could not be read, on this process until `share`.

    Args:
        most: How many may be left out.
        images: Training images in all.
        tells: Whether this process tells of its own at once; those of others are told by one that does, at `share`: a
            terminal is of one process, whose progress bar would wipe out what others say.

    Attributes:
        reasons: Number of the image -> why, at some time of the whole run.
        unreadable: Numbers since it was started or resumed: others may have been mended.
    """

    def __init__(self, most: int, images: int, *, tells: bool = True) -> None:
        self._most, self._images, self._tells = most, images, tells
        self.reasons: dict[int, str] = {}
        self.unreadable: set[int] = set()
        self._own: list[tuple[int, int, str]] = []  # number, step and reason of those that others do not know yet
        self._new: dict[int, str] = {}  # of the step at hand, which may not be taken for their sake

    def note(self, batch: Batch) -> None:
        """Counts the images that a batch lacks; they are left out once the step is taken, see `accept`."""
        for number, reason in batch.left_out:
            self.unreadable.add(number)
            if number not in self.reasons:
                self._new[number] = reason

    def accept(self, step: int) -> None:
        """Tells of the images that a step does without, each once."""
        for number, reason in self._new.items():
            self._own.append((number, step, reason))
            if self._tells:
                _tell(step, reason)
        self.reasons.update(self._new)
        self._new = {}

    def share(self, processes: Processes) -> None:
        """Lets every process know of the images that another one could not read."""
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
        """Whether there are more than may be."""
        return len(self.unreadable) > self._most

    def explain(self) -> str:
        """Returns the last reason, and how many there are."""
        reason = next(reversed((self.reasons | self._new).values()), "").rstrip(".")
        count = len(self.unreadable)
        return (
            f"{reason}. {count} images cannot be read any more, data.max_bad_images={self._most}" * (count > 1)
            or reason
        )


def _tell(step: int, reason: str) -> None:
    logger.warning("Left out of training from step %d on: %s", step, reason)

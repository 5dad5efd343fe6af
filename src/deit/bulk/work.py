"""Works through the units of a job, together with any other processes that do so in the same folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deit.bulk.claims import CLAIMS_NAME, Claims
from deit.bulk.job import Job

logger = logging.getLogger(__name__)

_WAIT = 0.5  # seconds between two looks at units that other processes have
_TELL_AFTER = 30.0  # seconds of waiting

Progress = Callable[[int, int], None]


class Writes(Protocol):
    """Predicts a unit and writes its part, or the report that it cannot be read.

    It may ask for the unit that it gets next, to begin with reading it. That unit is claimed then, so this should be
    as late as is useful.
    """

    def __call__(self, number: int, following: Callable[[], int | None], /) -> None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Share:
    """The place of a process among those that started together, which says where it begins.

    Attributes:
        number: From 0.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    def order(self, units: int) -> Iterator[int]:
        """Yields all units: first this process's own, then those of the others."""
        for first in range(self.count):
            yield from range((self.number + first) % self.count, units, self.count)


class Unfinished:
    """The units that have neither predictions nor, since this run began, a report that they cannot be read.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open = np.ones(len(job.units), bool)
        self._tried = time.time()
        done = job.done()
        self._open[list(done)] = False
        self.images = int(job.units.counts[~self._open].sum())

    def __bool__(self) -> bool:
        return bool(self._open.any())

    def __contains__(self, number: int) -> bool:
        """Looks at the disk, so that what another process did is known."""
        if self._open[number] and self._is_settled(number):
            self.settle(number)
        return bool(self._open[number])

    def settle(self, number: int) -> None:
        """Notes that a unit needs no more work."""
        if self._open[number]:
            self._open[number] = False
            self.images += int(self._job.units.counts[number])

    def _is_settled(self, number: int) -> bool:
        if self._job.part(number).exists():
            return True
        try:
            return os.stat(self._job.failure(number)).st_mtime >= self._tried  # an older report is tried again
        except FileNotFoundError:
            return False


class _Claimed:
    """Units that are claimed as they are asked for, at most one ahead of the one that is taken.

    Args:
        order: The units to ask for.
        unfinished: What is left to do.
        claims: Of this process.
    """

    def __init__(self, order: Iterator[int], unfinished: Unfinished, claims: Claims) -> None:
        self._order, self._unfinished, self._claims = order, unfinished, claims
        self._next: int | None = None

    def following(self) -> int | None:
        """Returns the unit that is taken next, which is claimed now; None if there is none."""
        while self._next is None and (number := next(self._order, None)) is not None:
            if number in self._unfinished and self._claims.take(claim_of(number)):
                if number in self._unfinished:
                    self._next = number
                else:  # somebody finished it between the look and the claim
                    self._claims.release(claim_of(number))
        return self._next

    def take(self) -> int | None:
        """Returns a unit to work on; None if there is none."""
        number, self._next = self.following(), None
        return number


def claim_of(number: int) -> str:
    """Returns the name under which a unit is claimed."""
    return f"{number:08d}"


def work_through(job: Job, write: Writes, share: Share = Share(), progress: Progress | None = None) -> None:
    """Predicts every unit that nobody else predicts, and waits for those of the others.

    The claim of a process that has ended is taken over, so that when this returns, every unit has its part or a report.

    Args:
        job: The job.
        write: Predicts a unit.
        share: Where to begin.
        progress: Called with (images done, images in all).
    """
    unfinished, claims = Unfinished(job), Claims(job.folder / CLAIMS_NAME)
    waited, told = 0.0, False
    try:
        while unfinished:
            worked = False
            units = _Claimed(share.order(len(job.units)), unfinished, claims)
            while (number := units.take()) is not None:
                try:
                    write(number, units.following)
                    unfinished.settle(number)
                finally:
                    claims.release(claim_of(number))
                worked = True
                if progress is not None:
                    progress(unfinished.images, job.manifest.images)
            if worked or not unfinished:
                waited = 0.0
                continue
            if waited > _TELL_AFTER and not told:
                told = True
                logger.warning("Waiting for units of others: %s.", _owners(claims))
            time.sleep(_WAIT)
            waited += _WAIT
        if progress is not None:
            progress(unfinished.images, job.manifest.images)
    finally:
        claims.close()


def clean_claims(job: Job) -> None:
    """Removes the claims on units that are done, which processes leave that are killed just after their last step."""
    claims = Claims(job.folder / CLAIMS_NAME)
    done = job.done()
    for name in claims.names():
        if name.isdigit() and int(name) in done:
            claims.forget(name)


def _owners(claims: Claims) -> str:
    owners = {owner for name in claims.names() if (owner := claims.owner(name))}
    return ", ".join(sorted(owners)) or "their claims have no owner that can be read"

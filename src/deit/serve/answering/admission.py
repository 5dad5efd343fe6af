"""Bounds how many images wait, and says when it is worth to come again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deit.serve.refusals import Refusal

_REMEMBERED = 64  # images whose times give the speed
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds to come again after


class Room:
    """Room for a number of images.

    Args:
        limit: Images that may wait.
        status: Of the refusal when it is full.
        reason: Likewise.
        on_change: Called with the number of images that wait.

    Attributes:
        used: Images that wait.
    """

    def __init__(
        self, limit: int, status: int, reason: str, *, on_change: Callable[[int], None] = lambda images: None
    ) -> None:
        self._limit, self._status, self._reason, self._on_change = limit, status, reason, on_change
        self._left: deque[float] = deque(maxlen=_REMEMBERED)
        self.used = 0

    @property
    def share(self) -> float:
        """The share that is used, in 0..1."""
        return self.used / self._limit

    @contextmanager
    def admit(self, count: int) -> Iterator[Callable[[], None]]:
        """Takes room for a block; yields what gives back the room of one image, as soon as it waits no longer.

        Raises:
            Refusal: There is too little room.
        """
        if self.used + count > self._limit:
            raise Refusal(
                self._status,
                self._reason,
                f"{self.used} images wait, and {self._limit} may. Try again later.",
                self.seconds(),
            )
        held = count
        self._add(count)

        def leave() -> None:
            nonlocal held
            held -= 1
            self._add(-1)
            self._left.append(time.monotonic())

        try:
            yield leave
        finally:
            self._add(-held)

    def _add(self, count: int) -> None:
        self.used += count
        self._on_change(self.used)

    def seconds(self) -> float:
        """Returns the seconds after which those that wait now will be gone, at the speed of late."""
        if len(self._left) < 2:
            return _SHORTEST
        passed = self._left[-1] - self._left[0]
        return min(max(self.used * passed / (len(self._left) - 1), _SHORTEST), _LONGEST)

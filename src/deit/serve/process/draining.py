"""Ends the server after SIGTERM or Ctrl-C: takes nothing new, finishes what was accepted, and leaves."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from deit.serve.process.workers import Worker
from deit.serve.state import DRAINING, State

logger = logging.getLogger(__name__)

_LEAST_SECONDS = 0.3  # for open connections to be told, rather than closed while their next request is on its way


class DrainingServer(uvicorn.Server):
    """uvicorn's server with another end.

    After the first signal, new requests get 503 and "Connection: close"; those that were accepted are answered, within
    `drain_seconds`. A second signal ends the server at once.

    Args:
        config: Of uvicorn.
        state: Of the server.
        worker: What this process was given as a worker; None for the only process.
        problem: Returns why a model does not answer any more; empty if all do.
        on_start: Called with the server when it listens.

    Attributes:
        lost: Requests that were accepted and not answered.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: State,
        *,
        worker: Worker | None = None,
        problem: Callable[[], str] = lambda: "",
        on_start: Callable[[DrainingServer], None] = lambda server: None,
    ) -> None:
        super().__init__(config)
        self._state, self._worker, self._problem, self._on_start = state, worker, problem, on_start
        self._asked_at = 0.0
        self.lost = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets=sockets)
        self._on_start(self)

    def drain(self) -> None:
        """Begins to end; the second time, ends at once."""
        if self._asked_at:
            self.should_exit = self.force_exit = True
        else:
            self._asked_at = time.monotonic()
            self._state.phase = DRAINING

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal. Ctrl-C reaches all processes of a terminal: a worker is told by the one that started it."""
        if self._worker is None or sig != signal.SIGINT:
            self.drain()

    async def on_tick(self, counter: int) -> bool:
        """Returns whether the server leaves its loop, ten times a second."""
        if self._worker is not None:
            if not self._problem():
                self._worker.sign()
            if self._worker.is_orphan and not self._asked_at:
                self.drain()
        if await super().on_tick(counter):
            return True
        if not self._asked_at:
            return False
        passed = time.monotonic() - self._asked_at
        if passed > self._state.settings.drain_seconds:
            self.lost = self._state.in_flight
            logger.error("%d requests were not answered within %.0f s, and are dropped.", self.lost, passed)
            return True
        return passed >= _LEAST_SECONDS and not self._state.in_flight

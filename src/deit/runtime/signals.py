"""Catches what asks a training to stop: signals, and a file that a scheduler makes before it takes the machine away."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from deit.runtime.together.watch import STARTERS

# Ctrl-C, the end of a job, the end of a terminal, and what Slurm is told to send ahead of the end. Windows lacks some.
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
_NOTICE = int(getattr(signal, "SIGUSR1", 10))  # a notice file counts as this signal

logger = logging.getLogger(__name__)

_ECHO_SECONDS = 2.0  # who starts processes hands on a signal that the terminal has sent to them already
_LOOK_SECONDS = 1.0  # between two looks for the notice file, which may lie on another machine


class TrainingInterrupted(Exception):  # noqa: N818  # not an error: the user asked for it
    """The run was asked to stop, saved its state and can go on.

    Args:
        message: What happened, in a sentence.
        number: Of the signal.

    Attributes:
        exit_code: 128 and the number of the signal, as shells count: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP,
            138 for SIGUSR1 and for a notice file.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interrupt:
    """Whether a signal has come, or the notice.

    Args:
        notice: File whose appearance, or change, asks to stop as SIGUSR1 does; None for none.
    """

    def __init__(self, notice: Path | None = None) -> None:
        self._notice, self._before, self._looked = notice, _look(notice), time.monotonic()
        self._number = 0

    @property
    def number(self) -> int:
        """Number of the first signal; 0 while there was none. Looks for the notice once a second."""
        if not self._number and self._notice is not None and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            now = _look(self._notice)
            if now is not None and now != self._before:
                self._number = _NOTICE
        return self._number

    def ask(self, number: int) -> None:
        """Asks to stop, unless something has already."""
        self._number = self._number or number

    def __bool__(self) -> bool:
        return self.number != 0


def _look(notice: Path | None) -> tuple[int, int] | None:
    """Returns what changes when a file is made anew or written to; None if there is no such file."""
    try:
        found = None if notice is None else notice.stat()
    except OSError:
        return None
    return found and (found.st_ino, found.st_mtime_ns)


@contextmanager
def interrupts(notice: str | Path | None = None) -> Iterator[Interrupt]:
    """Notes the first signal for a block; a second one does what it does elsewhere, which is to end the process.

    Signals that are ignored, as SIGHUP is under `nohup`, stay ignored, and handlers that are not Python's, as those of
    `faulthandler`, stay. In another thread than the main one no signal arrives, and nothing is changed.

    Args:
        notice: See `Interrupt`. One that is there already counts once it is changed. A folder that is missing is
            logged: the scheduler may make it later.

    Yields:
        What tells whether one came.
    """
    if notice is not None and not Path(notice).parent.is_dir():
        logger.warning("The folder of the notice file %s does not exist. Looks for the file all the same.", notice)
    interrupt = Interrupt(None if notice is None else Path(notice))
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    previous = {number: handler for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
    echo = _ECHO_SECONDS if STARTERS & os.environ.keys() else 0.0
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            interrupt.ask(number)
        elif time.monotonic() - first >= echo:
            put_back()
            os.kill(os.getpid(), number)

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        for number in previous:
            signal.signal(number, ask)
        yield interrupt
    finally:
        put_back()


@contextmanager
def deadly_signals() -> Iterator[None]:
    """Lets signals end the process at once for a block in which Python could not act on them; Ctrl-C excepted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS if number != signal.SIGINT}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

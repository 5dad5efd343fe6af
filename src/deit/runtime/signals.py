"""Catches signals that ask a training to stop: Ctrl-C, the end of a job (SIGTERM), the end of a terminal (SIGHUP)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_ECHO_SECONDS = 2.0  # torchrun hands on a signal that the terminal has sent to its processes already


class TrainingInterrupted(Exception):  # noqa: N818  # not an error: the user asked for it
    """The run was asked to stop, saved its state and can go on.

    Args:
        message: What happened, in a sentence.
        number: Of the signal.

    Attributes:
        exit_code: 128 and the number of the signal, as shells count: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interrupt:
    """Whether a signal has come.

    Attributes:
        number: Of the first signal; 0 while there was none.
    """

    number = 0

    def __bool__(self) -> bool:
        return self.number != 0


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Notes the first signal for a block; a second one does what it does elsewhere, which is to end the process.

    Signals that are ignored, as SIGHUP is under `nohup`, stay ignored. In another thread than the main one no signal
    arrives, and nothing is changed.

    Yields:
        What tells whether one came.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    previous = {number: handler for number, handler in previous.items() if handler != signal.SIG_IGN}
    echo = _ECHO_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not interrupt:
            interrupt.number, first = number, time.monotonic()
        elif time.monotonic() - first >= echo:
            put_back()
            os.kill(os.getpid(), number)

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    try:
        for number in previous:
            signal.signal(number, ask)
        yield interrupt
    finally:
        put_back()

"""Ends a command after a signal, an error, or the loss of another process; decides which process reports it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deit.runtime.signals import STOP_SIGNALS

_RANK = "LOCAL_RANK"  # set by torchrun
_FIRST_SECONDS = 8.0  # for the process that reports the error to do so; torchrun then ends this one


class SignalError(BaseException):
    """A signal ends the command. It is raised as an exception, so that files are closed and temporary ones removed.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raises `SignalError` for the other signals in a block, as Python for SIGINT. Ignored signals stay ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # the next one ends the process at once
        raise SignalError(number)

    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def leave_time_to_speak() -> None:
    """Waits for another process to report the error: once that has ended, torchrun ends this one."""
    if _RANK in os.environ:
        time.sleep(_FIRST_SECONDS)


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process reports an error.

    All processes that torchrun starts on a machine meet the errors of their common command line: the first one reports
    them. Once they work together, each reports its own errors.
    """
    if is_told(error):
        return False
    return os.environ.get(_RANK, "0") == "0" or getattr(error, "within_group", False)


def is_told(error: BaseException | None) -> bool:
    """Whether another process reports the error."""
    return type(error).__name__ == "FirstProcessError"


def speaks_of_signal(error: SignalError) -> bool:
    """Whether this process reports a signal. Under torchrun not SIGTERM, by which it ends the other processes."""
    return speaks() and (error.number == signal.SIGINT or _RANK not in os.environ)


def is_lost_process(error: Exception) -> bool:
    """Whether the command ends because another process has ended, which has been told."""
    return type(error).__name__ == "LostProcessError"

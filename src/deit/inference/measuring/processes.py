"""Starts the processes that measure, asks them, and ends them; and a neighbor that takes a core away."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from deit.core.errors import UserError
from deit.runtime.threads import prepare_threads

_WORKER = "deit.inference.measuring.worker"
_MOST_QUOTED = 400

# A process that computes for ever, in memory that fits any cache. It ends when the one that started it has ended.
_SPIN = """
import os
parent = os.getppid()
print("spinning", flush=True)
while os.getppid() == parent:
    for i in range(10**6):
        pass
"""


class CellError(UserError):
    """A process could not measure its cell."""


class WorkerBugError(Exception):
    """A bug that a process met; nothing that its user did wrong."""


class MeasuringProcess:
    """A process that measures one cell.

    It gets a process group of its own: Ctrl-C in a terminal reaches the process that started it alone, which then ends
    this one and all that it started.

    Args:
        order: What to prepare.
        threads: Threads of everything in it.
        most_seconds: Time to prepare in.

    Attributes:
        told: Its answer to the order.
        seconds: From its start to that answer.

    Raises:
        CellError: It cannot.
    """

    def __init__(self, order: Mapping[str, Any], *, threads: int, most_seconds: float) -> None:
        began = time.monotonic()
        environment = dict(os.environ)
        prepare_threads(environment)  # as the command does: threads that wait do not spin
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # until `close`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.told = self.ask(order, most_seconds)
        except BaseException:
            self.close()
            raise
        self.seconds = time.monotonic() - began

    def ask(self, order: Mapping[str, Any], most_seconds: float) -> dict[str, Any]:
        """Gives an order and returns the answer.

        Args:
            order: The order.
            most_seconds: Time to wait.

        Raises:
            CellError: There is no answer in that time, the process has ended, or it says what is wrong.
            WorkerBugError: It met a bug.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(dict(order)) + "\n")
            self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=most_seconds)
        except queue.Empty:
            raise CellError(f"no answer within {most_seconds:.0f} s") from None
        if not line:
            raise CellError(self._ended())
        told: dict[str, Any] = json.loads(line)
        if "traceback" in told:
            raise WorkerBugError(f"A measuring process failed:\n{told['traceback']}")
        if "error" in told:
            raise CellError(str(told["error"]))
        return told

    def close(self) -> None:
        """Ends the process, and whatever it has started. It holds nothing that must be saved."""
        _kill(self._process)
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _ended(self) -> str:
        if hasattr(os, "waitid"):  # on Windows the code of a killed process is as good
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        code = _kill(self._process)
        why = f"with exit code {code}"
        if code < 0:
            with suppress(ValueError):
                why = f"by {signal.Signals(-code).name}"
        if -code == getattr(signal, "SIGKILL", None):
            why += ", as the system does when memory runs out"
        self._errors.seek(0)
        last = self._errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2][-_MOST_QUOTED:]
        return f"its process was ended {why}{last and f' ({last})'}"


def _kill(process: subprocess.Popen[Any]) -> int:
    """Ends a process and its group; returns its exit code, which is that of its own end if it has ended before."""
    if process.returncode is not None:  # its number may be another process's by now
        return process.returncode
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    code = process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    return code


@contextmanager
def spinning_neighbor() -> Iterator[None]:
    """Runs a process that computes all the time beside a block."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _SPIN], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        _kill(process)


def fair_share(threads: int, cores: int, neighbors: int = 1) -> float:
    """Returns what is left of a speed beside busy neighbors, if the system gives each thread as much time.

    Args:
        threads: Threads that compute.
        cores: Cores of the machine.
        neighbors: Other processes that compute all the time, with one thread each.

    Examples:
        >>> fair_share(2, 2)
        0.6666666666666666
        >>> fair_share(1, 2)
        1.0
    """
    alone = min(threads, cores)
    return min(alone, cores * threads / (threads + neighbors)) / alone

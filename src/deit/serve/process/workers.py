"""Runs several worker processes on one port, notices within two seconds when one is gone, and replaces it."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType

from deit.core.errors import UserError

_VARIABLE = "DEIT_SERVE_WORKER"  # of a worker's environment: number, workers, port's and board's file descriptors
_FRESH_SECONDS = 1.5  # after its last sign, a worker counts as gone
_TICK = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # before a worker that ended at once is started again
_PATIENCE = 5.0  # beyond the time that workers have to finish

_SIGN = struct.Struct("d")


class Board:
    """Memory that all workers share: the time of each one's last sign of life, by the clock of the machine.

    Args:
        descriptor: Of a file of `workers` numbers.
        workers: How many.
    """

    def __init__(self, descriptor: int, workers: int) -> None:
        self.descriptor, self.workers = descriptor, workers
        self._memory = mmap.mmap(descriptor, workers * _SIGN.size)

    @classmethod
    def new(cls, workers: int) -> Board:
        """Makes an empty one."""
        with tempfile.TemporaryFile() as file:
            file.write(bytes(workers * _SIGN.size))
            file.flush()
            return cls(os.dup(file.fileno()), workers)

    def sign(self, number: int) -> None:
        """Notes that a worker lives and its models answer."""
        _SIGN.pack_into(self._memory, number * _SIGN.size, time.monotonic())

    def forget(self, number: int) -> None:
        """Takes back the last sign of a worker that has ended."""
        _SIGN.pack_into(self._memory, number * _SIGN.size, 0.0)

    def age(self, number: int) -> float:
        """Returns the seconds since the last sign of a worker; infinity if there is none."""
        (last,) = _SIGN.unpack_from(self._memory, number * _SIGN.size)
        return time.monotonic() - last if last else float("inf")

    def problem(self) -> str:
        """Returns which workers give no sign; empty if all do."""
        well = sum(self.age(number) < _FRESH_SECONDS for number in range(self.workers))
        return "" if well == self.workers else f"{well} of {self.workers} workers answer"


class Worker:
    """What a worker process was given by the process that started it.

    Attributes:
        number: Of the worker, from 0.
        board: Shared by all.
        bound: The port.
    """

    def __init__(self, number: int, board: Board, bound: socket.socket) -> None:
        self.number, self.board, self.bound = number, board, bound
        self._parent = os.getppid()

    def sign(self) -> None:
        """Notes that this process lives and its models answer."""
        self.board.sign(self.number)

    @property
    def is_orphan(self) -> bool:
        """Whether the process that started it is gone."""
        return os.getppid() != self._parent


def this_worker(environment: Mapping[str, str] = os.environ) -> Worker | None:
    """Returns what this process was given, if it is a worker."""
    given = environment.get(_VARIABLE)
    if given is None:
        return None
    number, workers, port, board = map(int, given.split(","))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, the process that started it tells it
    return Worker(number, Board(board, workers), socket.socket(fileno=port))


def run_workers(
    command: Sequence[str],
    workers: int,
    bound: socket.socket,
    *,
    drain_seconds: float,
    stuck_seconds: float,
    on_end: Callable[[int], None] = lambda process: None,
) -> int:
    """Runs workers until a signal ends them.

    The first one is started alone: if it cannot open its models, it has said why, and no other is started.

    Args:
        command: Starts a worker.
        workers: How many.
        bound: The port, which they inherit.
        drain_seconds: Time for them to finish after a signal.
        stuck_seconds: Time without a sign after which a worker is replaced although its process lives: the process
            hangs, or a model does not answer any more.
        on_end: Called with the number of a process that ended by itself.

    Returns:
        The exit code: 0 after a signal.

    Raises:
        UserError: The system cannot hand a port on to other processes.
    """
    if sys.platform == "win32":
        raise UserError(
            "Several workers need a system that hands a port on to processes, which Windows does not. Pass --workers 1."
        )
    pool = _Workers(command, Board.new(workers), bound, on_end)
    with pool.signals():
        try:
            if not pool.begin():
                return pool.code
            pool.watch(stuck_seconds)
        finally:
            pool.end(drain_seconds + _PATIENCE)
    return 0


class _Workers:
    def __init__(
        self, command: Sequence[str], board: Board, bound: socket.socket, on_end: Callable[[int], None]
    ) -> None:
        self._command, self._board, self._bound, self._on_end = list(command), board, bound, on_end
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[int, float] = {}
        self._pause: dict[int, float] = {}
        self._asked = False
        self.code = 0

    def signals(self) -> _Signals:
        return _Signals(self)

    def ask(self) -> None:
        self._asked = True

    def reload(self) -> None:
        """Tells the workers that answer to reload; one that is opening its models gets the new ones anyway."""
        for number, process in self._processes.items():
            if process.poll() is None and self._board.age(number) < _FRESH_SECONDS:
                process.send_signal(signal.SIGHUP)

    def begin(self) -> bool:
        """Starts the first worker and, once it answers, the others; returns whether it does."""
        self._start(0)
        while not self._asked and self._board.age(0) == float("inf"):
            code = self._processes[0].poll()
            if code is not None:
                self.code = code if code > 0 else 1
                return False
            time.sleep(_TICK)
        for number in range(1, self._board.workers):
            if not self._asked:
                self._start(number)
        return not self._asked

    def watch(self, stuck_seconds: float) -> None:
        """Replaces workers that ended or are stuck, until a signal comes."""
        while not self._asked:
            time.sleep(_TICK)
            for number, process in list(self._processes.items()):
                if process.poll() is None:
                    stuck = stuck_seconds < self._board.age(number) < float("inf")
                    if stuck and self._board.age(number) < time.monotonic() - self._started[number]:
                        process.kill()
                    continue
                self._board.forget(number)
                self._on_end(process.pid)
                self._start_again(number)

    def end(self, seconds: float) -> None:
        """Ends all workers: asks them, and kills what is left after a time."""
        for process in self._processes.values():
            process.terminate()
        until = time.monotonic() + seconds
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.1))
                continue
            process.kill()
            process.wait()

    def _start_again(self, number: int) -> None:
        lived = time.monotonic() - self._started[number]
        pause = self._pause.get(number, 0.0)
        if lived < pause:
            return
        self._pause[number] = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE) if lived < _LONGEST_PAUSE else 0.0
        self._start(number)

    def _start(self, number: int) -> None:
        port, board = self._bound.fileno(), self._board.descriptor
        given = {_VARIABLE: f"{number},{self._board.workers},{port},{board}"}
        self._started[number] = time.monotonic()
        self._processes[number] = subprocess.Popen(self._command, env={**os.environ, **given}, pass_fds=(port, board))


class _Signals:
    """Notes SIGTERM and SIGINT in a block, and hands SIGHUP on to the workers, which reload their models."""

    def __init__(self, pool: _Workers) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._reload)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self._pool.reload()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pool.ask()

"""Runs a command in several processes on this machine that work together; `torchrun` does so on several machines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from deit.cli.terminal.console import USER_ERROR, say
from deit.runtime.signals import STOP_SIGNALS
from deit.runtime.together.watch import LAUNCHER, LOST_EXIT_CODE

SHARING = ("train", "pretrain", "evaluate")  # the commands whose processes share the work

_AFTERWARDS = "The system does so when memory runs out. A training goes on from its newest state with --resume."
_LOOK_SECONDS = 0.05
_STOP_SECONDS = 8.0  # for the others to end once one has ended by an error or by death
_AGREED_SECONDS = 120.0  # likewise, if a signal stops them all together: the first may still have something to write


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs a command in several processes that work together. The first of them prints.

    Signals are handed on to all of them. When one ends by an error or is killed, the others end within ten seconds.
    torchrun adds a traceback and a table to every error. This prints only what the processes print.

    Args:
        processes: How many.
        arguments: Of the `deit` command.

    Returns:
        The exit code: that of the process that ended first with an error, or 128 and the number of the signal.
    """
    if processes < 1:
        say(f"Error: --processes must be at least 1. Received: {processes}.", err=True)
        return USER_ERROR
    if not arguments or arguments[0] not in SHARING:
        say(f"Error: --processes is for {', '.join(SHARING)}. Received: {' '.join(arguments[:1])}.", err=True)
        return USER_ERROR
    if find_spec("torch") is None:
        say("Error: --processes needs the 'torch' package. Install it: pip install \"deit[train]\"", err=True)
        return USER_ERROR
    workers: list[subprocess.Popen[bytes]] = []
    with _handing_on(workers) as sent:
        workers += _start(processes, arguments)
        codes = _ended(workers)
        killed = {rank: -code for rank, code in codes.items() if code < 0}
        if killed and not sent:
            rank, number = next(iter(killed.items()))  # it had no time to speak
            name = signal.Signals(number).name
            say(f"Error: Process {rank} of {processes} was ended by {name}. {_AFTERWARDS}", err=True)
    if killed:
        return 128 + next(iter(killed.values()))
    return next(iter(codes.values()), 0)


@contextmanager
def _handing_on(workers: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Hands signals on to processes for a block. Ignored signals stay ignored. Yields those that came."""
    sent: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        sent.append(number)
        for worker in workers:
            if worker.returncode is None:
                worker.send_signal(number)

    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    previous = {number: handler for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
    for number in previous:
        signal.signal(number, hand_on)
    try:
        yield sent
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(processes: int, arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(max((os.cpu_count() or 1) // processes, 1))
    count = str(processes)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {"OMP_NUM_THREADS": threads, **os.environ, **place, LAUNCHER: "1"}
    for rank in map(str, range(processes)):
        yield subprocess.Popen(
            [sys.executable, "-m", "deit", *arguments], env={**environment, "RANK": rank, "LOCAL_RANK": rank}
        )


def _ended(workers: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Waits for processes. Returns the exit codes, if not 0, of the one or those that ended first with one."""
    first: dict[int, int] = {}
    until = float("inf")
    while any(worker.poll() is None for worker in workers):
        failed = {rank: worker.returncode for rank, worker in enumerate(workers) if worker.returncode}
        if failed and until == float("inf"):
            agreed = min(failed.values()) - 128 in STOP_SIGNALS
            until = time.monotonic() + (_AGREED_SECONDS if agreed else _STOP_SECONDS)
        # One that ended since another did says nothing of why; the other may still be speaking.
        if not first and any(code != LOST_EXIT_CODE for code in failed.values()):
            first = {rank: code for rank, code in failed.items() if code != LOST_EXIT_CODE}
            for worker in workers:
                if not agreed and worker.returncode is None:
                    worker.terminate()
        if time.monotonic() > until:
            for worker in workers:
                if worker.returncode is None:
                    worker.kill()
        time.sleep(_LOOK_SECONDS)
    failed = {rank: worker.returncode for rank, worker in enumerate(workers) if worker.returncode}
    return first or {rank: code for rank, code in failed.items() if code != LOST_EXIT_CODE} or failed

"""Runs jobs in processes of their own, several at a time: each as soon as the jobs that it needs are finished."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

# No job imports these again. None of them asks for a GPU when imported.
_PRELOAD = ("torch", "timm", "few_labels_cells")
_LOG_LINES = 15
_SECONDS_TO_SAVE = 30.0  # for a process that was asked to end


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for a process of its own.

    Attributes:
        name: Unique name, for the printed lines.
        work: Does it; it and its data must be picklable. Raises if it fails.
        log: File for all that it prints.
        needs: Names of the jobs that must be finished before it starts. Those that are not in the list are.
    """

    name: str
    work: Callable[[], Any]
    log: Path
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Running:
    job: Job
    process: BaseProcess
    began: float


def run_side_by_side(
    jobs: Sequence[Job], *, at_once: int, limit: float | None = None, describe: Callable[[Job], str]
) -> dict[str, str]:
    """Runs jobs, at most so many at once. Of those that can start, the first in the list starts first.

    A job that fails prints the end of its log. The others go on, except those that need it. Each process computes with
    one thread. An interrupt or SIGTERM ends all processes with SIGTERM and waits for them.

    Args:
        jobs: In order of preference.
        at_once: Number of processes.
        limit: Seconds after which nothing more starts and running processes get SIGTERM; None for no limit.
        describe: Returns what the line of a finished job shows, such as its score.

    Returns:
        Why each unfinished job is so: "failed", "stopped", or "not started".
    """
    began, waiting = time.monotonic(), list(jobs)
    running: list[_Running] = []
    unfinished = {job.name: "not started" for job in jobs}
    with _one_thread_each(), _stopped_at_the_end(running, unfinished):
        context = _context()
        while running or waiting:
            ready = [job for job in waiting if not any(name in unfinished for name in job.needs)]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running.append(_start(job, context))
            left = None if limit is None else began + limit - time.monotonic()
            if not running or (left is not None and left <= 0):  # what still waits needs something that failed
                break
            wait([each.process.sentinel for each in running], timeout=left)
            for each in [each for each in running if not each.process.is_alive()]:
                running.remove(each)
                _tell(each, unfinished, describe, f"{len(jobs) - len(waiting) - len(running)}/{len(jobs)}")
    return unfinished


def _context() -> Any:
    """Returns how processes begin: forked from a server that has imported the packages, where there is such a thing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    resource_tracker.ensure_running()  # which lets SIGTERM through when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:  # the server inherits it: SIGTERM to a whole group leaves it alive, and waits for a job that just starts
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start(job: Job, context: Any) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_work, args=(job.work, job.log), name=job.name)
    process.start()
    return _Running(job, process, time.monotonic())


def _work(work: Callable[[], Any], log: Path) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setpgrp()  # Ctrl-C reaches the parent alone, which hands on one signal: a second one would lose the state
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    work()


def _tell(each: _Running, unfinished: dict[str, str], describe: Callable[[Job], str], number: str) -> None:
    seconds, code = time.monotonic() - each.began, each.process.exitcode
    if code == 0:
        del unfinished[each.job.name]
        print(f"{number} {each.job.name}: {describe(each.job)}, {seconds:.0f} s", flush=True)
        return
    unfinished[each.job.name] = "failed"
    end = each.job.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    print(f"{number} {each.job.name}: failed with code {code} after {seconds:.0f} s. The end of {each.job.log}:")
    print("\n".join(f"    {line}" for line in end), flush=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Lets processes that begin in a block find the modules beside this one, and compute with one thread."""
    search = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    values = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(search)}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _stopped_at_the_end(running: list[_Running], unfinished: dict[str, str]) -> Iterator[None]:
    """Ends the processes that still run after a block, and waits until they have saved their state."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if before[number] is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, end)
        yield
    finally:
        for each in running:
            each.process.terminate()
        last = time.monotonic() + _SECONDS_TO_SAVE
        for each in running:
            each.process.join(max(last - time.monotonic(), 0.0))
            if each.process.is_alive():
                each.process.kill()
                each.process.join()
            if each.process.exitcode == 0:  # it ended just then
                del unfinished[each.job.name]
            else:
                unfinished[each.job.name] = "stopped"
        for number in numbers:
            signal.signal(number, before[number])

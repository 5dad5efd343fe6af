"""Runs of a tiny training that are killed at random moments, or whose disk is full at one write or another.

Every other kill is a SIGKILL at a random moment of what a run has left; the others (SIGALRM without a handler, as
deadly) come within a random time from the beginning of one of its writes, so that files are cut in the middle. Only
kills of living runs count: there are as many as were asked for. Of several processes a random one dies, or has the full
disk; the others must end within ten seconds, and one line must name it.

As a script it does both many times and prints a table: `python -m tests.train.disk_and_death --kills 100 --full 50`;
with `--processes 2` of trainings on two processes, and with `--sharding fsdp` of divided ones. test_endings.py does it
a few times.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401  # imported before a process begins, so that its writes are the training's
import safetensors.torch
import torch
import typer
from safetensors import SafetensorError

import deit.train.run.state
from deit.cli.terminal.console import reports_errors
from deit.cli.terminal.settings import goes_on, run_fit
from deit.runtime.processes import process_group
from deit.runtime.together.watch import LOST_EXIT_CODE
from tests.blank_curves import blank_curves
from tests.train import tiny, together

JOINED = b"joined\n"
SOON = 10.0  # seconds in which the other processes must end
KILLS_OF_ONE = 3  # before a run goes on to its end
SHARDING = ["none"]  # of all trainings, see `fit`
WRITE_SECONDS = 0.002  # in which a kill inside a write comes: about what a state takes to be written


# --- the process that dies -----------------------------------------------------------------------------


def train(out: Path, *, cache: Path) -> None:
    """Trains as `deit train --auto-resume` does, errors in one line."""
    recipe = tiny.recipe(
        augment=together.MIXED, ema_decay=0.9, drop_path_rate=0.1, keep="best",
        schedule=together.Schedule(epochs=4, warmup_epochs=1, patience=3),
    )  # fmt: skip

    @reports_errors
    def command() -> None:
        resume = goes_on(out, resume=False, auto_resume=True)
        with process_group("cpu") as processes:
            os.write(2, JOINED)
            run_fit(
                together.task("adamw"), tiny.data(), recipe, processes, out=out, device="cpu", teacher_cache=cache,
                resume=resume, sharding=SHARDING[0],
            )  # fmt: skip

    try:
        command()
    except typer.Exit as stop:
        sys.exit(stop.exit_code)


def fail_at_write(number: int, sent: list[int], folder: Path, dies_after: float | None) -> None:
    """Lets the disk be full from the write of this number on, at all calls by which files are made, filled and synced.

    What a write wrote until then stays, as on a real disk; safetensors writes by itself, so its file is its text. With
    `dies_after` that write goes on instead, and the process dies so many seconds after its beginning.
    """

    def counted(real: Callable[..., Any], error: Callable[[], Exception], writes: Callable[..., bool]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if writes(*args, **kwargs):
                sent[0] += 1
                if dies_after is None and sent[0] >= number:
                    raise error()
                if dies_after is not None and sent[0] == number:
                    signal.setitimer(signal.ITIMER_REAL, dies_after)
            return real(*args, **kwargs)

        return call

    def full() -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def rust() -> Exception:
        return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def always(*args: Any, **kwargs: Any) -> bool:
        return True

    def for_writing(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> bool:
        return any(letter in mode for letter in "wax+") and str(file).startswith(str(folder))

    for name in ("mkdir", "pwrite", "fsync", "replace", "rename"):
        setattr(os, name, counted(getattr(os, name), full, always))
    builtins.open = io.open = counted(io.open, full, for_writing)
    tempfile.mkstemp = counted(tempfile.mkstemp, full, always)
    tempfile.mkdtemp = counted(tempfile.mkdtemp, full, always)
    for module in (safetensors.torch, deit.train.run.state):
        module.save_file = counted(module.save_file, rust, always)


def child(out: Path, fail_at: int | None, errors: Path, dies_after: float | None) -> None:
    """The life of the process: a training with its standard error in a file, and in the end its number of writes."""
    file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.dup2(file, 1)
    sent = [0]
    if fail_at is not None:
        fail_at_write(fail_at, sent, out.parent, dies_after)
    code = 1
    try:
        train(out, cache=out.parent / f"{out.name} cache")
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001  # whatever it is, the one who judges shall see it
        os.write(2, traceback.format_exc().encode())
    finally:
        os.write(2, f"writes {sent[0]}\n".encode())
        os._exit(code)


# --- the one who kills ---------------------------------------------------------------------------------


class Run:
    """A training in processes of its own, which begin where this one has imported everything.

    Args:
        out: Folder of the run.
        processes: How many.
        fail_at: Number of the write that fails; None for none.
        victim: The process whose write fails.
        dies_after: See `fail_at_write`.
    """

    def __init__(
        self, out: Path, processes: int, fail_at: int | None = None, *, victim: int = 0, dies_after: float | None = None
    ) -> None:
        self._errors = [out.parent / f"{out.name} says {rank}" for rank in range(processes)]
        self.numbers: list[int] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for rank, errors in enumerate(self._errors):
            errors.unlink(missing_ok=True)
            number = os.fork()
            if not number:
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                fails = fail_at if rank == victim or fail_at is None else 10**9
                child(out, fails, errors, dies_after)
            self.numbers.append(number)

    def end(self, seen: Counter[str]) -> tuple[int, list[str]]:
        """Waits; returns the exit code, negative for a signal, and what was said but notes and epochs."""
        codes: dict[int, int] = {}
        first = 0.0
        while len(codes) < len(self.numbers):
            for rank, number in enumerate(self.numbers):
                ended, status = (0, 0) if rank in codes else os.waitpid(number, os.WNOHANG)
                if ended:
                    codes[rank] = os.waitstatus_to_exitcode(status)
            if any(codes.values()) and not first:
                first = time.monotonic()
            late = time.monotonic() - first > SOON
            if first and len(codes) < len(self.numbers) and (late or not self._joined()):
                seen["OTHERS DID NOT END" if late else "killed before all had joined, the rest ended here"] += 1
                for rank, number in enumerate(self.numbers):
                    if rank not in codes:
                        os.kill(number, signal.SIGKILL)
                        os.waitpid(number, 0)
                        codes[rank] = LOST_EXIT_CODE
            time.sleep(0.002)
        lines = [line for errors in self._errors for line in errors.read_text().splitlines()]
        told = [line for line in lines if "ended without a word" in line]
        if min(codes.values()) < 0 and len(codes) > 1 and self._joined():
            seen[f"{len(told)} line(s) name the process"] += 1
        other = {rank: code for rank, code in codes.items() if code != LOST_EXIT_CODE} or codes
        others = ("Note:", "epoch ", "writes ", "joined")
        return min(other.values()) or max(other.values()), [
            line for line in lines if not line.startswith(others) and line not in told
        ]

    def _joined(self) -> bool:
        return all(JOINED.decode() in errors.read_text() for errors in self._errors if errors.exists())

    def writes(self) -> list[int]:
        """How many writes there were in each process."""
        return [int(errors.read_text().split("writes ")[1]) for errors in self._errors]


def kill(
    folder: Path, count: int, seconds: float, all_writes: list[int], expected: bytes, choice: random.Random
) -> Counter[str]:
    """Kills living trainings, each several times, lets them go on to the end, and counts what was seen."""
    seen: Counter[str] = Counter()
    processes = len(all_writes)
    hits, runs, kills_of_this, left = 0, 0, 0, 1.0
    while hits < count:
        out = folder / f"killed {runs}"
        inside, victim = hits % 2 == 1, choice.randrange(processes)
        if inside:
            number = choice.randint(1, max(int(all_writes[victim] * left), 1))
            dies_after = choice.uniform(1e-6, WRITE_SECONDS)
            code, said = Run(out, processes, number, victim=victim, dies_after=dies_after).end(seen)
            lived = number / all_writes[victim]
        else:
            lived = choice.uniform(0, left)
            run = Run(out, processes)
            time.sleep(lived * seconds)
            os.kill(run.numbers[victim], signal.SIGKILL)
            code, said = run.end(seen)
            seconds *= 0.7 if code == 0 else 1.1  # the machine may have become faster, or slower
        if code in (-signal.SIGKILL, -signal.SIGALRM):
            hits += 1
            kills_of_this += 1
            seen["killed inside or after a write" if inside else "killed at any moment"] += 1
            seen["of these with a file half written left"] += bool(list(folder.rglob("*.tmp")))
            left = max(left - lived, 0.05)
        else:
            seen["had ended, not counted" if code == 0 else f"exit {code}: {said}"] += 1
        if code == 0 or kills_of_this == KILLS_OF_ONE or hits == count:
            judge(out, processes, expected, seen)
            runs, kills_of_this, left = runs + 1, 0, 1.0
    return seen


def starve(folder: Path, count: int, all_writes: list[int], expected: bytes) -> Counter[str]:
    """Lets the disk be full at writes all over a training, then goes on to the end, and counts what was seen."""
    seen: Counter[str] = Counter()
    for i in range(count):
        out = folder / f"full {i}"
        victim = i % len(all_writes)
        code, said = Run(out, len(all_writes), 1 + i * all_writes[victim] // count, victim=victim).end(seen)
        named = all(word in " ".join(said) for word in ("cannot be written", "the disk is full", str(folder)))
        seen[f"exit {code}, {len(said)} line(s){', the place named' if named else f': {said}'}"] += 1
        judge(out, len(all_writes), expected, seen)
    return seen


def judge(out: Path, processes: int, expected: bytes, seen: Counter[str]) -> None:
    code, said = Run(out, processes).end(seen)
    seen["went on to the end" if code == 0 else f"CANNOT GO ON: {said}"] += 1
    seen["same bits" if code == 0 and (out / "model.safetensors").read_bytes() == expected else "OTHER BITS"] += 1
    seen["leftovers"] += len(list(out.parent.rglob("*.tmp")))


def main() -> None:
    """Does all and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, help="Of each training.")
    parser.add_argument("--sharding", choices=["none", "fsdp"], default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blank-curves", action="store_true", help="Draw no curves, but write a picture of them.")
    arguments = parser.parse_args()
    if arguments.blank_curves:
        blank_curves()
    SHARDING[:] = [arguments.sharding]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen: Counter[str] = Counter()
        Run(folder / "warm-up", arguments.processes).end(seen)  # what it reads from the disk is in memory afterwards
        whole = Run(folder / "whole", arguments.processes, fail_at=10**9)
        begun = time.monotonic()
        code, said = whole.end(seen)
        seconds = time.monotonic() - begun
        assert code == 0, said
        expected = (folder / "whole" / "model.safetensors").read_bytes()
        print(f"undisturbed: {seconds:.1f} s, {whole.writes()} writes", flush=True)
        for title, seen in (
            (
                "kill -9",
                kill(folder, arguments.kills, seconds, whole.writes(), expected, random.Random(arguments.seed)),
            ),
            ("disk full", starve(folder, arguments.full, whole.writes(), expected)),
        ):
            for what, count in seen.items():
                print(f"{title:10} | {what:60} | {count}", flush=True)


if __name__ == "__main__":
    main()

"""One hostile input in a process of its own: memory, time, and whether it ended as it should."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.kit import Case, Kit, deit_command

MOST_MEGABYTES = 1000
MOST_SECONDS = 10.0
_PATIENCE = 60.0  # seconds until a process that does nothing is stopped
_LAUNCHER = Path(__file__).with_name("launcher.py")
_ADDRESS_SPACE = 16 * 2**30  # so that what asks for everything fails and the machine goes on


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an input took.

    Attributes:
        name: Of the input.
        megabytes: Largest resident set of the process, in 10^6 bytes.
        seconds: Of the processor, in all threads.
        code: Exit code; negative for a signal.
        output: What it printed, errors first.
        problem: What is not as it should be, or an empty string.
    """

    name: str
    megabytes: int
    seconds: float
    code: int
    output: str
    problem: str


def measure(name: str, case: Case, good: Path, folder: Path) -> Measured:
    """Makes an input in an empty folder, gives it to the command, and removes it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return _run(name, case, [str(word) for word in case.make(Kit(good, folder))], folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(name: str, case: Case, words: list[str], folder: Path) -> Measured:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DEIT_CACHE": str(folder / "cache-of-deit")}
    paths = [folder / "out.txt", folder / "err.txt"]
    with paths[0].open("wb") as out, paths[1].open("wb") as err:
        usage_file = folder / "usage.json"
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(usage_file), str(_ADDRESS_SPACE)]
        process = subprocess.Popen(
            [*launcher, *deit_command(*words)], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment,
            cwd=folder, start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(_PATIENCE, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        killed = process.wait() != 0
        timer.cancel()
    usage = (
        {"code": -signal.SIGKILL, "bytes": 0, "seconds": _PATIENCE} if killed else json.loads(usage_file.read_text())
    )
    code, megabytes, seconds = usage["code"], round(usage["bytes"] / 1e6), usage["seconds"]
    out_text, err_text = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    problems = [*_problems(case, code, err_text), *_over(megabytes, seconds, executed=(folder / "executed").exists())]
    return Measured(
        name=name, megabytes=megabytes, seconds=seconds, code=code, output=err_text + out_text,
        problem="; ".join(problems),
    )  # fmt: skip


def _problems(case: Case, code: int, err: str) -> list[str]:
    lines = [line for line in err.splitlines() if line]
    problems = []
    if "Traceback" in err:
        problems.append(f"a traceback: {lines[-1][:150]}")
    if code not in ((2,) if case.refused else (0, 2, 3)):
        problems.append(f"exit code {code}" + (" (stopped, it waited for ever)" if code == -signal.SIGKILL else ""))
    if code == 2:
        errors = [line for line in lines if line.startswith("Error: ")]
        others = [line for line in lines if not line.startswith(("Error: ", "Note: ", "Left out", "  "))]
        if len(errors) != 1 or others:
            problems.append(f"{len(errors)} lines of error and {len(others)} others: {(others or ['none'])[0][:150]}")
        elif len(errors[0]) > 1000:
            problems.append(f"a line of {len(errors[0])} characters")
    return problems


def _over(megabytes: int, seconds: float, *, executed: bool) -> list[str]:
    problems = []
    if megabytes > MOST_MEGABYTES:
        problems.append(f"over {MOST_MEGABYTES} MB")
    if seconds > MOST_SECONDS:
        problems.append(f"over {MOST_SECONDS:.0f} s")
    if executed:
        problems.append("code was executed")
    return problems

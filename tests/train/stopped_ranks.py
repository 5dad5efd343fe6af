"""Two processes of which one is asked to stop: what each says of it, and the run that goes on. See test_distributed.py.

Usage: python -m tests.ranks 2 tests.train.stopped_ranks FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import deit.runtime.signals
from deit.runtime.processes import Processes, process_group
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.progress import StepEvent
from tests.train import together

STEP = 3
CASES = {"SIGTERM": 0, "SIGUSR1": 1, "SIGHUP": 1, "notice": 1}  # and the process that gets it, alone


def train(out: Path, processes: Processes, case: str = "", **options: Any) -> str:
    def on_step(event: StepEvent) -> None:
        if event.step == STEP and processes.rank == CASES.get(case, -1):
            if case == "notice":
                (out.parent / f"{case} {processes.rank}").touch()
            else:
                os.kill(os.getpid(), getattr(signal, case))

    options["notice_file"] = out.parent / f"notice {processes.rank}"
    try:
        result = fit(
            together.task("usual"), together.data("usual"), together.recipe("usual"), out=out, device="cpu",
            teacher_cache=out.parent / f"{out.name} cache", on_step=on_step, **options,
        )  # fmt: skip
    except TrainingInterrupted as stop:
        return f"{stop.exit_code} {stop}"
    return f"0 {result.steps}"


if __name__ == "__main__":
    deit.runtime.signals._LOOK_SECONDS = 0.0
    folder = Path(sys.argv[1])
    with process_group("cpu") as those:
        lines = [f"whole: {train(folder / 'whole', those)}"]
        for name in CASES:
            lines.append(f"{name}: {train(folder / name, those, name)}")
            lines.append(f"{name}: {train(folder / name, those, resume=True)}")
        time.sleep(0.2 * those.rank)  # each writes its lines at once
        print("\n".join(f"{those.rank} {line}" for line in lines), flush=True)

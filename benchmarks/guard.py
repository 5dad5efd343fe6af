"""Measures what the check of loss and gradient costs a training step, and what training states cost a run.

python benchmarks/guard.py [--sizes tiny small] [--seconds 60] [--fail-above 1.0] [--fail-states-above 2.0]

Steps with and without the check take turns in one process, on random images: with, without, without, with.
"Without" is the same step with the check taken out: gradients are not looked at and losses not collected. The state
is that of a student with AdamW and an average of its weights, and is written to the folder for temporary files.

Rows of steps with a state that is written beside them, and rows without, take turns likewise. The seconds that a row
with a state takes longer, by 100 steps, are what states every 100 steps cost.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from harness import report
from torch import Tensor

import deit.train.step
from deit.data.loader import Batch
from deit.runtime.processes import Processes
from deit.train.loss_sums import LossSums
from deit.train.numerics.guard import Guard
from deit.train.recipes.recipe import Recipe
from deit.train.run.state import State, save_state
from deit.train.states.state_writer import StateWriter
from deit.train.step import StepResult, TrainStep
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask

CLASSES = [f"{i:04d}" for i in range(1000)]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCHES = {"cpu": {"tiny": 16, "small": 8}, "cuda": {"tiny": 256, "small": 256}}


def new_step(size: str, batch: int, **settings: Any) -> TrainStep:
    recipe = Recipe().with_settings({"batch_size": batch, "precision": "fp32", **settings})
    student = build_student(f"deit-{size}-distilled-patch16-224", CLASSES, recipe)
    task = ClassificationTask(student.model, student.processor)
    task.to(DEVICE)
    return TrainStep(task, recipe, DEVICE, steps_per_epoch=1000, num_classes=len(CLASSES), processes=Processes())


@contextmanager
def unchecked() -> Iterator[None]:
    """Takes the check out of the step for a block."""
    real = deit.train.step.gradient_norm
    deit.train.step.gradient_norm = lambda parameters, most: torch.ones((), device=DEVICE)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deit.train.step.gradient_norm = real  # type: ignore[attr-defined]


def timed(step: TrainStep, batch: Batch, number: int, guard: Guard | None, sums: LossSums) -> float:
    begin = time.perf_counter()
    result: StepResult = step(batch, number)
    if guard is not None:
        guard.add(number, result.losses["loss"], result.taken)
        sums.add(result.losses, result.taken)
        if DEVICE.type != "cuda" or number % 10 == 0:
            guard.look()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    else:
        float(result.losses["loss"])
    return time.perf_counter() - begin


def guard_row(size: str, batch_size: int, seconds: float) -> dict[str, Any]:
    step = new_step(size, batch_size)
    pixels = torch.randn(batch_size, 3, 224, 224)
    batch = Batch(pixels, torch.randint(len(CLASSES), (batch_size,)), 0)
    guard, sums = Guard(20, Processes()), LossSums()
    times: dict[bool, list[float]] = {True: [], False: []}
    numbers, end = itertools.count(), time.monotonic() + seconds
    timed(step, batch, next(numbers), guard, sums)
    while time.monotonic() < end or len(times[True]) < 8:
        for checks in (True, False, False, True):
            if checks:
                times[checks].append(timed(step, batch, next(numbers), guard, sums))
            else:
                with unchecked():
                    times[checks].append(timed(step, batch, next(numbers), None, sums))
    checked, plain = statistics.median(times[True]), statistics.median(times[False])
    # Pairs of neighbours see the same load of the machine.
    percent = 100 * (statistics.median(a / b for a, b in zip(times[True], times[False], strict=True)) - 1)
    return {
        "what": f"step, {size}", "batch": batch_size, "steps": len(times[True]), "checked ms": 1e3 * checked,
        "unchecked ms": 1e3 * plain, "check alone ms": 1e3 * check_alone(step), "overhead %": percent,
    }  # fmt: skip


def check_alone(step: TrainStep) -> float:
    """Returns the seconds that the norm of the gradients takes by itself, after a step."""
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        taken: Tensor = torch.isfinite(deit.train.step.gradient_norm(step.trained, 0.0))
        bool(taken)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def state_row(size: str, batch_size: int, times: int = 4) -> dict[str, Any]:
    step = new_step(size, batch_size, ema_decay=0.9999)
    batch = Batch(torch.randn(batch_size, 3, 224, 224), torch.randint(len(CLASSES), (batch_size,)), 0)
    step(batch, 0)
    written, copied, checked = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(times):
            begin = time.perf_counter()
            finite = step.is_finite()
            checked.append(time.perf_counter() - begin)
            assert finite
            begin = time.perf_counter()
            tensors = step.tensors()
            _ = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            copied.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            save_state(Path(folder), State(step=number, tensors=tensors, meta={}), Processes())
            written.append(time.perf_counter() - begin)
    megabytes = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) / 2**20
    return {
        "what": f"state, {size}", "MiB": round(megabytes), "written s": statistics.median(written),
        "slowest s": max(written), "copied in memory s": statistics.median(copied),
        "checked for finite numbers s": statistics.median(checked),
    }  # fmt: skip


def beside_row(size: str, batch_size: int, seconds: float) -> dict[str, Any]:
    step = new_step(size, batch_size, ema_decay=0.9999)
    batch = Batch(torch.randn(batch_size, 3, 224, 224), torch.randint(len(CLASSES), (batch_size,)), 0)
    guard, sums = Guard(20, Processes()), LossSums()
    numbers, stalls = itertools.count(), []
    times: dict[bool, list[float]] = {True: [], False: []}
    plain = statistics.median(timed(step, batch, next(numbers), guard, sums) for _ in range(5))
    length = max(int(3 / plain), 3)  # a write is over by then
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, StateWriter(Path(folder), Processes(), last=2) as states:
        while time.monotonic() < end or len(times[True]) < 4:
            for saves in (True, False, False, True):
                begin = time.perf_counter()
                if saves:
                    assert step.is_finite()
                    states.save(State(step=next(numbers), tensors=step.tensors(), meta={}))
                    stalls.append(time.perf_counter() - begin)
                taken = [timed(step, batch, next(numbers), guard, sums) for _ in range(length)]
                states.wait()
                times[saves].append(time.perf_counter() - begin)
                plain = min(plain, statistics.median(taken))
    cost = statistics.median(a - b for a, b in zip(times[True], times[False], strict=True))
    return {
        "what": f"state beside steps, {size}", "batch": batch_size, "rows": len(stalls), "steps in a row": length,
        "step ms": 1e3 * plain, "step waits s": statistics.median(stalls), "at most s": max(stalls),
        "costs in all s": cost, "every 100 steps %": cost / plain,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=["tiny", "small"], default=["tiny", "small"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of steps for each size")
    parser.add_argument("--fail-above", type=float, help="exit with 1 if a check costs more percent of a step")
    parser.add_argument("--fail-states-above", type=float, help="exit with 1 if states cost more percent of a run")
    parser.add_argument("--quick", action="store_true", help="the tiny student for a moment, nothing written")
    options = parser.parse_args()
    sizes, seconds = (["tiny"], 1.0) if options.quick else (options.sizes, options.seconds)
    rows: list[dict[str, Any]] = [{"what": "setting", "threads": torch.get_num_threads()}]
    for size in sizes:
        batch = BATCHES[DEVICE.type][size]
        rows += [guard_row(size, batch, seconds), state_row(size, batch), beside_row(size, batch, seconds)]
        print(*rows[-3:], sep="\n", flush=True)
    report("guard", rows, write=not options.quick)
    costs = [row["overhead %"] for row in rows if "overhead %" in row]
    if options.fail_above is not None and max(costs) > options.fail_above:
        raise SystemExit(f"The check costs {max(costs):.2f} % of a step, more than {options.fail_above}.")
    states = [row["every 100 steps %"] for row in rows if "every 100 steps %" in row]
    if options.fail_states_above is not None and max(states) > options.fail_states_above:
        raise SystemExit(f"States every 100 steps cost {max(states):.2f} %, more than {options.fail_states_above}.")


if __name__ == "__main__":
    main()

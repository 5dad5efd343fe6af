"""Compares formulas of memory and communication with measurements, and forecasts the throughput of many GPUs.

python benchmarks/scaling.py [--only memory communication throughput] [--sizes tiny small base]

* Memory: the peak of each process in two real steps, above what it had before the student was made. Each row is a run
  of its own processes.
* Communication: the numbers that the collective operations of a step get on 2 to 4 processes, by the profiler.
* Throughput: a model, nothing is measured; see `forecast` for what it assumes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import torch
from harness import report

from deit.data.loader import Batch
from deit.planning.memory import exchanged, parameters_of, training_memory
from deit.runtime.memory import peak_memory
from deit.runtime.processes import Processes, process_group
from deit.train.recipes.recipe import Recipe
from deit.train.step import TrainStep
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask

CLASSES = [f"{i:04d}" for i in range(1000)]
BATCHES = {"tiny": 16, "small": 8, "base": 4}  # of a process
WAYS: list[dict[str, Any]] = [
    {"processes": 1}, {"processes": 1, "average": True}, {"processes": 1, "checkpointing": True},
    {"processes": 1, "precision": "bf16"}, {"processes": 2}, {"processes": 2, "sharding": "fsdp"},
    {"processes": 2, "sharding": "fsdp", "checkpointing": True, "average": True},
]  # fmt: skip
MB = 10**6

# What the forecast assumes of a machine with 8 GPUs such as the H200.
FORWARD = {  # images/s of the forward pass by images in a batch, benchmarks/results/2026-11-26-inference-gpu.json
    "tiny": {8: 19_517, 32: 49_454, 256: 98_948}, "small": {8: 15_008, 32: 30_827, 256: 42_471},
    "base": {8: 9_140, 32: 13_441, 256: 14_587},
}  # fmt: skip
STEP_PER_FORWARD = 3.5  # the backward pass takes twice the forward pass, optimizer and all else half of it
WITHIN, BETWEEN = 300e9, 40e9  # bytes/s that a GPU sends in a machine and to another one (400 Gbit/s, 80 % of it)
LATENCY = 20e-6  # seconds for each doubling of the processes, of each collective operation
BUCKET = 25 * 2**20  # bytes, of DDP
DECODED = 16 * 200  # images/s that 16 cores beside each GPU decode and augment, 5 ms each


def name_of(size: str) -> str:
    return size if size.startswith("deit") else f"deit-{size}-distilled-patch16-224"


def new_step(size: str, processes: Processes, batch: int, way: dict[str, Any]) -> TrainStep:
    settings = {
        "batch_size": batch * processes.world_size * way.get("parts", 1), "accumulate": way.get("parts", 1),
        "precision": way.get("precision", "fp32"), "ema_decay": 0.999 if way.get("average") else 0.0,
    }  # fmt: skip
    recipe = Recipe().with_settings(settings)
    student = build_student(name_of(size), CLASSES, recipe)
    task = ClassificationTask(student.model, student.processor)
    options: dict[str, Any] = {
        "sharding": way.get("sharding", "none"),
        "gradient_checkpointing": way.get("checkpointing", False),
    }
    options |= {"steps_per_epoch": 1000, "num_classes": len(CLASSES), "processes": processes}
    return TrainStep(task, recipe, torch.device("cpu"), **options)


def images(step: TrainStep, count: int, side: int) -> Batch:
    return Batch(torch.randn(count, 3, side, side), torch.randint(len(CLASSES), (count,)), 0)


# --- in the processes that are measured ----------------------------------------------------------------


def measure_memory(size: str, way: dict[str, Any]) -> None:
    with process_group("cpu") as processes:
        torch.set_num_threads(1)
        if way.get("sharding") == "fsdp":
            import_module("torch.distributed.fsdp")  # is no memory of the training
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
        before = peak_memory()
        step = new_step(size, processes, BATCHES[size], way)
        for number in range(2):
            step(images(step, BATCHES[size], 224), number)
        peaks = processes.gather(peak_memory() - before)
        if processes.is_first:
            print(json.dumps(max(peaks)))


def measure_communication(size: str, way: dict[str, Any]) -> None:
    with process_group("cpu") as processes:
        parts = way["parts"]
        step = new_step(size, processes, 2, way)
        side = step.task.processor.output_size[0]
        step(images(step, 2 * parts, side), 0)
        with torch.profiler.profile(record_shapes=True) as profile:
            step(images(step, 2 * parts, side), 1)
        count = {"summed": 0, "gathered": 0, "scattered": 0}
        for event in profile.events() or []:
            shapes = [math.prod(shape) for shape in event.input_shapes if shape]
            if event.name == "c10d::_allgather_base_":  # first what it fills, then what each process gives
                count["gathered"] += shapes[0]
            elif event.name == "c10d::_reduce_scatter_base_":
                count["scattered"] += shapes[1]
            elif event.name == "gloo:all_reduce" and way.get("sharding") != "fsdp":  # gloo scatters by summing
                count["summed"] += shapes[0]
        if processes.is_first:
            print(json.dumps({name: 4 * numbers for name, numbers in count.items()}))


def measured(what: str, size: str, way: dict[str, Any]) -> Any:
    """Runs this file in processes that measure one row, and returns what the first prints."""
    command = [sys.executable, __file__, "--measure", what, size, json.dumps(way)]
    if way["processes"] > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(way["processes"])]
        command[1:1] = launch
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(ran.stdout.splitlines()[-1])


# --- rows ----------------------------------------------------------------------------------------------


def memory_row(size: str, way: dict[str, Any]) -> dict[str, Any]:
    expected = training_memory(name_of(size), BATCHES[size], **way)
    found = measured("memory", size, way)
    return {
        "what": "memory", "size": size, "batch": BATCHES[size], **way, "formula MB": round(expected.total / MB),
        "measured MB": round(found / MB), "formula / measured": expected.total / found,
    }  # fmt: skip


def communication_row(size: str, way: dict[str, Any]) -> dict[str, Any]:
    expected = exchanged(parameters_of(name_of(size)), sharding=way["sharding"], parts=way["parts"])
    found = measured("communication", size, way)
    row: dict[str, Any] = {"what": "communication", "size": size, **way}
    for name, count in found.items():
        row |= {f"{name} by formula": getattr(expected, name), f"{name} measured": count}
    return row


def forecast(size: str, gpus: int, batch_size: int, sharding: str) -> dict[str, Any]:
    """Forecasts a step in bf16 on machines of 8 GPUs.

    It assumes:

    * A step takes 3.5 times a forward pass, whose speed was measured; between measured batches the time is straight.
    * A ring sends the bytes of `Exchange.sent` at the speed between machines, if there are several, else within one.
    * The sum of DDP hides behind the backward pass, two thirds of the computation, but for its last bucket. The gathers
      and scatters of FSDP hide behind all of it, but for those of what is outside of the blocks.
    * Images are ready in time if the cores decode them; else the cores decide.
    """
    counted = parameters_of(name_of(size))
    share = batch_size // gpus
    times = {0: 8 / FORWARD[size][8] / 2, **{count: count / rate for count, rate in FORWARD[size].items()}}
    compute = STEP_PER_FORWARD * _between(times, share)
    volume = exchanged(counted, sharding=sharding, precision="bf16")
    speed = WITHIN if gpus <= 8 else BETWEEN
    calls = math.ceil(4 * counted.total / BUCKET) if sharding == "none" else 3 * 12 + 2
    sending = volume.sent(gpus) / speed + calls * LATENCY * math.log2(gpus)
    if sharding == "none":
        last = 2 * min(BUCKET, 4 * counted.total) / speed
        waiting = max(sending - compute * 2 / 3, last)
    else:
        waiting = max(sending - compute, 2 * 4 * counted.rest / speed)
    rate = batch_size / (compute + waiting)
    one = 512 / (STEP_PER_FORWARD * _between(times, 512))  # GPU, without others
    return {
        "what": "throughput", "size": size, "gpus": gpus, "batch": batch_size, "sharding": sharding,
        "images/s": round(rate), "of the speed of one %": 100 * rate / (gpus * one),
        "waiting %": 100 * waiting / (compute + waiting), "decoded images/s": DECODED * gpus,
    }  # fmt: skip


def _between(times: dict[int, float], count: float) -> float:
    """Returns the time of a batch, on the straight line between the nearest batches that were measured."""
    known = sorted(times)
    low = max(each for each in known[:-1] if each <= count)
    high = known[known.index(low) + 1]
    return times[low] + (times[high] - times[low]) * (count - low) / (high - low)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ["memory", "communication", "throughput"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--sizes", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="whose memory")
    parser.add_argument("--quick", action="store_true", help="one row of each, nothing written")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, size, way = options.measure
        {"memory": measure_memory, "communication": measure_communication}[what](size, json.loads(way))
        return
    rows: list[dict[str, Any]] = []
    if "memory" in options.only:
        rows += [memory_row(size, way) for size in options.sizes for way in WAYS][: 1 if options.quick else None]
    if "communication" in options.only:
        small = "deit-digits-distilled-patch8-32"
        ways = [
            {"processes": processes, "sharding": sharding, "parts": parts}
            for processes, parts in ((2, 1), (2, 2), (3, 1), (4, 1))
            for sharding in ("none", "fsdp")
        ]
        rows += [communication_row(small, way) for way in ways[: 1 if options.quick else None]]
    if "throughput" in options.only:
        rows += [
            forecast(size, gpus, batch_size or 128 * gpus, sharding)
            for size in FORWARD
            for sharding in ("none", "fsdp")
            for batch_size in (4096, 0)  # of all together, or with 128 images for each
            for gpus in (8, 16, 32, 64, 128, 256)
        ][: 1 if options.quick else None]
    report("scaling", rows, write=not options.quick)


if __name__ == "__main__":
    main()

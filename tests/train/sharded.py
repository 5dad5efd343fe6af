"""Trains a tiny student for 20 steps in several ways, alone or as one of several processes; see test_sharding.py.

A training of the kind "stopped" ends after 14 steps, as by a bug, with states after the steps 10 (planned) and 12; in a
folder where one was stopped it goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.fsdp  # once, before the processes part

from deit.runtime.processes import current_processes, process_group
from deit.train.loop import fit
from deit.train.recipes.sections import Optimizer, Schedule
from tests.train import poisoned, together

# Mixup, CutMix, repeats, dropout, drop path and average are those of "mixed".
TWENTY = {"schedule": Schedule(epochs=10, warmup_epochs=1), "eval_epochs": 5}  # of two steps each
KINDS: dict[str, dict[str, Any]] = {
    "usual": {**TWENTY, "accumulate": 2, "optimizer": Optimizer(lr=1e-3, reference_batch_size=0, clip_grad=1.0)},
    "parts": {
        **TWENTY, "freeze": "blocks:1", "keep": "best",
        "optimizer": Optimizer(name="lamb", lr=1e-3, reference_batch_size=0, layer_decay=0.7, clip_grad=1.0),
    },
    "stopped": {
        **TWENTY, "accumulate": 2, "state_steps": 4,
        "optimizer": Optimizer(lr=1e-3, reference_batch_size=0, clip_grad=1.0),
    },
    "bf16": {"precision": "bf16", "accumulate": 2},
    "masked": {},
}  # fmt: skip


def run(kind: str, out: Path, **options: Any) -> list[float]:
    """Trains and returns the mean loss over the processes of each step."""
    base = "masked" if kind == "masked" else "mixed"
    recipe = dataclasses.replace(together.recipe(base), **KINDS[kind])
    processes, losses = current_processes(), []

    goes_on = kind == "stopped" and out.exists()

    def on_step(event: Any) -> None:
        losses.append(float(processes.sum(np.array([event.loss]))[0]) / processes.world_size)
        if kind == "stopped" and not goes_on and event.step == 14:
            raise RuntimeError("a bug")

    options |= {"out": out, "device": "cpu", "on_step": on_step, "resume": goes_on}
    stops = contextlib.suppress(RuntimeError) if kind == "stopped" and not goes_on else contextlib.nullcontext()
    with stops:
        fit(together.task(base), together.data(base), recipe, **options)
    return losses


def main(folder: Path, names: list[str]) -> None:
    logging.disable()
    with process_group("cpu") as processes:
        for name in names:
            sharding, kind = name.partition("_of_one")[0].partition("-")[0], name.split("-")[1]
            if kind == "poisoned":
                poisoned.run([4], folder / name, rank=1, sharding=sharding)
                continue
            checkpointing = sharding == "fsdp" and kind in ("usual", "stopped")
            losses = run(kind, folder / name, sharding=sharding, gradient_checkpointing=checkpointing)
            if processes.is_first:
                (folder / name / "losses.json").write_text(json.dumps(losses))
                if not (folder / name / "model.safetensors").exists():
                    shutil.copytree(folder / name, folder / f"left by {name}")
            processes.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])

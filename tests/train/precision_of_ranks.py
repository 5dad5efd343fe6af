"""Trains on processes that measure different speeds, and prints what each computed in; see test_precision_of_runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from deit.runtime import precision_speed
from deit.runtime.processes import process_group
from deit.train import loop
from tests.train import tiny
from tests.train.test_precision_of_runs import task

SPEEDUPS = {"0": 3.0, "1": 0.5}


class ToldStep(loop.TrainStep):
    def __init__(self, task: Any, recipe: Any, *rest: Any, **options: Any) -> None:
        super().__init__(task, recipe, *rest, **options)
        (Path(sys.argv[1]) / f"{self.processes.rank}.txt").write_text(str(self._placement.dtype))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["DEIT_CACHE"] = str(Path(sys.argv[1]) / f"cache of {os.environ['RANK']}")
    precision_speed.measure_speedup = lambda *, trains: SPEEDUPS[os.environ["RANK"]]
    loop.TrainStep = ToldStep
    with process_group("cpu"):
        recipe = tiny.recipe(precision="auto").with_settings({"schedule.epochs": 1, "schedule.warmup_epochs": 0})
        loop.fit(task(), tiny.data(), recipe, out=Path(sys.argv[1]) / "run", device="cpu")

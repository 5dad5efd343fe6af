"""Trainings in which numbers become infinite or NaN at chosen steps; also a script for several processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.core.errors import UserError
from deit.runtime.processes import FirstProcessError, process_group
from deit.train.loop import fit
from deit.train.recipes.sections import Schedule
from deit.train.tasks.classification import ClassificationTask
from deit.train.teachers.cache import BatchPlace
from tests.train import tiny

BAD = float("inf")


class Poisoned(ClassificationTask):
    """Learns from labels; the images of some steps are infinite, of one process alone if a rank is given."""

    def __init__(self, steps: Collection[int] = (), *, rank: int | None = None, student: Any = None) -> None:
        super().__init__(tiny.student() if student is None else student, tiny.processor())
        self.bad_steps, self.bad_rank = steps, rank

    def prepare(self, pixels: Tensor, targets: Tensor, place: BatchPlace | None = None) -> tuple[Tensor, ...]:
        assert place is not None
        if place.step in self.bad_steps and self.bad_rank in (None, place.part):
            pixels = torch.full_like(pixels, BAD)
        return pixels, targets


def recipe(**settings: object) -> Any:
    """Three steps in an epoch, six epochs."""
    return tiny.recipe(**{"schedule": Schedule(epochs=6, warmup_epochs=1), "ema_decay": 0.9, **settings})


def run(steps: Collection[int], out: Path, *, rank: int | None = None, **options: Any) -> Any:
    """Trains with infinite images at some steps, counted from 0. Options that `fit` knows go there, others to `recipe`.

    Returns:
        The result of `fit`.
    """
    names = ("resume", "on_step", "on_epoch", "detect_anomaly", "sharding")
    of_fit = {name: options.pop(name) for name in names if name in options}
    return fit(Poisoned(steps, rank=rank), tiny.data(), recipe(**options), out=out, device="cpu", **of_fit)


def main(folder: Path) -> None:
    """On several processes: the second one has infinite images; the first prints what each counted and knows."""
    logging.disable()
    with process_group("cpu") as processes:
        run([4], folder / "skipped", rank=1)
        rows: list[dict[str, Any]] = []
        rare = {"max_skipped_steps": 3, "eval_epochs": 2}
        run([7, 8, 9, 10], folder / "returned", rank=1, on_epoch=rows.append, **rare)
        said = [str([row.get("skipped_steps", 0) for row in rows])]
        try:
            run([4], folder / "watched", rank=1, detect_anomaly=True)
        except FirstProcessError:
            said.append("ended too")
        except UserError as error:
            said.append(str(error))
        lines = processes.gather(said)
        if processes.is_first:
            print(*(line for each in lines for line in each), sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

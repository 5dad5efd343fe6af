"""Trains a tiny student, alone or as one of several processes that torchrun starts; see test_distributed.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from deit.data.augment import Augmentation
from deit.data.distributed import process_group
from deit.train.loop import fit
from deit.train.recipe import Distillation, Optimizer, Recipe, Schedule
from deit.train.tasks import DistillationTask
from deit.train.teacher import Teacher
from tests.train import tiny

PLAIN = tiny.PLAIN
MIXED = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, num_repeats=2)


def recipe(kind: str) -> Recipe:
    settings: dict[str, object] = {"schedule": Schedule(epochs=5, warmup_epochs=1), "batch_size": 6}
    if kind in ("adamw", "sgd"):
        lr = {"adamw": 1e-3, "sgd": 0.1}[kind]
        settings.update(augment=PLAIN, optimizer=Optimizer(name=kind, lr=lr, reference_batch_size=0, clip_grad=1.0))
    else:  # as a user would train
        settings.update(batch_size=8, augment=MIXED, ema_decay=0.9, drop_path_rate=0.1)
    return tiny.recipe(**settings)


def task() -> DistillationTask:
    torch.manual_seed(1)
    teacher = Teacher(tiny.TinyConvnet(), mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), image_size=(8, 8), name="tiny")
    return DistillationTask(tiny.student(), teacher, tiny.processor(), distillation=Distillation(kind="hard"))


def run(kind: str, out: Path, *, cache: Path | None = None) -> None:
    with process_group("cpu") as processes:
        lines = []
        result = fit(
            task(), tiny.data(13, 7), recipe(kind), out=out, device="cpu", teacher_cache=cache, on_epoch=lines.append
        )
        if processes.is_first:
            print(processes.world_size, result.scores["both"].images, len(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], Path(sys.argv[2]), cache=Path(sys.argv[3]) if len(sys.argv) > 3 else None)

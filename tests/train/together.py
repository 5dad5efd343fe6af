"""Trains a tiny student, alone or as one of several processes that torchrun starts; see test_distributed.py."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from deit.core.configuration import DeiTConfig
from deit.data.augment import Augmentation
from deit.data.distributed import process_group
from deit.data.few_labels import with_fewer_labels
from deit.data.sources import Data
from deit.models.deit import DeiTForMaskedImageModeling
from deit.train.loop import fit
from deit.train.masked_images import MaskedImageTask
from deit.train.recipe import Distillation, Masking, Optimizer, Recipe, Schedule
from deit.train.tasks import DistillationTask, Task
from deit.train.teacher import Teacher
from tests.train import tiny

PLAIN = tiny.PLAIN
MIXED = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, num_repeats=2)


def recipe(kind: str) -> Recipe:
    settings: dict[str, object] = {"schedule": Schedule(epochs=5, warmup_epochs=1), "batch_size": 6}
    if kind != "usual":
        name, lr = ("adamw", 1e-3) if kind == "adamw" else ("sgd", 0.1)
        settings.update(augment=PLAIN, optimizer=Optimizer(name=name, lr=lr, reference_batch_size=0, clip_grad=1.0))
    else:  # as a user would train
        settings.update(batch_size=8, augment=MIXED, ema_decay=0.9, drop_path_rate=0.1)
    return tiny.recipe(**settings)


def task(kind: str) -> Task:
    torch.manual_seed(1)
    if kind == "masked":
        config = DeiTConfig(**tiny.SIZES, patch_size=4, encoder_stride=4)
        masking = Masking(patch=8, ratio=0.5, picture_steps=4, pictures=2)
        return MaskedImageTask(DeiTForMaskedImageModeling(config), tiny.processor(), masking=masking)
    teacher = Teacher(tiny.TinyConvnet(), mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), image_size=(8, 8), name="tiny")
    return DistillationTask(tiny.student(), teacher, tiny.processor(), distillation=Distillation(kind="hard"))


def data(kind: str) -> Data:
    """13 training images; or 12 of which 3 have a label and come more often, in some steps more on one process."""
    if kind == "few":
        return with_fewer_labels(tiny.data(12, 7), labels_per_class=1, keep_others=True)
    return tiny.data(13, 7)


def run(kind: str, out: Path, *, cache: Path | None = None, **settings: object) -> None:
    with process_group("cpu") as processes:
        lines = []
        its_recipe = dataclasses.replace(recipe(kind), **settings)
        result = fit(
            task(kind), data(kind), its_recipe, out=out, device="cpu", teacher_cache=cache, on_epoch=lines.append
        )
        if processes.is_first:
            (score,) = list(result.scores.values())[:1]
            print(processes.world_size, score.images, len(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], Path(sys.argv[2]), cache=Path(sys.argv[3]) if len(sys.argv) > 3 else None)

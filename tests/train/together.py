"""Trains a tiny student, alone or as one of several processes that torchrun starts; see test_distributed.py."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import timm.layers
import torch
from torch import nn

from deit.core.config.config import DeiTConfig
from deit.data.augment import Augmentation
from deit.data.few_labels import with_fewer_labels
from deit.data.sources import Data
from deit.models.deit import DeiTForMaskedImageModeling
from deit.runtime.processes import process_group
from deit.runtime.random_state import random_state_kept
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation, Masking, Optimizer, PseudoLabels, Schedule
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.masked_images import MaskedImageTask
from deit.train.tasks.task import Task
from deit.train.teachers.teacher import Teacher
from tests.train import tiny

PLAIN = tiny.PLAIN
MIXED = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, num_repeats=2)
CUT = dataclasses.replace(PLAIN, mix_rate=1.0, mixup_alpha=0.0)
WITHOUT_CACHE = ("masked", "mixed", "convnet", "pseudo")
DROPS = {"hidden_dropout_prob": 0.1}


class NormedConvnet(nn.Module):
    """A convnet with what a teacher-to-be may have: both kinds of batch norm, dropout, and timm's drop path."""

    pretrained_cfg = {"architecture": "normed_convnet"}  # noqa: RUF012  # as timm's models have it
    num_features, num_classes = 6, 3

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.norm = timm.layers.BatchNormAct2d(6, momentum=None)
        self.drop_path, self.drop = timm.layers.DropPath(0.3), nn.Dropout(0.2)
        self.head_norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.first(pixels)
        x = (x[:, :, ::2, ::2] + self.drop_path(self.norm(self.second(x)))).mean((2, 3))
        return self.head(self.drop(self.head_norm(x)))


def recipe(kind: str) -> Recipe:
    settings: dict[str, object] = {"schedule": Schedule(epochs=5, warmup_epochs=1), "batch_size": 6}
    if kind in ("mixed", "convnet"):
        settings.update(batch_size=12, augment=MIXED, ema_decay=0.9, drop_path_rate=0.3, label_smoothing=0.1)
        settings.update(optimizer=Optimizer(name="sgd", lr=0.1, reference_batch_size=0, clip_grad=1.0))
    elif kind != "usual":
        name, lr = ("adamw", 1e-3) if kind == "adamw" else ("sgd", 0.1)
        settings.update(augment=PLAIN, optimizer=Optimizer(name=name, lr=lr, reference_batch_size=0, clip_grad=1.0))
    else:  # as a user would train
        settings.update(batch_size=8, augment=MIXED, ema_decay=0.9, drop_path_rate=0.1)
    if kind == "dist":
        settings.update(distillation=Distillation(kind="dist"))
    if kind == "pseudo":
        labels = PseudoLabels(weight=5.0, threshold=0.35)  # some images are above it, others below
        settings.update(pseudo_labels=labels, ema_decay=0.9, label_smoothing=0.1, augment=CUT)
    if kind == "masked":
        settings.update(masking=Masking(patch=8, ratio=0.5, picture_steps=4, pictures=2))
    return tiny.recipe(**settings)


def task(kind: str) -> Task:
    with random_state_kept():  # a test trains two in two threads, and their initial values are drawn here
        torch.manual_seed(1)
        return _task(kind)


def _task(kind: str) -> Task:
    if kind == "masked":
        config = DeiTConfig(**tiny.SIZES, patch_size=4, encoder_stride=4)
        return MaskedImageTask(DeiTForMaskedImageModeling(config), tiny.processor())
    if kind == "convnet":
        return ClassificationTask(NormedConvnet(), tiny.processor())
    teacher = Teacher(tiny.TinyConvnet(), mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), image_size=(8, 8), name="tiny")
    student = tiny.student(**DROPS) if kind == "mixed" else tiny.student()
    distillation = Distillation(kind="dist" if kind == "dist" else "hard")
    return DistillationTask(student, teacher, tiny.processor(), distillation=distillation)


def data(kind: str) -> Data:
    """13 training images; or 12 of which 3 have a label and come more often, in some steps more on one process."""
    if kind in ("few", "pseudo"):
        return with_fewer_labels(tiny.data(12, 7), labels_per_class=1, keep_others=True)
    return tiny.data(25, 7) if kind in ("mixed", "convnet") else tiny.data(13, 7)


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
    with process_group("cpu"):
        for its_kind in sys.argv[2:]:  # one after another: to begin costs more than to train
            place = Path(sys.argv[1])
            run(its_kind, place / its_kind, cache=None if its_kind in WITHOUT_CACHE else place / f"{its_kind} cache")

"""Measures the gain of a small DeiT from a convnet teacher on CIFAR-10, with equal steps, over several seeds.

    python benchmarks/cifar10.py FOLDER --out runs/cifar10

FOLDER holds CIFAR-10 as Parquet in the Hugging Face layout, a file for training and one for testing. For each seed it
trains a convnet on a part of the training images, then the same student twice: with labels only, and with labels and
the convnet. All three use the same images. The default budget suits two CPU cores. `--budget gpu` uses all images, the
paper's tiny model with patches of 4, and a longer schedule.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import report, tells

from deit.data.augment import Augmentation
from deit.data.open_data import open_data
from deit.data.sources import Data, Subset
from deit.train.loop import fit
from deit.train.progress import FitResult
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation, Optimizer, Schedule
from deit.train.run.curves import draw_curves
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import match_teacher, open_teacher


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Sizes and lengths of the trainings.

    Attributes:
        train_images: Number of images out of 50,000, the same number of each class.
        student: Variant of the students.
        teacher: timm's architecture of the convnet.
        teacher_side: Side of the convnet's input in pixels; timm's convnets are made for images larger than 32.
        student_epochs: Epochs of both students.
        teacher_epochs: Epochs of the convnet.
        batch_size: Batch size of all trainings.
    """

    train_images: int
    student: str
    teacher: str
    teacher_side: int
    student_epochs: int
    teacher_epochs: int
    batch_size: int


BUDGETS = {
    "cpu": Budget(
        train_images=10_000, student="deit-micro-distilled-patch4-32", teacher="timm/resnet10t", teacher_side=64,
        student_epochs=10, teacher_epochs=8, batch_size=50,
    ),
    "gpu": Budget(
        train_images=50_000, student="deit-tiny-distilled-patch4-32", teacher="timm/resnet18", teacher_side=128,
        student_epochs=200, teacher_epochs=40, batch_size=500,
    ),
}  # fmt: skip


def recipes(budget: Budget, seed: int) -> tuple[Recipe, Recipe]:
    """Returns the recipes of the teacher and of the students."""
    teacher = Recipe(
        batch_size=budget.batch_size,
        seed=seed,
        label_smoothing=0.1,
        drop_path_rate=0.0,
        crop_ratio=1.0,
        eval_epochs=5,
        augment=Augmentation(crop="padded", rand_augment="", erase_rate=0.0, mixup_alpha=0.0, mix_rate=0.5),
        optimizer=Optimizer(lr=2e-3, reference_batch_size=0),
        schedule=Schedule(epochs=budget.teacher_epochs, warmup_epochs=1),
    )
    student = dataclasses.replace(
        teacher,
        optimizer=Optimizer(lr=1e-3, reference_batch_size=0, clip_grad=1.0),
        schedule=Schedule(epochs=budget.student_epochs, warmup_epochs=2),
        distillation=Distillation(kind="soft", temperature=2.0, weight=0.5),
    )
    return teacher, student


def part_of(data: Data, images: int) -> Data:
    """Returns the data with a fixed choice of training images, equally many of each class."""
    labels, each = data.train.labels, images // len(data.train.classes)
    random = np.random.default_rng(0)
    chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in range(len(data.train.classes))]
    return Data(train=Subset(data.train, np.sort(np.concatenate(chosen))), val=data.val)


def run_seed(data: Data, budget: Budget, seed: int, out: Path, device: str | None) -> dict[str, FitResult]:
    """Trains the teacher and both students. Resumes unfinished runs in `out`, and only scores finished ones."""
    for_teacher, for_students = recipes(budget, seed)
    classes = data.train.classes
    convnet = build_student(budget.teacher, classes, for_teacher, image_size=budget.teacher_side)
    runs = {
        "teacher": fit(
            ClassificationTask(convnet.model, convnet.processor), data, for_teacher, out=out / "teacher",
            device=device, resume=(out / "teacher").exists(), on_step=tells(f"seed {seed}, teacher", every=200),
        )
    }  # fmt: skip
    alone = build_student(budget.student, classes, for_students)
    runs["alone"] = fit(
        ClassificationTask(alone.model, alone.processor), data, for_students, out=out / "alone", device=device,
        resume=(out / "alone").exists(), on_step=tells(f"seed {seed}, alone", every=200),
    )  # fmt: skip
    taught = build_student(budget.student, classes, for_students)
    teacher = match_teacher(open_teacher(out / "teacher"), classes, taught.processor.output_size)
    task = DistillationTask(taught.model, teacher, taught.processor, distillation=for_students.distillation)
    runs["distilled"] = fit(
        task, data, for_students, out=out / "distilled", device=device, resume=(out / "distilled").exists(),
        on_step=tells(f"seed {seed}, distilled", every=200),
    )  # fmt: skip
    return runs


def top1(runs: dict[str, FitResult], name: str) -> float:
    """Returns the top-1 accuracy, of the mean of both heads if there are two."""
    score: float = next(iter(runs[name].scores.values())).top1
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", choices=list(BUDGETS), default="cpu")
    parser.add_argument("--device")
    options = parser.parse_args()
    budget = BUDGETS[options.budget]
    data = part_of(open_data(options.data), budget.train_images)
    results: list[dict[str, Any]] = []
    curves = {}
    for seed in options.seeds:
        runs = run_seed(data, budget, seed, options.out / f"seed-{seed}", options.device)
        curves.update({f"{name}, seed {seed}": run.history for name, run in runs.items()})
        results.append(
            {
                "seed": seed,
                **{name: top1(runs, name) for name in runs},
                "heads of the distilled student": {k: s.top1 for k, s in runs["distilled"].scores.items()},
                "seconds": {name: run.history[-1]["seconds"] for name, run in runs.items()},
            }
        )
        print(results[-1], flush=True)
    draw_curves(curves, options.out / "curves.png")
    gains = [r["distilled"] - r["alone"] for r in results]
    for name in ("teacher", "alone", "distilled"):
        values = [r[name] for r in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.mean(values):.2f} % top-1 (sd {spread:.2f}, {len(values)} seeds)")
    print(f"gain from the teacher: {statistics.mean(gains):+.2f} points ({', '.join(f'{g:+.2f}' for g in gains)})")
    report("cifar10", [{"budget": dataclasses.asdict(budget)}, *results])


if __name__ == "__main__":
    main()

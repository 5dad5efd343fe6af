"""Measures the gain of a small DeiT from a convnet teacher on CIFAR-10, with equal steps, over several seeds.

    python benchmarks/cifar10.py FOLDER --out runs/cifar10

FOLDER holds CIFAR-10 as Parquet in the Hugging Face layout, a file for training and one for testing. For each seed it
trains a convnet on a part of the training images, then the same student twice: with labels only, and with labels and
the convnet. All three use the same images. The default budget suits two CPU cores.

`--budget gpu` uses all images, the paper's tiny model with patches of 4, ResNet-18 with the stem that is usual for
CIFAR, and what `deit train` chooses for many passes: mimetic initial values, strong views, and a student that is guided
by the convnet's feature maps. `--runs` trains some of the three only, so that two processes can share a GPU, and the
same command without it scores them. `--teacher-epochs` and `--student-epochs` set other lengths.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import report, tells
from safetensors.torch import load_file

from deit.core.model_directory import read_training_record
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
from deit.train.tasks.task import Task
from deit.train.teachers.teacher import Teacher


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
        chosen: The students train as plans for many passes do. False: as in the first table of docs/results.md.
        small_stem: The convnet begins with a 3 x 3 convolution of stride 1 and no pooling, for images of 32 pixels.
    """

    train_images: int
    student: str
    teacher: str
    teacher_side: int
    student_epochs: int
    teacher_epochs: int
    batch_size: int
    chosen: bool = False
    small_stem: bool = False


RUNS = ("teacher", "alone", "distilled")
BUDGETS = {
    "cpu": Budget(
        train_images=10_000, student="deit-micro-distilled-patch4-32", teacher="timm/resnet10t", teacher_side=64,
        student_epochs=10, teacher_epochs=8, batch_size=50,
    ),
    "gpu": Budget(
        train_images=50_000, student="deit-tiny-distilled-patch4-32", teacher="timm/resnet18", teacher_side=32,
        student_epochs=200, teacher_epochs=60, batch_size=256, chosen=True, small_stem=True,
    ),
    "tiny": Budget(
        train_images=400, student="deit-mini-distilled-patch4-32", teacher="timm/resnet10t", teacher_side=32,
        student_epochs=2, teacher_epochs=2, batch_size=40, chosen=True, small_stem=True,
    ),
}  # fmt: skip


def recipes(budget: Budget, seed: int, workers: int) -> dict[str, Recipe]:
    """Returns the recipe of each training."""
    teacher = Recipe(
        batch_size=budget.batch_size,
        seed=seed,
        num_workers=workers,
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
    )
    distillation = Distillation(kind="soft", temperature=2.0, weight=0.5)
    if budget.chosen:
        student = dataclasses.replace(
            student,
            initialization="mimetic",
            augment=Augmentation(crop_scale=(0.5, 1.0), mixup_alpha=0.0, mix_rate=0.5),
            schedule=Schedule(epochs=budget.student_epochs, warmup_epochs=0.1 * budget.student_epochs),
        )
        distillation = Distillation(kind="soft", temperature=1.0, weight=0.8, guidance=10.0)
    return {"teacher": teacher, "alone": student, "distilled": dataclasses.replace(student, distillation=distillation)}


def part_of(data: Data, images: int) -> Data:
    """Returns the data with a fixed choice of training images, equally many of each class."""
    labels, each = data.train.labels, images // len(data.train.classes)
    random = np.random.default_rng(0)
    chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in range(len(data.train.classes))]
    return Data(train=Subset(data.train, np.sort(np.concatenate(chosen))), val=data.val)


def with_small_stem(model: Any) -> Any:
    """Replaces the beginning of one of timm's ResNets, which makes images 4 times smaller, by a convolution."""
    model.conv1 = torch.nn.Conv2d(3, model.bn1.num_features, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    torch.nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def run_seed(
    data: Data, budget: Budget, seed: int, out: Path, device: str | None, names: Sequence[str], workers: int
) -> dict[str, FitResult]:
    """Trains the teacher and both students. Resumes unfinished runs in `out`, and only scores finished ones."""
    recipe_of, classes = recipes(budget, seed, workers), data.train.classes

    def train(name: str, task: Task) -> FitResult:
        print(f"seed {seed}, {name}: {budget}", flush=True)
        return fit(
            task, data, recipe_of[name], out=out / name, device=device, resume=(out / name).exists(),
            on_step=tells(f"seed {seed}, {name}", every=200),
        )  # fmt: skip

    runs, size = {}, (budget.teacher_side, budget.teacher_side)
    torch.manual_seed(seed)
    convnet = build_student(budget.teacher, classes, recipe_of["teacher"], image_size=budget.teacher_side)
    model = with_small_stem(convnet.model) if budget.small_stem else convnet.model
    if "teacher" in names or "distilled" in names:
        runs["teacher"] = train("teacher", ClassificationTask(model, convnet.processor))
        model.load_state_dict(load_file(out / "teacher" / "model.safetensors"))  # those of a run that was finished
    if "alone" in names:
        alone = build_student(budget.student, classes, recipe_of["alone"])
        runs["alone"] = train("alone", ClassificationTask(alone.model, alone.processor))
    if "distilled" in names:
        taught = build_student(budget.student, classes, recipe_of["distilled"])
        mean, std = convnet.processor.channel_mean, convnet.processor.channel_std
        teacher = Teacher(model, mean=mean, std=std, image_size=size, label_names=classes, name=budget.teacher)
        teacher = teacher.prepare()
        task = DistillationTask(
            taught.model, teacher, taught.processor, distillation=recipe_of["distilled"].distillation
        )
        runs["distilled"] = train("distilled", task)
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
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="trainings of each seed; all")
    parser.add_argument("--teacher-epochs", type=int, help="those of the budget without")
    parser.add_argument("--student-epochs", type=int, help="those of the budget without")
    parser.add_argument("--workers", type=int, default=-1, help="processes that prepare images; by the machine")
    options = parser.parse_args()
    budget = BUDGETS[options.budget]
    budget = dataclasses.replace(
        budget,
        teacher_epochs=options.teacher_epochs or budget.teacher_epochs,
        student_epochs=options.student_epochs or budget.student_epochs,
    )
    data = part_of(open_data(options.data), budget.train_images)
    results: list[dict[str, Any]] = []
    curves = {}
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        runs = run_seed(data, budget, seed, folder, options.device, options.runs, options.workers)
        curves.update({f"{name}, seed {seed}": run.history for name, run in runs.items()})
        results.append(
            {
                "seed": seed,
                **{name: top1(runs, name) for name in runs},
                "heads": {name: {k: s.top1 for k, s in run.scores.items()} for name, run in runs.items()},
                "seconds": {name: run.history[-1]["seconds"] for name, run in runs.items()},
                "device": {name: (read_training_record(folder / name) or {}).get("device") for name in runs},
            }
        )
        print(results[-1], flush=True)
    draw_curves(curves, options.out / "curves.png")
    for name in [name for name in RUNS if name in results[0]]:
        values = [r[name] for r in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.mean(values):.2f} % top-1 (sd {spread:.2f}, {len(values)} seeds)")
    if set(options.runs) != set(RUNS):
        return
    gains = [r["distilled"] - r["alone"] for r in results]
    print(f"gain from the teacher: {statistics.mean(gains):+.2f} points ({', '.join(f'{g:+.2f}' for g in gains)})")
    name = "cifar10" if options.budget == "cpu" else f"cifar10-{options.budget}"
    report(name, [{"budget": dataclasses.asdict(budget)}, *results], write=options.budget != "tiny")


if __name__ == "__main__":
    main()

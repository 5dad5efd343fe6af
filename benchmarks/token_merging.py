"""Measures token merging: its speed beside the same model without, and what it costs a small model in accuracy.

    python benchmarks/token_merging.py                              # speed
    python benchmarks/token_merging.py --trained FOLDER --out runs  # accuracy

Speed: DeiT-small distilled, 224 pixels, random weights, packed, on the CPU, in turns in one process.

Accuracy: FOLDER holds CIFAR-10 as Parquet in the Hugging Face layout. For each seed it trains a convnet on a part of
the training images, then a student with the recorded answers of the convnet, without merging and with each number of
merged tokens. It scores every student, and the plain one with merging but without training for it. Unfinished runs in
`--out` go on.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import report, take_turns, tells

import deit
from deit.core.variants import variant_config
from deit.data.augment import Augmentation
from deit.data.open_data import open_data
from deit.data.sources import Data, Subset
from deit.evaluate.evaluation import evaluate_model
from deit.models.conversion import convert
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation, Optimizer, Schedule
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import match_teacher, open_teacher

MERGED = (4, 8, 13, 16)


# --- speed --------------------------------------------------------------------------------------------


def speed(rounds: int, batches: list[int]) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    plain = deit.DeiTForImageClassificationWithTeacher(variant_config("deit-small-distilled-patch16-224")).eval()
    models = {0: plain.pack_weights()}
    models |= {r: deit.merge_tokens(copy.deepcopy(plain), r).pack_weights() for r in MERGED}
    rows = []
    for batch in batches:
        pixels = torch.randn(batch, 3, 224, 224)
        with torch.inference_mode():
            functions = {str(r): functools.partial(model, pixels) for r, model in models.items()}
            seconds = take_turns(functions, rounds=rounds, warm_up=1)
        row: dict[str, Any] = {"batch": batch, "threads": torch.get_num_threads()}
        for r in MERGED:
            ratios = [one / other for one, other in zip(seconds["0"], seconds[str(r)], strict=True)]
            row |= {f"r={r}, times as fast": statistics.median(ratios)}
        row |= {f"r={r}, images/s": batch / statistics.median(seconds[str(r)]) for r in (0, *MERGED)}
        rows.append(row)
    return rows


# --- accuracy -----------------------------------------------------------------------------------------


def part_of(source: Any, images: int) -> Subset:
    """Returns a fixed choice of images, equally many of each class."""
    labels, each = source.labels, images // len(source.classes)
    random = np.random.default_rng(0)
    chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in range(len(source.classes))]
    return Subset(source, np.sort(np.concatenate(chosen)))


def recipes(seed: int, epochs: int, teacher_epochs: int) -> tuple[Recipe, Recipe]:
    """Returns the recipes of the teacher and of the students."""
    teacher = Recipe(
        batch_size=50,
        seed=seed,
        precision="auto",
        label_smoothing=0.1,
        drop_path_rate=0.0,
        crop_ratio=1.0,
        eval_epochs=1000,
        augment=Augmentation(crop="padded", rand_augment="", erase_rate=0.0, mixup_alpha=0.0, mix_rate=0.5),
        optimizer=Optimizer(lr=2e-3, reference_batch_size=0),
        schedule=Schedule(epochs=teacher_epochs, warmup_epochs=1),
    )
    student = dataclasses.replace(
        teacher,
        initialization="mimetic",
        optimizer=Optimizer(lr=1e-3, reference_batch_size=0, clip_grad=1.0),
        schedule=Schedule(epochs=epochs, warmup_epochs=1),
        distillation=Distillation(kind="soft", temperature=2.0, weight=0.5),
    )
    return teacher, student


def top1(scores: Any) -> float:
    first: float = next(iter(scores.values())).top1
    return first


def run_seed(data: Data, seed: int, merged: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    out = options.out / f"seed-{seed}"
    for_teacher, recipe = recipes(seed, options.epochs, options.teacher_epochs)
    classes = data.train.classes
    convnet = build_student("timm/resnet10t", classes, for_teacher, image_size=64)
    on_step = functools.partial(tells, every=100)
    run = fit(
        ClassificationTask(convnet.model, convnet.processor), data, for_teacher, out=out / "teacher",
        resume=(out / "teacher").exists(), on_step=on_step(f"seed {seed}, teacher"),
    )  # fmt: skip
    rows = [{"seed": seed, "what": "teacher", "top1": top1(run.scores)}]
    for r in (0, *merged):
        settings = recipe.with_settings({"token_merging": r})
        student = build_student(options.student, classes, settings)
        teacher = match_teacher(open_teacher(out / "teacher"), classes, student.processor.output_size)
        task = DistillationTask(student.model, teacher, student.processor, distillation=settings.distillation)
        run = fit(
            task, data, settings, out=out / f"r-{r}", teacher_cache=out / "cache", resume=(out / f"r-{r}").exists(),
            on_step=on_step(f"seed {seed}, r={r}"),
        )  # fmt: skip
        rows.append({"seed": seed, "what": f"trained with r={r}", "top1": top1(run.scores)})
    for r in merged:
        copy_with_merging = out / f"r-0-run-with-{r}"
        if not copy_with_merging.exists():
            convert(out / "r-0", copy_with_merging, token_merging=r)
        found = evaluate_model(deit.Predictor.open(copy_with_merging), data.val)
        assert found is not None  # one process
        scores = {head: result.scores for head, result in found.heads.items()}
        rows.append({"seed": seed, "what": f"trained without, run with r={r}", "top1": top1(scores)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--quick", action="store_true", help="a few rounds; writes no file")
    parser.add_argument("--trained", type=Path, metavar="FOLDER", help="measure accuracy on CIFAR-10 in FOLDER")
    parser.add_argument("--out", type=Path, help="folder of the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--merged", type=int, nargs="+", default=[4], help="tokens merged in each block, of 64 patches")
    parser.add_argument("--student", default="deit-micro-distilled-patch4-32")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--teacher-epochs", type=int, default=8)
    options = parser.parse_args()
    if options.trained is None:
        rows = speed(3 if options.quick else options.rounds, [1, 8] if options.quick else options.batches)
        report("token-merging", rows, write=not options.quick)
        return
    if options.out is None:
        parser.error("--trained needs --out")
    found = open_data(options.trained)
    data = Data(train=part_of(found.train, options.images), val=part_of(found.val, options.test_images))
    rows = [row for seed in options.seeds for row in run_seed(data, seed, options.merged, options)]
    report("token-merging-trained", rows, write=not options.quick)


if __name__ == "__main__":
    main()

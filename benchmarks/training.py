"""Compares training steps, training from files and with a teacher with transformers' Trainer and timm's loop.

python benchmarks/training.py FOLDER_OF_JPEGS [--sizes tiny small base] [--quick]

All run in one process in turns, on the device that is there, with random weights and 1000 classes. Ours is the two-head
DeiT learning labels with both heads, with the paper's recipe: Mixup and CutMix, drop path 0.1, AdamW. timm has the same
network, losses and recipe, with the optimizer of its training script. transformers has its own `Trainer` and what that
does by default: one head, no mixing, no drop path, gradients clipped. "default" is what a user gets who sets nothing;
else both compute in the same precision. The first line says what precision=auto stands for here, and what it measured.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import transformers
from harness import compare, report, take_turns
from PIL import Image
from timm.data import Mixup, create_loader
from timm.data.auto_augment import rand_augment_transform
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchvision import transforms

from deit.data.loader import Batch
from deit.data.open_data import open_data
from deit.models.trunk.vision_transformer import set_drop_path
from deit.runtime.auto_precision import TRAINING, choose_precision
from deit.runtime.processes import current_processes
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.step import TrainStep
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.task import Task
from deit.train.teachers.cache import BatchPlace, TeacherCache
from deit.train.teachers.records import HardRecords
from deit.train.teachers.teacher import Teacher

CLASSES = [f"{i:04d}" for i in range(1000)]
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
BATCHES = {"cpu": {"tiny": 16, "small": 16, "base": 8}, "cuda": {"tiny": 256, "small": 256, "base": 128}}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = {"fp32": None, "bf16": torch.bfloat16}


class Finished(Exception):  # noqa: N818
    """Enough steps were timed."""


class Clock:
    """Times the steps after the first `skipped`; call it at the end of each."""

    def __init__(self, skipped: int, steps: int) -> None:
        self.skipped, self.steps, self.done, self.begin, self.seconds = skipped, steps, 0, 0.0, 0.0

    def __call__(self, *_: Any) -> bool:
        """Returns whether enough steps were timed."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.done += 1
        if self.done == self.skipped:
            self.begin = now
        self.seconds = (now - self.begin) / self.steps
        return self.done == self.skipped + self.steps


def autocast(precision: str) -> Any:
    kind = TYPES[precision]
    return torch.autocast(DEVICE.type, dtype=kind or torch.bfloat16, enabled=kind is not None)


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(size, 3, 224, 224, generator=generator)
    return pixels.to(DEVICE), torch.randint(len(CLASSES), (size,), generator=generator).to(DEVICE)


# --- deit ---------------------------------------------------------------------------------------------


def automatic_precision() -> str:
    return choose_precision("auto", DEVICE, TRAINING).precision


def our_recipe(batch: int, precision: str, **settings: Any) -> Recipe:
    return Recipe().with_settings({"batch_size": batch, "precision": precision, **settings})


def our_student(size: str, recipe: Recipe) -> Any:
    student = build_student(f"deit-{size}-distilled-patch16-224", CLASSES, recipe)
    set_drop_path(student.model, recipe.drop_path_rate)
    return student.model, student.processor


def our_steps(task: Task, recipe: Recipe, pixels: Tensor, labels: Tensor, steps: int) -> Callable[[], float]:
    task.to(DEVICE)
    take_step = TrainStep(
        task, recipe, DEVICE, steps_per_epoch=1000, num_classes=len(CLASSES), processes=current_processes()
    )
    batch, numbers = Batch(pixels, labels, 0), itertools.count()

    def run() -> float:
        clock = Clock(1, steps)
        while True:
            float(take_step(batch, next(numbers) % 1000).losses["loss"])
            if clock():
                return clock.seconds

    return run


def our_label_steps(
    size: str, precision: str, pixels: Tensor, labels: Tensor, steps: int, **settings: Any
) -> Callable[[], float]:
    recipe = our_recipe(len(pixels), precision, **settings)
    return our_steps(ClassificationTask(*our_student(size, recipe)), recipe, pixels, labels, steps)


def our_run(size: str, folder: Path, batch: int, steps: tuple[int, int]) -> float:
    recipe = our_recipe(batch, "auto", **{"schedule.epochs": 1000})
    student, processor = our_student(size, recipe)
    clock = Clock(*steps)

    def count(_: Any) -> None:
        if clock():
            raise Finished

    data = open_data(folder)
    with tempfile.TemporaryDirectory() as out, torch.random.fork_rng(devices=[]):
        try:
            fit(ClassificationTask(student, processor), data, recipe, out=out, on_step=count)
        except Finished:
            return clock.seconds
    raise AssertionError("the run was too short")


# --- timm ---------------------------------------------------------------------------------------------


def timm_update(size: str, precision: str, compiled: bool) -> Callable[[Tensor, Tensor], float]:
    model = timm.create_model(f"deit_{size}_distilled_patch16_224", drop_path_rate=0.1).to(DEVICE).train()
    model.distilled_training = True  # both heads are returned
    optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05)
    forward: Any = torch.compile(model) if compiled else model

    def update(pixels: Tensor, targets: Tensor) -> float:
        with autocast(precision):
            heads = forward(pixels)
            loss = sum(F.cross_entropy(head, targets) for head in heads) / len(heads)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return update


def timm_mixup() -> Mixup:
    return Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=len(CLASSES))


def timm_steps(
    size: str, precision: str, pixels: Tensor, labels: Tensor, steps: int, *, compiled: bool = False
) -> Callable[[], float]:
    update, mixup = timm_update(size, precision, compiled), timm_mixup()

    def run() -> float:
        clock = Clock(1, steps)
        while True:
            mixed, targets = mixup(pixels.clone(), labels)
            update(mixed, targets.to(DEVICE))
            if clock():
                return clock.seconds

    return run


def repair_posterize() -> None:
    """Lets timm's and transformers' pipelines work with Pillow 13, which refuses timm's request for 0 bits."""
    operations: dict[str, Any] = timm.data.auto_augment.NAME_TO_OP
    posterize = operations["PosterizeIncreasing"]
    operations["PosterizeIncreasing"] = lambda image, bits, **kwargs: (
        posterize(image, bits, **kwargs) if bits > 0 else image.point(lambda value: 0)
    )


def timm_run(size: str, folder: Path, batch: int, steps: tuple[int, int], workers: int, precision: str) -> float:
    dataset = timm.data.ImageDataset(str(folder / "train"))
    loader = create_loader(
        dataset,
        input_size=(3, 224, 224),
        batch_size=batch,
        is_training=True,
        use_prefetcher=False,
        re_prob=0.25,
        re_mode="pixel",
        auto_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.0,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=False,
    )
    update, mixup, clock = timm_update(size, precision, False), timm_mixup(), Clock(*steps)
    for pixels, labels in itertools.chain.from_iterable(itertools.repeat(loader)):
        mixed, targets = mixup(pixels.to(DEVICE), labels.to(DEVICE))
        update(mixed, targets.to(DEVICE))
        if clock():
            break
    return clock.seconds


# --- transformers -------------------------------------------------------------------------------------


class TimingCallback(transformers.TrainerCallback):
    """Lets the clock tick at the end of every step of a Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ticks."""
        control.should_training_stop = self.clock()


def their_model(size: str) -> nn.Module:
    width = WIDTHS[size]
    config = transformers.DeiTConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 64, num_labels=len(CLASSES)
    )
    return transformers.DeiTForImageClassification(config)


def trainer_run(
    model: nn.Module, precision: str, batch: int, dataset: Any, collate: Callable[[Any], Any], clock: Clock
) -> float:
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=batch,
            num_train_epochs=1000,
            bf16=precision == "bf16",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=DEVICE.type == "cpu",
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[TimingCallback(clock)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.seconds


def their_steps(size: str, precision: str, pixels: Tensor, labels: Tensor, steps: int) -> Callable[[], float]:
    model = their_model(size)
    batch = {"pixel_values": pixels, "labels": labels}
    dataset = torch.utils.data.StackDataset(torch.arange(64 * len(pixels)))
    return lambda: trainer_run(model, precision, len(pixels), dataset, lambda _: batch, Clock(1, steps))


class Photos(torch.utils.data.Dataset[dict[str, Any]]):
    """Files and their classes as transformers' image classification example prepares them."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        self.files = sorted((folder / "train").glob("*/*.jpg"))
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns pixels and class."""
        with Image.open(self.files[number]) as image:
            return {
                "pixel_values": self.transform(image.convert("RGB")),
                "labels": int(self.files[number].parent.name),
            }


def their_transform(same_augmentation: bool) -> Callable[[Image.Image], Tensor]:
    """Crop, flip and normalization of transformers' example; RandAugment and erasing on top make the work equal."""
    bicubic = transforms.InterpolationMode.BICUBIC
    fill = {"translate_const": 100, "img_mean": tuple(round(255 * m) for m in MEAN), "interpolation": Image.BICUBIC}
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, interpolation=bicubic if same_augmentation else 2),
            transforms.RandomHorizontalFlip(),
            *([rand_augment_transform("rand-m9-mstd0.5-inc1", fill)] if same_augmentation else []),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            *([timm.data.random_erasing.RandomErasing(0.25, mode="pixel", device="cpu")] if same_augmentation else []),
        ]
    )


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def their_run(size: str, folder: Path, batch: int, steps: tuple[int, int], precision: str, same: bool) -> float:
    photos = Photos(folder, their_transform(same))
    return trainer_run(their_model(size), precision, batch, photos, collate, Clock(*steps))


# --- what is compared ---------------------------------------------------------------------------------


def rated(row: dict[str, Any], batch: int) -> dict[str, Any]:
    """Adds images per second to a row of `compare`."""
    rates = {f"{k.removesuffix(' ms')} images/s": 1e3 * batch / v for k, v in row.items() if k.endswith(" ms")}
    return {"batch": batch, **row, **rates}


def step_rows(size: str, batch: int, rounds: int, steps: int, compiled: bool) -> Iterator[dict[str, Any]]:
    pixels, labels = random_batch(batch)
    default = automatic_precision()
    for precision in ("fp32", "bf16"):
        functions = {
            "deit": our_label_steps(size, precision, pixels, labels, steps),
            "deit, no drop path": our_label_steps(size, precision, pixels, labels, steps, drop_path_rate=0.0),
            "transformers": their_steps(size, precision, pixels, labels, steps),
            "timm": timm_steps(size, precision, pixels, labels, steps),
        }
        if compiled:
            functions["timm, compiled"] = timm_steps(size, precision, pixels, labels, steps, compiled=True)
        if precision == default != "fp32":  # what transformers does by default
            functions["transformers by default, fp32"] = their_steps(size, "fp32", pixels, labels, steps)
        row = compare(take_turns(functions, rounds=rounds, warm_up=1))
        is_default = " (our default)" if precision == default else ""
        yield {"what": f"step, {size}, {precision}{is_default}", **rated(row, batch)}


def run_row(size: str, folder: Path, batch: int, rounds: int, steps: tuple[int, int], workers: int) -> dict[str, Any]:
    precision = automatic_precision()
    functions = {
        "deit": partial(our_run, size, folder, batch, steps),
        "timm": partial(timm_run, size, folder, batch, steps, workers, precision),
        "transformers by default, fp32": partial(their_run, size, folder, batch, steps, "fp32", False),
        "transformers, same precision and augmentation": partial(
            their_run, size, folder, batch, steps, precision, True
        ),
    }
    row = compare(take_turns(functions, rounds=rounds, warm_up=0))
    return {"what": f"from files, {size}, {precision}", **rated(row, batch)}


def teacher_row(folder: Path, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    pixels, labels = random_batch(batch)
    recipe = our_recipe(batch, automatic_precision())
    teacher = Teacher(timm.create_model("regnety_160").to(DEVICE), name="regnety_160")
    alone = ClassificationTask(*our_student("tiny", recipe))
    tasks: list[DistillationTask] = []
    for _ in range(2):
        student, processor = our_student("tiny", recipe)
        tasks.append(DistillationTask(student, teacher, processor))
    cached, online = tasks
    cached.cache = TeacherCache(folder, {"teacher": "regnety_160"}, HardRecords(len(CLASSES)), batch_size=batch)
    for step in range(1000):
        cached.cache.write(BatchPlace(step=step, part=0, checksum=0), torch.randn(batch, len(CLASSES)))
    names = {"deit": alone, "cached teacher": cached, "online teacher": online}
    functions = {name: our_steps(task, recipe, pixels, labels, steps) for name, task in names.items()}
    row = compare(take_turns(functions, rounds=rounds, warm_up=1))
    row["online teacher / cached teacher"] = row["online teacher ms"] / row["cached teacher ms"]
    return {"what": "step, tiny, taught by regnety_160", **rated(row, batch)}


def photo_folder(source: Path, target: Path) -> Path:
    """Copies JPEG files in rotation, one into each class: `train/0003/photo.jpg`."""
    files = [p for p in sorted(source.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        raise SystemExit(f"There are no JPEG files in {source}.")
    for part, names in (("train", CLASSES), ("val", CLASSES[:2])):
        for name, file in zip(names, itertools.cycle(files), strict=False):
            path = target / part / name / "photo.jpg"
            path.parent.mkdir(parents=True)
            shutil.copy(file, path)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder with JPEG files, at any depth")
    parser.add_argument("--sizes", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="images in a step; by default it suits size and device")
    parser.add_argument("--workers", type=int, default=0, help="of timm's loader; ours and transformers choose")
    parser.add_argument("--no-compile", action="store_true", help="leave out timm compiled: it takes a minute a model")
    parser.add_argument("--quick", action="store_true", help="the tiny model, one round, nothing compiled or written")
    options = parser.parse_args()
    sizes, rounds = (["tiny"], 1) if options.quick else (options.sizes, options.rounds)
    warnings.filterwarnings("ignore", module="torch")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.INFO)
    repair_posterize()
    batches = {size: options.batch or BATCHES[DEVICE.type][size] for size in WIDTHS}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    automatic = choose_precision("auto", DEVICE, TRAINING)
    setting = {"threads": torch.get_num_threads(), "load before": load, "precision=auto": automatic.record()}
    rows: list[dict[str, Any]] = [{"what": "setting", **setting}]
    print(f"precision=auto stands for {automatic.precision} here: {automatic.reason}.")
    print(f"Device {DEVICE}, {torch.get_num_threads()} threads, load {load}. About ten minutes on 2 cores.", flush=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:

        def tell(row: dict[str, Any]) -> None:
            rows.append(row)
            print(f"{time.perf_counter() - begin:5.0f} s: measured {row['what']}", flush=True)

        tell(teacher_row(Path(scratch, "cache"), batches["tiny"], rounds, steps=2))
        photos = photo_folder(options.photos, Path(scratch, "photos"))
        for size in sizes:
            tell(run_row(size, photos, batches[size], -(-rounds // 2), (2, 5), options.workers))
            for row in step_rows(size, batches[size], rounds, 2, not (options.quick or options.no_compile)):
                tell(row)
    report("training", rows, write=not options.quick)


if __name__ == "__main__":
    main()

"""Measures a training on this machine: a few real steps, views, evaluations and states."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit.data.augment import Augmentation, build_transform
from deit.data.loader import Batch, StepOrder, training_batches
from deit.data.sources import Data, Source, Subset
from deit.planning.facts import Speed
from deit.planning.look import labelled_part
from deit.runtime.devices import resolve
from deit.runtime.memory import peak_memory
from deit.runtime.processes import Processes
from deit.train.build_task import build_task
from deit.train.recipes.recipe import Recipe
from deit.train.run.state import State, save_state
from deit.train.step import TrainStep
from deit.train.students.deit import build_student
from deit.train.students.drop_path import apply_drop_path
from deit.train.teachers.teacher import Teacher, TeacherEnsemble

_WARM_UP = 1  # steps that are not counted: kernels are chosen, memory is fetched
_LEAST_STEPS, _MOST_STEPS = 2, 30
_LEAST_BATCHES, _MOST_BATCHES = 2, 12
_EVALUATED = 96  # images


def measure(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    *,
    light: Augmentation,
    strong: Augmentation,
    teacher: Recipe | Teacher | TeacherEnsemble | None = None,
    seconds: float = 4.0,
) -> Speed:
    """Measures a training.

    Args:
        recipe: Of the training. Its `teacher` is not opened.
        data: Its images. Only those with a label are used.
        device: Where it will run.
        light: Light views.
        strong: Strong views.
        teacher: The teacher that will be asked in each step, or its recipe: one with random weights takes as long.
        seconds: Time to measure for, roughly; a few steps are done in any case.
    """
    train = labelled_part(data).train
    classes = data.train.classes
    student = build_student(None, classes, recipe)
    apply_drop_path(student.model, recipe)
    asked = _teacher_like(teacher, classes) if isinstance(teacher, Recipe) else teacher
    asked = None if asked is None else asked.to(device)
    task = build_task(recipe.with_settings({"teacher": ()}), student, asked).to(device)
    task.settle(recipe)
    processor = student.processor

    def batches(augmentation: Augmentation) -> Iterable[Batch]:
        transform = build_transform(augmentation, processor.output_size, processor.channel_mean, processor.channel_std)
        size = min(recipe.batch_size, len(train.labels))
        order = StepOrder(len(train.labels), size - size % 2, recipe.seed, 0, _MOST_BATCHES)
        return training_batches(train, transform, order, num_workers=0)

    shown: list[Batch] = []
    strong_seconds = _per_image(batches(strong), shown, seconds / 4)
    light_seconds = _per_image(batches(light), [], seconds / 8)
    step = TrainStep(task, recipe, device, steps_per_epoch=10**6, num_classes=len(classes), processes=Processes())
    step_seconds = _median_seconds(lambda i: step(shown[i % len(shown)], i), device, seconds / 2)
    answers = 0.0 if asked is None else _asking(asked, shown, processor, recipe, device, seconds / 8)
    evaluated = Data(train=train, val=_some_of(data.val, _EVALUATED))
    began = time.perf_counter()
    task.score(student.model, evaluated, device, batch_size=max(recipe.batch_size, 32), processes=Processes())
    evaluation = (time.perf_counter() - began) / len(evaluated.val.labels)
    return Speed(
        step=step_seconds,
        answers=min(answers, step_seconds),
        light_view=light_seconds,
        strong_view=strong_seconds,
        evaluation=evaluation,
        saving=_saving(step),
        memory=_peak_memory(device),
    )


def _teacher_like(recipe: Recipe, classes: Sequence[str]) -> Teacher:
    convnet = build_student(None, classes, recipe)
    return Teacher(convnet.model, image_size=convnet.processor.output_size, label_names=classes, name="measured")


def _asking(
    teacher: Teacher | TeacherEnsemble,
    batches: list[Batch],
    processor: Any,
    recipe: Recipe,
    device: torch.device,
    seconds: float,
) -> float:
    pixels = [batch.pixels.to(device) for batch in batches[:2]]

    def ask(number: int) -> None:
        with resolve(device, recipe.precision).autocast():
            teacher(pixels[number % len(pixels)], mean=processor.channel_mean, std=processor.channel_std)

    return _median_seconds(ask, device, seconds)


def _some_of(source: Source, count: int) -> Source:
    if len(source.labels) <= count:
        return source
    return Subset(source, np.linspace(0, len(source.labels) - 1, count).round().astype(np.int64))


def _per_image(batches: Iterable[Batch], into: list[Batch], seconds: float) -> float:
    """Draws batches for a time; returns the median seconds of an image."""
    taken = []
    began = now = time.perf_counter()
    for batch in itertools.islice(batches, _MOST_BATCHES):
        before, now = now, time.perf_counter()
        taken.append((now - before) / len(batch.pixels))
        into.append(batch)
        if len(taken) >= _LEAST_BATCHES and now - began > seconds:
            break
    return statistics.median(taken[1:] or taken)


def _median_seconds(work: Callable[[int], Any], device: torch.device, seconds: float) -> float:
    taken = []
    began = time.perf_counter()
    for number in range(_WARM_UP + _MOST_STEPS):
        before = time.perf_counter()
        work(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        taken.append(now - before)
        if len(taken) >= _WARM_UP + _LEAST_STEPS and now - began > seconds:
            break
    return statistics.median(taken[_WARM_UP:])


def _saving(step: TrainStep) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        save_state(Path(folder) / "state", State(step=1, tensors=step.tensors(), meta={}), Processes())
        return time.perf_counter() - began


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return peak_memory()

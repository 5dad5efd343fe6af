"""What PyTorch computes in distillation, written to files for the tests of Keras, which run without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from deit.core.config.config import DeiTConfig
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.models.deit import DeiTForImageClassificationWithTeacher
from deit.train.optimization import build_optimizer, learning_rate
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation, Optimizer, Schedule
from deit.train.tasks.distillation import DistillationTask

STEPS = 4
# Sizes and batch are those of `tests/keras/model_cases.py`, so that JAX compiles their operations once.
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "hard": {"kind": "hard", "weight": 0.5},
    "soft": {"kind": "soft", "temperature": 3.0, "weight": 0.1},
    "numel": {"kind": "soft", "temperature": 2.0, "weight": 0.7, "reduction": "numel"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 30, "warmup_epochs": 5},
    "no_warmup": {"epochs": 7, "warmup_epochs": 0, "min_lr": 0.0},
}
STEPS_PER_EPOCH, PEAK = 4, 1e-3


def write_training_cases(folder: Path) -> None:
    """Writes `training.npz`, the model directories `student` and `trained`, and the schedules' rates.

    Args:
        folder: Exists.
    """
    torch.manual_seed(0)
    config = DeiTConfig(**SIZES, image_size=16, patch_size=4, num_labels=5)
    student = DeiTForImageClassificationWithTeacher(config)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    processor = DeiTImageProcessor(size={"shortest_edge": 18}, crop_size=16)
    student.save_pretrained(folder / "student")
    processor.save_pretrained(folder / "student")
    pixels, answers = torch.randn(3, 3, 16, 16), 3 * torch.randn(3, 5)
    labels, mixed = torch.tensor([4, -100, 2]), torch.rand(3, 5).softmax(dim=1)
    arrays = {"pixels": pixels, "teacher_logits": answers, "labels": labels, "mixed": mixed}
    for name, settings in SETTINGS.items():
        task = DistillationTask(student, None, processor, distillation=Distillation(**settings))
        for kind, targets in (("labels", labels), ("mixed", mixed)):
            losses = task(pixels, targets, answers)
            arrays |= {f"{name}/{kind}/{part}": value.detach() for part, value in losses.items()}
    image = torch.rand(1, 3, 16, 16)
    arrays["image"] = image
    for side in (24, 9):
        arrays[f"image/{side}"] = F.interpolate(image, size=(side, side + 1), mode="bicubic", antialias=True)
    for name, schedule in SCHEDULES.items():
        recipe = Recipe(optimizer=Optimizer(lr=PEAK, reference_batch_size=0), schedule=Schedule(**schedule))
        steps = range(schedule["epochs"] * STEPS_PER_EPOCH)
        rates = [learning_rate(step, steps_per_epoch=STEPS_PER_EPOCH, recipe=recipe) for step in steps]
        arrays[f"rates/{name}"] = torch.tensor(rates, dtype=torch.float64)
    np.savez(folder / "training.npz", **{name: value.numpy() for name, value in arrays.items()})
    _train(student, processor, pixels, labels, answers)
    student.save_pretrained(folder / "trained")


def _train(student: Any, processor: Any, pixels: Any, labels: Any, answers: Any) -> None:
    """A few steps of the soft task, with the paper's decay and schedule, both strong enough to show a mistake."""
    task = DistillationTask(student, None, processor, distillation=Distillation(**SETTINGS["soft"]))
    settings = Optimizer(lr=PEAK, reference_batch_size=0, weight_decay=5.0, clip_grad=0.5)
    recipe = Recipe(optimizer=settings, schedule=Schedule(epochs=STEPS, warmup_epochs=1))
    optimizer = build_optimizer(student, settings, torch.device("cpu"))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps_per_epoch=1, recipe=recipe)
        optimizer.zero_grad()
        task(pixels, labels, answers)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip_grad)
        optimizer.step()

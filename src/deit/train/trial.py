"""A look at everything a training begins with, before the first image is read: that may take minutes."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from deit.core.scores.metrics import REGRESSION
from deit.runtime.devices import resolve
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.step import check_division
from deit.train.students.deit import Student, build_masked_student, build_student
from deit.train.students.freezing import freeze
from deit.train.teachers.batch_norm import check_batch_norm


def try_start(
    recipe: Recipe, device: str | torch.device | None, processes: Processes, *, masked: bool = False
) -> Student:
    """Builds a student as the training will; but for the classes, which the data has and nobody has read yet.

    Args:
        recipe: That of the training, with what it starts from.
        device: Of the training.
        processes: That work on it.
        masked: Whether the student is one for masked images, which needs no classes.

    Returns:
        The student. One for masked images is the one to train; any other one may be without values ("meta").

    Raises:
        ValueError: The device cannot be used, the batch cannot be divided, or see `build_student` and `freeze`.
        OSError: See `build_student`.
    """
    resolve(device)
    check_division(recipe, processes)
    if masked:
        student = build_masked_student(None, recipe)
    else:
        classes = ["value"] if recipe.data.problem_type == REGRESSION else ["0", "1"]
        own = not recipe.init and not recipe.student.startswith("timm/")
        with torch.device("meta") if own else nullcontext():  # no values are drawn, which takes seconds: it is another
            student = build_student(None, classes, recipe)  # student that will be trained
    check_batch_norm(student.model, recipe, processes.world_size)
    freeze(student.model, recipe.freeze)
    return student

"""Checks everything that a training starts from before images are read, because reading them may take minutes."""

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
    """Builds a student with placeholder classes, to find errors in the recipe before the data is read.

    Args:
        recipe: Recipe of the training.
        device: Device of the training.
        processes: Processes of the training.
        masked: True builds a student for masked images, which needs no classes.

    Returns:
        The student. A student for masked images can be trained. Other students are for checks only and may have no
        values (device "meta").

    Raises:
        ValueError: The device is not available, the batch cannot be divided, or `build_student` or `freeze` refuse.
        OSError: See `build_student`.
    """
    resolve(device)
    check_division(recipe, processes)
    if masked:
        student = build_masked_student(None, recipe)
    else:
        classes = ["value"] if recipe.data.problem_type == REGRESSION else ["0", "1"]
        own = not recipe.init and not recipe.student.startswith("timm/")
        with torch.device("meta") if own else nullcontext():  # skips drawing initial values, which takes seconds
            student = build_student(None, classes, recipe)
    check_batch_norm(student.model, recipe, processes.world_size)
    freeze(student.model, recipe.freeze)
    return student

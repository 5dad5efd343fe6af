"""Carries out a plan: trains the teacher, then the student, and records the time taken beside the forecast."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deit.core.errors import read_json
from deit.core.file_names import PLAN_NAME, RECIPE_NAME, TEACHER_NAME
from deit.core.files import write_json_atomically
from deit.core.writing import writing
from deit.data.sources import Data
from deit.planning.look import labelled_part, student_part
from deit.planning.plan import Plan
from deit.runtime.processes import current_processes
from deit.train.build_task import build_task
from deit.train.loop import fit
from deit.train.progress import FitResult, StepEvent
from deit.train.recipes.recipe import Recipe
from deit.train.run.folder import is_finished
from deit.train.students.deit import build_student
from deit.train.teachers.teacher import open_teachers

Fit = Callable[..., FitResult]


def fit_plan(
    plan: Plan,
    data: Data,
    *,
    out: str | Path,
    device: str | torch.device | None = None,
    resume: bool = False,
    on_step: Callable[[StepEvent], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> FitResult:
    """Trains as a plan says: its teacher into `out/teacher`, then the student into `out`.

    Writes `out/plan.json`: the reasons, the forecast, and at the end the time taken. `out/recipe.yaml` is the student's
    recipe with the name of the teacher, so that it repeats the student's training.

    Args:
        plan: From `plan`, or of an earlier run from `read_plan`.
        data: The images that the plan was made for.
        out: Folder of the run; new or empty, unless `resume`.
        device: See `fit`.
        resume: True goes on with the run in `out`, whether its teacher or its student was being trained.
        on_step: Called after every step, of the teacher's training too.
        on_epoch: Called with the metrics after every evaluation, likewise.

    Raises:
        FileExistsError: See `fit`; the other errors of `fit` and `build_task` as well.
    """
    run = partial(fit, on_step=on_step, on_epoch=on_epoch)
    return carry_out(plan, data, Path(out), run, device=device, resume=resume)


def carry_out(
    plan: Plan,
    data: Data,
    out: Path,
    run: Fit,
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    teachers: Any = None,
    on_part: Callable[[str, Recipe], None] | None = None,
) -> FitResult:
    """Trains as a plan says, with a function that does what `fit` does; see `fit_plan`.

    Args:
        plan: The plan.
        data: The images.
        out: Folder of the run.
        run: Called as `fit` for each training.
        device: See `fit`.
        resume: See `fit_plan`.
        teachers: Opened teachers of a recipe that names some.
        on_part: Called before each training with "teacher" or "student" and its recipe.
    """
    processes = current_processes()
    began = time.monotonic()

    def train(name: str, recipe: Recipe, part: Data, folder: Path, taught_by: Any = None) -> FitResult:
        if on_part is not None:
            on_part(name, recipe)
        student = build_student(None, part.train.classes, recipe)
        task = build_task(recipe, student, taught_by)
        if not resume:  # not before: what cannot be built leaves no folder behind
            processes.on_first(lambda: _write_plan(plan, out))
        goes_on = resume and (folder / RECIPE_NAME).is_file()
        return run(task, part, recipe, out=folder, device=device, resume=goes_on)

    recipe = plan.recipe
    taken: dict[str, float] = {}
    if plan.teacher_recipe is not None:
        folder = out / TEACHER_NAME
        if not is_finished(folder, plan.teacher_recipe):
            taken["teacher"] = train("teacher", plan.teacher_recipe, labelled_part(data), folder).seconds
        recipe = recipe.with_settings({"teacher": (str(folder),)})
        teachers = open_teachers([folder])
    elif recipe.teacher and teachers is None:
        teachers = open_teachers(list(recipe.teacher))
    result = train("student", recipe, student_part(data, recipe, taught=bool(recipe.teacher)), out, teachers)
    if not resume:
        taken |= {"student": result.seconds, "seconds": plan.forecast.planning + time.monotonic() - began}
        processes.on_first(lambda: _write_plan(plan, out, {name: round(value, 1) for name, value in taken.items()}))
    return result


def _write_plan(plan: Plan, out: Path, taken: dict[str, float] | None = None) -> None:
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json_atomically(out / PLAN_NAME, {**plan.to_dict(), **({} if taken is None else {"taken": taken})})


def read_plan(out: Path) -> Plan | None:
    """Returns the plan of the run in a folder, or None where there is none.

    Raises:
        DamagedFileError: The file is damaged.
    """
    path = out / PLAN_NAME
    return Plan.from_dict(read_json(path, "a plan")) if path.is_file() else None

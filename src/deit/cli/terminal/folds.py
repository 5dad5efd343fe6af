"""Runs a k-fold training for `deit train --folds`, and prints its out-of-fold scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deit.cli.terminal.console import counted, print_table, say
from deit.cli.terminal.settings import print_result, print_scores, run_fit
from deit.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deit.cli.terminal.planned import TrainCommand
    from deit.data.sources import Data
    from deit.planning.plan import Plan
    from deit.runtime.processes import Processes
    from deit.train.folds.fit_folds import FoldsResult
    from deit.train.recipes.recipe import Recipe

_MOST_CLASSES = 20  # of a table on a terminal


def check_folds(folds: int, teacher_cache: Path | None, out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Checks the options and the folder of a k-fold training before any image is read.

    Raises:
        OSError: See `check_folds_folder`.
        ValueError: There are fewer than two folds, or a teacher cache, which holds answers to one set of images; or see
            `check_folds_folder`.
    """
    from deit.train.folds.fit_folds import check_folds_folder

    if folds < 2:
        raise UserError(f"--folds must be at least 2: each is held out in turn. Received: {folds}.")
    if teacher_cache is not None:
        raise UserError(
            "--teacher-cache records the answers to one set of training images, and each fold has another. Leave out "
            "--teacher-cache or --folds."
        )
    check_folds_folder(out, recipe, folds, resume=resume)


def train_folds(
    build: Callable[[Data, Path], Any], images: Data, recipe: Recipe, processes: Processes, command: TrainCommand
) -> None:
    """Trains a model for each fold and one on all images, with progress, and prints the scores.

    Args:
        build: See `fit_folds`.
        images: To learn from.
        recipe: Of each training.
        processes: Those that share each step.
        command: What was typed; it names a number of folds.
    """
    from deit.train.folds.fit_folds import fit_folds

    assert command.folds is not None
    folds, out = command.folds, command.out

    def on_fold(number: int, data: Data) -> None:
        if processes.is_first:
            count = counted(len(data.train.labels), "training image")
            held_out = f"Fold {number} of {folds}: {count}, {len(data.val.labels)} held out."
            say(held_out if number else f"The last model: all {count}.")

    def fit_one(task: Any, data: Data, of_fold: Recipe, **options: Any) -> Any:
        options |= {"log": command.log, **command.how}
        return run_fit(task, data, of_fold, processes, **options)

    result = fit_folds(
        build, images, recipe, out=out, folds=folds, device=command.device, resume=command.resume, fit_one=fit_one,
        on_fold=on_fold,
    )  # fmt: skip
    if processes.is_first:
        _print_folds(result, folds, out)
        if result.final.scores:
            print_result(result.final)
        else:
            say(f"Model: {out}. It learned from all images, so none are left to score it; see out-of-fold above.")


def train_planned_folds(
    plan: Plan, images: Data, processes: Processes, command: TrainCommand, *, teachers: Any = None
) -> None:
    """Trains folds as a plan says; a teacher that it trains first is trained for each fold, on the images of that fold.

    Args:
        plan: Of one training.
        images: To learn from.
        processes: Those that share each step.
        command: What was typed; it names a number of folds.
        teachers: Opened teachers of a recipe that names some.
    """
    from deit.core.file_names import FOLDS_NAME, PLAN_NAME, RECIPE_NAME
    from deit.core.files import write_json_atomically
    from deit.planning.look import labelled_part, student_part
    from deit.train.build_task import build_task
    from deit.train.run.folder import is_finished
    from deit.train.students.deit import build_student
    from deit.train.teachers.teacher import open_teachers

    folds_folder = command.out / FOLDS_NAME

    def trained_teacher(data: Data, folder: Path) -> Path:
        recipe = plan.teacher_recipe
        assert recipe is not None
        own = folds_folder / "teachers" / (folder.name if folder.parent == folds_folder else "last")
        if not processes.on_first(lambda: is_finished(own, recipe)):
            if processes.is_first:
                say("Training its teacher.")
            begun = processes.on_first(lambda: (own / RECIPE_NAME).is_file())
            task = build_task(recipe, build_student(None, data.train.classes, recipe))
            options: dict[str, Any] = {"out": own, "device": command.device, "resume": begun, **command.how}
            run_fit(task, labelled_part(data), recipe, processes, **options)
        return own

    def build(data: Data, folder: Path) -> Any:
        recipe, opened = plan.recipe, teachers
        if processes.is_first and not (folds_folder / PLAN_NAME).is_file():
            write_json_atomically(folds_folder / PLAN_NAME, plan.to_dict())
        if plan.teacher_recipe is not None:
            own = trained_teacher(data, folder)
            recipe, opened = recipe.with_settings({"teacher": (str(own),)}), open_teachers([own])
        return build_task(recipe, build_student(None, data.train.classes, recipe), opened)

    taught = plan.teacher_recipe is not None or bool(plan.recipe.teacher)
    train_folds(build, student_part(images, plan.recipe, taught=taught), plan.recipe, processes, command)


def _print_folds(result: FoldsResult, folds: int, out: Path) -> None:
    from deit.core.scores.metrics import score_title
    from deit.core.scores.out_of_fold import ANSWERS_NAME, ANSWERS_TABLE_NAME, SCORES_NAME

    scores, choice = result.scores, result.choice
    print_scores("Out-of-fold", {"all folds": scores.scores})
    if 0 < len(scores.per_class) <= _MOST_CLASSES:
        rows = [
            (
                row["class"],
                str(row["images"]),
                _percent(row["accuracy"]),
                _ends(row["interval"]),
                _percent(row["precision"]),
            )
            for row in scores.per_class
        ]
        print_table("Classes, out-of-fold", ("class", "images", "found %", "95 % interval", "precision %"), rows)
    for note in scores.notes(folds):
        say(note)
    if choice is not None:
        by = score_title(choice.score).removesuffix(" %")
        say(
            f"The folds chose the end of the last model: after epoch {choice.epoch}, the best of "
            f"{choice.evaluations} evaluations by {by}. The answers to each fold are those of the epoch that "
            "the other folds chose."
        )
    say(f"Answers: {out / ANSWERS_NAME} and {ANSWERS_TABLE_NAME}, scores: {SCORES_NAME}.")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _ends(interval: list[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"

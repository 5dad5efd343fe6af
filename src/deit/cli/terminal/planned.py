"""Steps of `deit train` that planned and other trainings share, and those of a plan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.cli.terminal.console import counted, duration, say
from deit.cli.terminal.folds import check_folds, train_planned_folds
from deit.cli.terminal.settings import check_freeze, named_settings, open_on_first, print_result, run_fit
from deit.core.errors import UserError

if TYPE_CHECKING:
    from deit.data.sources import Data
    from deit.planning.plan import Forecast, Plan
    from deit.runtime.processes import Processes
    from deit.train.progress import StepEvent
    from deit.train.recipes.recipe import Recipe

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Options of the command line, except the settings of the recipe.

    Attributes:
        data: Place of the images.
        out: Folder of the run.
        student: Name of the student.
        init: Weights to start from.
        teachers: Names of teachers.
        teacher_cache: Folder of their outputs.
        image_size: Side of the input in pixels.
        device: Where to train.
        resume: Whether to go on with the run in `out`.
        minutes: Time that the training may take.
        plan_only: Whether to stop before the training.
        started: `time.monotonic()` at the start of the command.
        log: Service to log to; None for none.
        folds: Number of folds; None trains once.
        how: Options of `fit` that change no result.
    """

    data: str
    out: Path
    student: str | None
    init: str | None
    teachers: list[str]
    teacher_cache: Path | None
    image_size: int | None
    device: str
    resume: bool
    minutes: float | None
    plan_only: bool
    started: float
    log: str | None
    folds: int | None = None
    how: Mapping[str, Any] = field(default_factory=dict)


def is_planned(recipe: str | None, epochs: int | None, given: list[str], minutes: float | None) -> bool:
    """Whether the command plans the training: neither a recipe nor a number of epochs is named, or --recipe auto.

    Raises:
        UserError: --minutes and a number of epochs are given, or --minutes is no time.
    """
    names_epochs = "schedule.epochs" in named_settings(epochs, given)
    if minutes is not None and names_epochs:
        raise UserError("--minutes chooses the number of epochs. Received both. Pass --minutes or --epochs.")
    if minutes is not None and not 0 < minutes < 10**6:
        raise UserError(f"--minutes must be more than 0. Received: {minutes:g}.")
    return recipe == AUTO or (recipe is None and not names_epochs)


def resolved_recipe(command: TrainCommand, recipe: Recipe) -> Recipe:
    """Returns the recipe with student and weights filled in. Checks that they exist, before any image is read."""
    from deit.core.published import VARIANTS
    from deit.train.build_task import no_distillation_head
    from deit.train.students.start import resolved_start

    resolved = resolved_start(
        recipe,
        student=command.student,
        init=command.init,
        image_size=command.image_size,
        teachers=command.teachers,
        open_weights=True,
    )
    check_freeze(resolved)
    variant = VARIANTS.get(resolved.student)
    if resolved.teacher and (resolved.student.startswith("timm/") or (variant and not variant.distilled)):
        raise no_distillation_head(resolved.student)
    return resolved


def check_folders(command: TrainCommand, recipe: Recipe, *, resume: bool | None = None) -> None:
    """Checks that the run can be written to its folder, and the teacher's outputs to theirs.

    Args:
        command: What was typed.
        recipe: Of the run.
        resume: Whether a student's run goes on in the folder; None as the command says.

    Raises:
        OSError: See `check_run_folder`.
        ValueError: See `check_run_folder` and `refuse_inside_data`.
    """
    from deit.train.run.folder import check_run_folder, refuse_inside_data
    from deit.train.teachers.cache import is_cache

    refuse_inside_data(command.out, command.data, "--out")
    cache = command.teacher_cache
    if cache is not None and not is_cache(cache):
        refuse_inside_data(cache, command.data, "--teacher-cache")
    if command.folds is not None:
        check_folds(command.folds, cache, command.out, recipe, resume=command.resume)
        return
    check_run_folder(command.out, recipe, resume=command.resume if resume is None else resume)


def open_named_teachers(recipe: Recipe, cache: Path | None, *, given: bool) -> Any:
    """Opens the teachers, unless a cache already holds the outputs of the recipe's."""
    from deit.train.teachers.cache import is_cache
    from deit.train.teachers.teacher import open_teachers

    if not recipe.teacher or (cache is not None and not given and is_cache(cache)):
        return None
    try:
        return open_teachers(list(recipe.teacher))
    except OSError as error:
        if given:
            raise
        raise OSError(
            f"The recipe learns from the teacher {', '.join(recipe.teacher)}. {error} Or pass another with --teacher, "
            "or --set teacher= to learn from labels alone."
        ) from error


def recipe_of_run(out: Path, *, folds: bool) -> tuple[Recipe, Plan | None]:
    """Returns the recipe and the plan of the run in a folder, to go on with.

    Args:
        out: The folder.
        folds: Whether its folds go on, which have a recipe and a plan of their own.

    Raises:
        FileNotFoundError: There is no run.
        DamagedFileError: Its plan is damaged.
    """
    from deit.core.file_names import FOLDS_NAME, RECIPE_NAME
    from deit.planning.carry_out import read_plan
    from deit.train.recipes.recipe import Recipe

    folder = out / FOLDS_NAME if folds else out
    plan = read_plan(folder)
    if plan is not None:
        return plan.recipe, plan
    if not (folder / RECIPE_NAME).is_file():
        raise FileNotFoundError(f"{out} holds no run to resume. Leave out --resume to begin one.")
    return Recipe.load(folder / RECIPE_NAME), None


def print_plan(plan: Plan) -> None:
    """Prints the choice, its reasons and the forecast."""
    say(f"Plan for {plan.minutes:g} min:")
    for reason in plan.reasons:
        say(f"- {reason}")
    print_forecast(plan.forecast, taught=plan.teacher_recipe is not None)


def print_forecast(forecast: Forecast, *, taught: bool) -> None:
    """Prints how long a training will take, and its memory."""
    parts = [f"teacher {duration(forecast.teacher)}"] * taught
    parts += [f"student {duration(forecast.student)}", f"planning {duration(forecast.planning)}"]
    memory = f" Memory: about {forecast.memory / 1e9:.1f} GB." if forecast.memory else ""
    say(f"Forecast: {duration(forecast.seconds)} ({', '.join(parts)}).{memory}")


def run_plan(plan: Plan, images: Data, processes: Processes, command: TrainCommand, *, teachers: Any = None) -> None:
    """Trains as a plan says, with progress, and prints the result and the time taken beside the forecast."""
    from deit.planning.carry_out import carry_out
    from deit.planning.watch import ForecastWatch

    began = time.monotonic()
    expected = {"teacher": plan.forecast.teacher, "student": plan.forecast.student}
    watches: list[ForecastWatch] = []

    def on_part(name: str, recipe: Recipe) -> None:
        if processes.is_first:
            epochs = counted(recipe.schedule.epochs, "epoch")
            say(f"Training the {name}: {epochs}, about {duration(expected[name])}.")
        watches.append(ForecastWatch(expected[name], time.monotonic()))

    def watch(event: StepEvent) -> None:
        told = watches[-1].after(event.step, event.total_steps, time.monotonic())
        if told is not None:
            say(f"Note: {told}", err=True)

    def run(task: Any, data: Data, recipe: Recipe, **options: Any) -> Any:
        options |= {"watch": watch if processes.is_first else None, "log": command.log, **command.how}
        return run_fit(task, data, recipe, processes, **options)

    result = carry_out(
        plan, images, command.out, run, device=command.device, resume=command.resume, teachers=teachers, on_part=on_part
    )
    if processes.is_first:
        print_result(result)
        if not command.resume:
            taken = plan.forecast.planning + time.monotonic() - began
            say(f"Time: {duration(taken)}; the forecast was {duration(plan.forecast.seconds)}.")


def timed_recipe(command: TrainCommand, recipe: Recipe, images: Data, teachers: Any) -> Recipe:
    """Returns a recipe with the number of epochs that --minutes allow, and says so; without, the same recipe."""
    from deit.planning.make_plan import in_minutes

    if command.resume or (command.minutes is None and not command.plan_only):
        return recipe
    timed, forecast = in_minutes(
        recipe, images, command.minutes, device=command.device, started=command.started, teachers=teachers
    )
    if command.minutes is not None:
        say(f"{counted(timed.schedule.epochs, 'epoch')} in {command.minutes:g} min, by the speed measured here.")
    print_forecast(forecast, taught=False)
    return timed


def train_as_planned(command: TrainCommand, chosen: Recipe, settings: Mapping[str, Any], processes: Processes) -> None:
    """Plans a training, prints the plan, and trains unless only the plan was asked for."""
    from deit.core.file_names import PLAN_NAME
    from deit.planning.make_plan import plan
    from deit.runtime.devices import resolve
    from deit.train.open_images import open_images
    from deit.train.run.folder import run_exists
    from deit.train.trial import try_start

    resolved = processes.on_first(lambda: resolved_recipe(command, chosen))
    if (command.out / PLAN_NAME).is_file():
        raise run_exists(command.out)
    processes.on_first(lambda: check_folders(command, resolved))
    if command.teacher_cache is not None:
        raise UserError("--teacher-cache needs a training that can be repeated. Pass --recipe or --epochs as well.")
    resolve(command.device)
    if resolved.student or resolved.init:
        processes.on_each(lambda: try_start(resolved, command.device, processes))
    teachers = open_named_teachers(resolved, None, given=bool(command.teachers))
    images = open_on_first(processes, lambda update: open_images(command.data, resolved, taught=True, progress=update))
    wished = dict(settings)
    for name in ("student", "init", "image_size", "teacher"):
        if getattr(resolved, name):
            wished[name] = getattr(resolved, name)
    minutes = command.minutes
    if command.folds is not None and minutes is not None:  # k trainings on a share (k - 1) / k, and one on all
        minutes /= command.folds
    made = processes.on_first(
        lambda: plan(
            images, wished, minutes=minutes, device=command.device, started=command.started,
            processes=processes.world_size, teachers=teachers,
        )
    )  # fmt: skip
    if processes.is_first:
        print_plan(made)
        if command.folds is not None:
            total = made.forecast.planning + command.folds * (made.forecast.teacher + made.forecast.student)
            say(
                f"This is one training. With {command.folds} folds and the last model all take about {duration(total)}."
            )
    if command.plan_only:
        return
    if command.folds is not None:
        train_planned_folds(made, images, processes, command, teachers=teachers)
    else:
        run_plan(made, images, processes, command, teachers=teachers)


def go_on_as_planned(command: TrainCommand, plan: Plan, chosen: Recipe, processes: Processes) -> None:
    """Goes on with a planned training: of its teacher, or of its student."""
    import dataclasses

    from deit.core.file_names import RECIPE_NAME
    from deit.train.open_images import open_images

    begun = (command.out / RECIPE_NAME).is_file()
    if command.plan_only:
        print_plan(plan)
        return
    processes.on_first(lambda: check_folders(command, chosen, resume=begun))
    images = open_on_first(processes, lambda update: open_images(command.data, chosen, taught=True, progress=update))
    made = dataclasses.replace(plan, recipe=chosen)
    teachers = open_named_teachers(chosen, None, given=False)
    if command.folds is not None:
        train_planned_folds(made, images, processes, command, teachers=teachers)
        return
    run_plan(made, images, processes, command, teachers=teachers)

"""Turns the options of `deit train` and `deit pretrain` into a recipe, opens the images and runs the training."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from deit.cli.terminal.console import counted, print_table, progress_bar, report_found, say
from deit.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from deit.data.sources import Data
    from deit.runtime.processes import Processes
    from deit.train.progress import FitResult, StepEvent
    from deit.train.recipes.recipe import Recipe


def open_named_recipe(name_or_path: str, verb: str) -> Recipe:
    """Opens a recipe by file or name. A name must be one of the command's recipes.

    Raises:
        FileNotFoundError: See `open_recipe`.
        ValueError: See `open_recipe`; or the recipe is another command's.
    """
    from deit.train.recipes.catalog import is_recipe_file, named_recipe, open_recipe

    recipe = open_recipe(name_or_path)
    if not is_recipe_file(name_or_path) and named_recipe(name_or_path).verb != verb:
        other = named_recipe(name_or_path).verb
        raise UserError(f"{name_or_path} is a recipe of deit {other}. Received: deit {verb}. See `deit recipes`.")
    return recipe


def recipe_settings(
    recipe: Recipe, *, epochs: int | None, batch_size: int | None, seed: int | None, given: list[str]
) -> dict[str, Any]:
    """Returns the settings that options set; `given` holds the texts of --set. See `other_length` for --epochs."""
    from deit.train.recipes.fitting import other_length

    settings: dict[str, Any] = {}
    if epochs is not None:
        settings |= other_length(recipe, epochs)
    if batch_size is not None:
        settings["batch_size"] = batch_size
    if seed is not None:
        settings["seed"] = seed
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set needs NAME=VALUE. Received: {text!r}.")
        settings[name.strip()] = value.strip()
    return settings


def named_settings(epochs: int | None, given: list[str]) -> set[str]:
    """Returns the names of the settings that --epochs and --set set."""
    return {text.partition("=")[0].strip() for text in given} | ({"schedule.epochs"} if epochs is not None else set())


def named_start(student: str | None, init: str | None, given: list[str]) -> tuple[str | None, str | None]:
    """Returns student and weights, from --student and --init or from --set.

    Raises:
        ValueError: Both name one.
    """
    found = dict(text.partition("=")[::2] for text in given)
    names = {"student": student, "init": init}
    for name, option in names.items():
        setting = found.get(name, "").strip()
        if option and name in found:
            raise UserError(
                f"--{name} and --set {name}= say the same. Received both: {option} and {setting}. Pass one."
            )
        names[name] = option or setting or None
    return names["student"], names["init"]


def goes_on(out: Path, *, resume: bool, auto_resume: bool, folds: bool = False) -> bool:
    """Returns whether the command goes on with a run.

    Processes must all have asked before one of them begins the run, so before they work together.

    Args:
        out: Folder of the run.
        resume: Of the command line.
        auto_resume: Of the command line.
        folds: Whether it trains folds.
    """
    from deit.core.file_names import FOLDS_NAME, PLAN_NAME, RECIPE_NAME

    folder = out / FOLDS_NAME if folds else out
    return resume or (auto_resume and any((folder / name).is_file() for name in (RECIPE_NAME, PLAN_NAME)))


def resumed_settings(
    out: Path, recipe: Recipe, *, chosen: Iterable[str], free: Iterable[str] = (), timed: bool = False
) -> Recipe:
    """Returns the recipe of a resumed run: settings that were derived and not chosen stay as they were.

    Args:
        out: Folder of the run.
        recipe: Of the command line.
        chosen: Names of settings that were named there.
        free: Names of settings that were fitted to the data, or the run's own if it goes on.
        timed: Whether the run has as many epochs as its minutes allowed.

    Raises:
        ValueError: The run has another number of epochs, and none was named.
    """
    from deit.core.file_names import RECIPE_NAME
    from deit.train.recipes.fitting import other_length
    from deit.train.recipes.recipe import Recipe
    from deit.train.recipes.values import flat

    if not (out / RECIPE_NAME).is_file():
        return recipe
    began = Recipe.load(out / RECIPE_NAME)
    epochs = began.schedule.epochs
    if timed:
        recipe = recipe.with_settings(other_length(recipe, epochs))
    if "schedule.epochs" not in chosen and recipe.schedule.epochs != epochs:
        raise UserError(
            f"The run in {out} is one of {counted(epochs, 'epoch')}. Pass --epochs {epochs} to go on as it began, or "
            "the number to go on to."
        )
    own = flat(began.to_dict())
    names = [*free, *({"schedule.warmup_epochs"} - set(chosen))]
    return recipe.with_settings({name: own[name] for name in names})


def check_freeze(recipe: Recipe) -> None:
    """Rejects freezing random weights."""
    if recipe.freeze and not recipe.init:
        raise UserError(f"freeze={recipe.freeze} keeps weights as they are. Pass --init with weights to keep.")


def check_log(service: str | None) -> None:
    """Rejects a service for --log that is unknown or whose package is missing."""
    if service is not None:
        from deit.train.loggers.training_log import check_logger

        check_logger(service)


@contextmanager
def training_processes(device: str, deterministic: bool) -> Iterator[Processes]:
    """Connects the processes of a training, with --deterministic or without; see `process_group`."""
    import deit.train.trial  # noqa: F401  # before processes work together: an import that fails is then told once
    from deit.runtime.processes import process_group
    from deit.runtime.random_state import deterministic_kernels

    with deterministic_kernels(deterministic), process_group(device) as processes:
        yield processes


def check_steps(how: Mapping[str, Any], recipe: Recipe, processes: Processes) -> None:
    """Rejects options of `fit` for its steps that these processes or the recipe do not go with."""
    from deit.train.sharding.fully_sharded import check_sharding

    check_sharding(how["sharding"], recipe, processes, detect_anomaly=how["detect_anomaly"])


def command_facts(
    recipe: Recipe, student: str | None, init: str | None, how: Mapping[str, Any], *, resume: bool
) -> dict[str, Any]:
    """Returns what the command line of each process must say alike; folders may have other names on other machines."""
    from deit.train.recipes.values import flat

    same = {name: value for name, value in how.items() if name != "notice_file"}
    return {**flat(recipe.to_dict()), "student": student, "init": init, **same, "resume": resume}


def describe_start(recipe: Recipe, images: Data, processor: Any) -> list[str]:
    """Returns lines that describe the start of a training and its learning-rate schedule."""
    from deit.train.optimization import describe_rates

    height, width = processor.output_size
    steps = max(len(images.train.labels) // recipe.batch_size, 1)
    return [
        f"Input: {height} x {width} pixels. Starts from: {recipe.init or 'random weights'}.",
        *describe_rates(recipe, steps_per_epoch=steps),
    ]


def open_on_first(processes: Processes, open_images: Callable[[Any], Data]) -> Data:
    """Opens images on the first process, with a progress bar, and prints which files were skipped."""

    def opened() -> Data:
        with progress_bar("Checking images") as update:
            return open_images(update)

    images = processes.on_first(opened)
    if processes.is_first:
        report_found(images.used, images.skipped, images.ignored)
    return images


def run_fit(
    task: Any,
    images: Data,
    recipe: Recipe,
    processes: Processes,
    *,
    watch: Callable[[StepEvent], None] | None = None,
    log: str | None = None,
    **options: Any,
) -> FitResult:
    """Trains with a progress bar and a line for each evaluation. After Ctrl-C, prints how to resume.

    Args:
        task: See `fit`.
        images: See `fit`.
        recipe: See `fit`.
        processes: Processes of the training.
        watch: Called after every step, beside the progress bar.
        log: Service to log to, see `TrainingLog`; None for none.
        **options: Further arguments of `fit`.
    """
    from deit.runtime.signals import TrainingInterrupted
    from deit.train.loggers.training_log import TrainingLog
    from deit.train.loop import fit

    _say_precision(recipe, processes, out=options["out"], device=options["device"], resume=options["resume"])
    logging = nullcontext() if log is None else TrainingLog(log, out=options["out"], recipe=recipe)
    try:
        with logging as logged, progress_bar("Training", shown=processes.is_first) as update:

            def on_step(event: StepEvent) -> None:
                text = f"{event.images_per_second:.0f} images/s, epoch {event.epoch}, loss {event.loss:.3f}"
                update(event.step, event.total_steps, text)
                if watch is not None:
                    watch(event)
                if logged is not None:
                    logged.on_step(event)

            def on_epoch(row: dict[str, Any]) -> None:
                if processes.is_first:
                    _print_epoch(row)
                if logged is not None:
                    logged.on_epoch(row)

            return fit(task, images, recipe, on_step=on_step, on_epoch=on_epoch, **options)
    except TrainingInterrupted as stop:
        if processes.is_first:
            say(f"{stop} To go on, run the same command with --resume.", err=True)
        raise typer.Exit(stop.exit_code) from stop


def _say_precision(recipe: Recipe, processes: Processes, *, out: Path, device: str | None, resume: bool) -> None:
    """Prints what the precision "auto" stands for, unless nothing is left to train."""
    from deit.runtime.devices import AUTO, resolve
    from deit.train.run.folder import is_finished
    from deit.train.run.resumed import precision_of_run

    if recipe.precision != AUTO or (resume and is_finished(out, recipe)):
        return
    chosen = processes.on_first(lambda: precision_of_run(out, recipe, resolve(device).device, resume=resume))
    if processes.is_first:
        say(chosen.describe())


def _print_epoch(row: dict[str, Any]) -> None:
    loss = f"loss {row['train_loss']:.3f}" if "train_loss" in row else "no loss: all steps were skipped"
    parts = [f"epoch {row['epoch']}", loss]
    for prefix, label in (("val_", ""), ("ema_", "average ")):
        name = next((key for key in row if key.startswith(prefix)), None)
        if name == f"{prefix}top1":
            parts.append(f"{label or 'top-1 '}{row[name]:.2f} %")
        elif name is not None:
            what = "validation loss" if name == f"{prefix}loss" else name.removeprefix(prefix).replace("_", " ")
            parts.append(f"{label}{what} {row[name]:.4g}")
    say(", ".join(parts))


def print_result(result: FitResult) -> None:
    """Prints the scores, how certain they are, and the path of the model."""
    if result.scores:
        print_scores("Validation", result.scores)
    else:
        say("There are no validation images: nothing is scored.")
    for note in result.notes:
        say(note)
    say(f"Model: {result.out}  (curves: {result.out / 'curves.png'})")


def print_scores(title: str, heads: dict[str, Any]) -> None:
    """Prints a table of scores by head, with the 95 % interval of each share of images and the number of images."""
    from deit.core.scores.intervals import score_intervals

    first = next(iter(heads.values()))
    titles = {"top1": "top-1 %", "top5": "top-5 %"}
    main = next(iter(score_intervals(first)), None)  # one interval in a table: a terminal has 80 columns
    columns = ["head"]
    for name in first.as_dict():
        columns += [titles.get(name, name.replace("_", " ")), *(["95 % interval"] if name == main else [])]
    rows = []
    for head, scores in heads.items():
        cells = [head]
        for name, value in scores.as_dict().items():
            cells.append(f"{value:.2f}" if name in titles else f"{value:.3f}")
            if name == main:
                low, high = score_intervals(scores)[name]
                cells.append(f"{low:.1f} to {high:.1f}")
        rows.append((*cells, str(scores.images)))
    print_table(title, (*columns, "images"), rows)

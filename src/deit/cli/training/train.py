"""`deit train`: trains a classifier on labeled images and writes a model directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import counted, reports_errors, say, say_lines
from deit.cli.terminal.folds import train_folds
from deit.cli.terminal.parameters import (
    AutoResume,
    BatchSize,
    CacheSize,
    DetectAnomaly,
    Deterministic,
    Device,
    Epochs,
    GradientCheckpointing,
    ImageSize,
    InitialWeights,
    NoticeFile,
    Resume,
    RunFolder,
    Seed,
    Sharding,
    path,
    place,
    use_cache_size,
)
from deit.cli.terminal.planned import (
    TrainCommand,
    check_folders,
    go_on_as_planned,
    is_planned,
    open_named_teachers,
    recipe_of_run,
    resolved_recipe,
    timed_recipe,
    train_as_planned,
)
from deit.cli.terminal.settings import (
    check_log,
    check_steps,
    command_facts,
    describe_start,
    goes_on,
    named_settings,
    named_start,
    open_named_recipe,
    open_on_first,
    print_result,
    recipe_settings,
    resumed_settings,
    run_fit,
    training_processes,
)
from deit.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deit.data.sources import Data
    from deit.planning.plan import Plan
    from deit.runtime.processes import Processes
    from deit.train.recipes.recipe import Recipe
    from deit.train.students.deit import Student

DEFAULT_STUDENT = "deit-tiny-distilled-patch16-224"

TrainingImages = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Labeled images: a folder with one sub-folder per class, Parquet, CSV or tar files, or a folder of "
        "datasets.save_to_disk. See docs/data.md.",
        parser=place,
    ),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL",
        help="Teacher to distill from: model directory, hub name, timm/NAME or torchvision/NAME. Repeat the option to "
        "average several.",
        show_default="that of the recipe, or none",
        parser=place,
    ),
]
StudentName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Architecture to train: a DeiT or ViT by name, or timm/NAME. [default: {DEFAULT_STUDENT}]",
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder to record the teacher's outputs in, or to reuse them from.", parser=path
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        metavar="RECIPE",
        help="Training recipe: a name that deit recipes lists, or a YAML file. auto chooses one for the images, this "
        "machine and --minutes.",
        show_default="auto without --epochs, that of the DeiT paper with it",
        parser=place,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Time that the training may take; the number of epochs is chosen by the measured speed.",
        show_default="chosen by the number of images, or the epochs of the recipe",
    ),
]
PlanOnly = Annotated[
    bool, typer.Option("--plan", help="Print the chosen training, the reasons and the forecast, and stop.")
]
LabelCount = Annotated[
    str | None,
    typer.Option(
        metavar="COUNT",
        help="Number of labels to use: 10 of each class, or a share such as 1%.",
        show_default="all",
    ),
]
Frozen = Annotated[
    str | None,
    typer.Option(
        metavar="PART",
        help="Weights to keep fixed: trunk (linear probe) or blocks:N (the first N blocks).",
        show_default="none",
    ),
]
Exclude = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="List of images to leave out or relabel: fix.csv of deit inspect, whose column action you may edit.",
        show_default="none",
        parser=path,
    ),
]
LoggerName = Annotated[
    str | None,
    typer.Option(metavar="SERVICE", help="Also log to tensorboard, trackio or wandb.", show_default="none"),
]
Folds = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Train and score K times, with another part of the images held out each time; then train on all. Takes "
        "about K times as long.",
        show_default="none",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Set any setting of the recipe, such as optimizer.weight_decay=0.1. Can be repeated.",
    ),
]


@reports_errors
def train(
    data: TrainingImages,
    out: RunFolder,
    student: StudentName = None,
    init: InitialWeights = None,
    teacher: Teachers = None,
    teacher_cache: CacheFolder = None,
    recipe: RecipeName = None,
    minutes: Minutes = None,
    plan: PlanOnly = False,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    image_size: ImageSize = None,
    labels: LabelCount = None,
    freeze: Frozen = None,
    folds: Folds = None,
    exclude: Exclude = None,
    set_: Settings = None,
    log: LoggerName = None,
    device: Device = "auto",
    sharding: Sharding = "none",
    gradient_checkpointing: GradientCheckpointing = False,
    detect_anomaly: DetectAnomaly = False,
    deterministic: Deterministic = False,
    cache_size: CacheSize = None,
    resume: Resume = False,
    auto_resume: AutoResume = False,
    notice_file: NoticeFile = None,
) -> None:
    """Train a classifier from labels, or from labels and a teacher.

    Without --recipe and --epochs, chooses the training: student, image size, batch, epochs, views and teacher, by the
    images, the weights at hand, this machine and --minutes. Prints the reasons. Whatever you set is kept.

    On N GPUs: deit --processes N train DATA ... On several machines: torchrun ... -m deit train DATA ...
    """
    started = time.monotonic()
    use_cache_size(cache_size)
    check_log(log)
    resume = goes_on(out, resume=resume, auto_resume=auto_resume, folds=folds is not None)
    planned = is_planned(recipe, epochs, set_ or [], minutes)
    student, init = named_start(student, init, set_ or [])
    found = recipe_of_run(out, folds=folds is not None) if planned and resume else None
    given = found[0] if found else _open_recipe(None if planned else recipe, init, planned=planned)
    settings = recipe_settings(given, epochs=epochs, batch_size=batch_size, seed=seed, given=set_ or [])
    settings |= _label_settings(labels) | _exclusion_settings(exclude) | ({"freeze": freeze} if freeze else {})
    chosen = given.with_settings(settings)
    if resume:
        chosen = resumed_settings(out, chosen, chosen=named_settings(epochs, set_ or []), timed=minutes is not None)
    how = {"sharding": sharding, "gradient_checkpointing": gradient_checkpointing}
    how |= {"detect_anomaly": detect_anomaly, "notice_file": notice_file}
    command = TrainCommand(
        data=data, out=out, student=student, init=init, teachers=teacher or [], teacher_cache=teacher_cache,
        image_size=image_size, device=device, resume=resume, minutes=minutes, plan_only=plan, started=started, log=log,
        folds=folds, how=how,
    )  # fmt: skip
    with training_processes(device, deterministic) as processes:
        processes.on_first(lambda: check_steps(how, chosen, processes))
        _choose_and_train(command, chosen, processes, found and found[1], settings if planned and not found else None)


def _choose_and_train(
    command: TrainCommand,
    chosen: Recipe,
    processes: Processes,
    plan: Plan | None,
    settings: Mapping[str, Any] | None,
) -> None:
    """Goes on with a plan; or makes one around settings; or trains as the recipe says."""
    processes.must_agree(command_facts(chosen, command.student, command.init, command.how, resume=command.resume))
    if plan is not None:
        go_on_as_planned(command, plan, chosen, processes)
    elif settings is not None:
        train_as_planned(command, chosen, settings, processes)
    else:
        _train(command, chosen, processes)


def _train(command: TrainCommand, chosen: Recipe, processes: Processes) -> None:
    """Trains by a recipe that is given."""
    from deit.train.folds.fit_folds import undivided
    from deit.train.open_images import open_images
    from deit.train.run.folder import is_finished
    from deit.train.trial import try_start

    out, cache, device, resume = command.out, command.teacher_cache, command.device, command.resume
    resolved = processes.on_first(lambda: resolved_recipe(command, chosen))
    processes.on_first(lambda: check_folders(command, resolved))
    processes.on_each(lambda: try_start(resolved, device, processes))
    teachers = open_named_teachers(resolved, cache, given=bool(command.teachers))
    taught = bool(resolved.teacher) or cache is not None
    images = open_on_first(
        processes, lambda update: open_images(command.data, resolved, taught=taught, progress=update)
    )
    recipe = processes.on_first(lambda: timed_recipe(command, resolved, images, teachers))
    built, task = processes.on_each(lambda: _build(teachers, images, recipe, cached=cache is not None))
    processes.on_first(lambda: _check_cache(cache, task, images, recipe, processes))
    if processes.is_first and not (resume and is_finished(out, recipe)):
        shown = images if command.folds is None else undivided(images)
        _print_plan(shown, recipe, built, taught=taught, teacher_cache=cache, asked=bool(teachers))
    if command.plan_only:
        return
    if command.folds is not None:
        train_folds(
            lambda data, folder: _build(teachers, data, recipe, cached=False)[1], images, recipe, processes, command
        )
        return
    options: dict[str, Any] = {"out": out, "device": device, "resume": resume, "teacher_cache": cache}
    options |= {"log": command.log, **command.how}
    result = run_fit(task, images, recipe, processes, **options)
    if processes.is_first:
        print_result(result)


def _open_recipe(name_or_path: str | None, init: str | None, *, planned: bool) -> Recipe:
    from deit.train.recipes.fitting import NO_WARMUP
    from deit.train.recipes.recipe import Recipe

    if planned:
        return Recipe().with_settings(NO_WARMUP)
    recipe = Recipe() if name_or_path is None else open_named_recipe(name_or_path, "train")
    needs_one = not (recipe.student or recipe.init or init)
    return recipe.with_settings({"student": DEFAULT_STUDENT}) if needs_one else recipe


def _check_cache(folder: Path | None, task: Any, images: Data, recipe: Recipe, processes: Processes) -> None:
    from deit.train.teachers.cache import refuse_other_cache

    if folder is None:
        return
    refuse_other_cache(
        folder,
        teacher=task.teacher,
        processor=task.processor,
        recipe=recipe,
        num_images=len(images.train.labels),
        num_classes=len(images.train.classes),
        processes=processes,
    )


def _cache_line(folder: Path) -> str:
    from deit.train.teachers.cache import is_cache

    if is_cache(folder):
        return f"Teacher cache: {folder} holds answers, which are read; what is missing there is asked and recorded."
    return f"Teacher cache: {folder} is new, the teacher's answers are recorded there."


def _label_settings(text: str | None) -> dict[str, Any]:
    """Returns the settings for --labels: "10" or "1%"."""
    if text is None:
        return {}
    number = text.strip().removesuffix("%").strip()
    try:
        if not text.strip().endswith("%"):
            settings: dict[str, Any] = {"data.labels_per_class": int(number)}
        else:
            settings = {"data.label_fraction": float(number) / 100}
    except ValueError:
        raise UserError(f"--labels must be like 10 (of each class) or 1%. Received: {text!r}.") from None
    if float(number) <= 0:
        raise UserError(f"--labels must be more than none. Received: {text!r}.")
    return settings


def _exclusion_settings(exclude: Path | None) -> dict[str, Any]:
    """Returns the settings for --exclude: the file and the hash of its content."""
    if exclude is None:
        return {}
    from deit.data.exclusions import hash_of_list

    return {"data.exclude": str(exclude), "data.exclude_hash": hash_of_list(exclude)}


def _build(teachers: Any, images: Data, recipe: Recipe, *, cached: bool) -> tuple[Student, Any]:
    from deit.train.build_task import build_task
    from deit.train.students.deit import build_student

    built = build_student(None, images.train.classes, recipe)
    return built, build_task(recipe, built, teachers, cached=cached)


def _student_name(recipe: Recipe, built: Student) -> str:
    """Returns the name of the variant that is trained; of the class where none has its sizes."""
    from deit.core.variants import same_architecture

    config = getattr(built.model, "config", None)
    return recipe.student or (config and same_architecture(config.to_dict())) or type(built.model).__name__


def _print_plan(
    images: Data, recipe: Recipe, built: Student, *, taught: bool, teacher_cache: Path | None, asked: bool
) -> None:
    from deit.data.few_labels import count_unlabelled, labelled_again

    count, unlabeled = len(images.train.labels), count_unlabelled(images.train)
    again = len(labelled_again(images.train, recipe.data.labelled_share))
    few = ""
    if unlabeled:
        shown = (count - unlabeled + again) / (count + again)
        few = f" ({count - unlabeled} with a label, {shown:.0%} of what is shown)"
    teacher = ", ".join(recipe.teacher) or "none"
    if teacher_cache is not None and not asked:
        teacher = f"what {teacher_cache} recorded"
    lines = [
        f"{count} training{few} and {counted(len(images.val.labels), 'validation image')}, "
        f"{counted(len(images.train.classes), 'class', 'classes')}. "
        f"Student: {_student_name(recipe, built)}. Teacher: {teacher}.",
        *([] if images.exclusion is None else [images.exclusion.describe()]),
        *describe_start(recipe, images, built.processor),
    ]
    if taught:
        how = recipe.distillation
        softly = f", temperature {how.temperature:g}" if how.kind != "hard" else ""
        lines.append(f"Distillation: {how.kind}{softly}, weight {how.weight:g}.")
    if recipe.pseudo_labels.weight:
        guessed = recipe.pseudo_labels
        mixed = ", mixed by confidence" if guessed.mixup else ""
        lines.append(f"Pseudo-labels: weight {guessed.weight:g}, threshold {guessed.threshold:g}{mixed}.")
    if teacher_cache is not None:
        lines.append(_cache_line(teacher_cache))
    for line in lines:
        say(line)
    if built.report is not None:
        say_lines(built.report.describe())

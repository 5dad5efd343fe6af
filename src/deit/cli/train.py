"""`deit train`: trains a classifier on labeled images and writes a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import counted, reports_errors, say, say_lines
from deit.cli.terminal.parameters import (
    BatchSize,
    Device,
    Epochs,
    ImageSize,
    InitialWeights,
    Resume,
    RunFolder,
    Seed,
    path,
    place,
)
from deit.cli.terminal.settings import (
    check_freeze,
    describe_start,
    named_settings,
    named_start,
    open_named_recipe,
    open_on_first,
    print_result,
    recipe_settings,
    resumed_settings,
    run_fit,
)
from deit.core.errors import UserError

if TYPE_CHECKING:
    from deit.data.sources import Data
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
        help="Training recipe: a name that deit recipes lists, or a YAML file.",
        show_default="that of the DeiT paper",
        parser=place,
    ),
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
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    image_size: ImageSize = None,
    labels: LabelCount = None,
    freeze: Frozen = None,
    set_: Settings = None,
    device: Device = "auto",
    resume: Resume = False,
) -> None:
    """Train a classifier from labels, or from labels and a teacher.

    On N GPUs: deit --processes N train DATA ... On several machines: torchrun ... -m deit train DATA ...
    """
    from deit.runtime.processes import process_group
    from deit.train.open_images import open_images
    from deit.train.run.folder import is_finished
    from deit.train.trial import try_start

    student, init = named_start(student, init, set_ or [])
    given = _open_recipe(recipe, init)
    settings = recipe_settings(given, epochs=epochs, batch_size=batch_size, seed=seed, given=set_ or [])
    chosen = given.with_settings(settings | _label_settings(labels) | ({"freeze": freeze} if freeze else {}))
    if resume:
        chosen = resumed_settings(out, chosen, chosen=named_settings(epochs, set_ or []))
    with process_group(device) as processes:
        resolved = processes.on_first(lambda: _resolved(chosen, student, init, image_size, teacher or []))
        processes.on_first(lambda: _check_folders(data, out, teacher_cache, resolved, resume=resume))
        processes.on_each(lambda: try_start(resolved, device, processes))
        teachers = _open_teachers(resolved, teacher_cache, given=bool(teacher))
        taught = bool(resolved.teacher) or teacher_cache is not None
        images = open_on_first(processes, lambda update: open_images(data, resolved, taught=taught, progress=update))
        built, task = processes.on_each(lambda: _build(teachers, images, resolved, cached=teacher_cache is not None))
        processes.on_first(lambda: _check_cache(teacher_cache, task, images, resolved, processes))
        if processes.is_first and not (resume and is_finished(out, resolved)):
            _print_plan(images, resolved, built, taught=taught, teacher_cache=teacher_cache, asked=bool(teachers))
        result = run_fit(
            task, images, resolved, processes, out=out, device=device, resume=resume, teacher_cache=teacher_cache
        )
        if processes.is_first:
            print_result(result)


def _open_recipe(name_or_path: str | None, init: str | None) -> Recipe:
    from deit.train.recipes.recipe import Recipe

    recipe = Recipe() if name_or_path is None else open_named_recipe(name_or_path, "train")
    needs_one = not (recipe.student or recipe.init or init)
    return recipe.with_settings({"student": DEFAULT_STUDENT}) if needs_one else recipe


def _resolved(
    recipe: Recipe, student: str | None, init: str | None, image_size: int | None, teachers: list[str]
) -> Recipe:
    """Returns the recipe with student and weights filled in. Checks that they exist, before any image is read."""
    from deit.core.published import VARIANTS
    from deit.train.build_task import no_distillation_head
    from deit.train.students.start import resolved_start

    resolved = resolved_start(
        recipe, student=student, init=init, image_size=image_size, teachers=teachers, open_weights=True
    )
    check_freeze(resolved)
    variant = VARIANTS.get(resolved.student)
    if resolved.teacher and (resolved.student.startswith("timm/") or (variant and not variant.distilled)):
        raise no_distillation_head(resolved.student)
    return resolved


def _check_folders(data: str, out: Path, teacher_cache: Path | None, recipe: Recipe, *, resume: bool) -> None:
    from deit.train.run.folder import check_run_folder, refuse_inside_data
    from deit.train.teachers.cache import is_cache

    refuse_inside_data(out, data, "--out")
    if teacher_cache is not None and not is_cache(teacher_cache):
        refuse_inside_data(teacher_cache, data, "--teacher-cache")
    check_run_folder(out, recipe, resume=resume)


def _open_teachers(recipe: Recipe, cache: Path | None, *, given: bool) -> Any:
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
        *describe_start(recipe, images, built.processor),
    ]
    if taught:
        how = recipe.distillation
        softly = f", temperature {how.temperature:g}" if how.kind != "hard" else ""
        lines.append(f"Distillation: {how.kind}{softly}, weight {how.weight:g}.")
    if teacher_cache is not None:
        lines.append(_cache_line(teacher_cache))
    for line in lines:
        say(line)
    if built.report is not None:
        say_lines(built.report.describe())

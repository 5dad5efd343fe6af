"""`deit train`: from images with labels to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.console import reports_errors, say, say_lines
from deit.cli.settings import check_freeze, open_named_recipe, open_on_first, print_result, recipe_settings, run_fit

if TYPE_CHECKING:
    from deit.data.sources import Data
    from deit.train.recipe import Recipe
    from deit.train.students import Student

DEFAULT_STUDENT = "deit-tiny-distilled-patch16-224"


@reports_errors
def train(
    data: Annotated[
        str, typer.Argument(help="Folder of images, Parquet, CSV, saved data set or tar shards; see docs/data.md.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run and the model; new or empty.")],
    student: Annotated[
        str | None,
        typer.Option(
            help=f"A variant ({DEFAULT_STUDENT} without one), or timm/NAME for a teacher-to-be.", show_default=False
        ),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to begin with: model directory, hub name or weight file.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Model directory, timm/NAME or torchvision/NAME; several are averaged. Without: labels."),
    ] = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(help="Folder that records what the teacher says, or holds it from an earlier run.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name (see deit recipes) or YAML file; the paper's without one.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step, over all processes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels; the variant's without.")] = None,
    labels: Annotated[str | None, typer.Option(help="Learn from fewer labels: 10 of each class, or 1%.")] = None,
    freeze: Annotated[str | None, typer.Option(help="Keep the weights of: trunk (linear probe) or blocks:N.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, such as optimizer.weight_decay=0.1.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
) -> None:
    """Train a classifier, from labels alone or with a teacher as well.

    On several GPUs or machines: torchrun --nproc-per-node N -m deit train DATA ...
    """
    from deit.data.distributed import process_group
    from deit.train.run_folder import check_run_folder

    given, its_student = _open_recipe(recipe)
    settings = recipe_settings(given, epochs=epochs, batch_size=batch_size, seed=seed, given=set_ or [])
    resolved = given.with_settings(settings | _label_settings(labels) | ({"freeze": freeze} if freeze else {}))
    student = _checked_student(student, its_student, init, resolved)
    with process_group(device) as processes:
        processes.on_first(lambda: check_run_folder(out, resolved, resume=resume))
        taught = bool(teacher) or teacher_cache is not None
        images = open_on_first(processes, lambda progress: _open_images(data, resolved, progress, taught=taught))
        built, task = _build_task(student, init, teacher or [], teacher_cache, images, resolved, image_size)
        if processes.is_first:
            _print_plan(images, resolved, student, built, teacher or [f"what {teacher_cache} recorded"] * taught)
        result = run_fit(
            task, images, resolved, processes, out=out, device=device, resume=resume, teacher_cache=teacher_cache
        )
        if processes.is_first:
            print_result(result)


def _open_recipe(name_or_path: str | None) -> tuple[Recipe, str]:
    from deit.train.recipe import Recipe

    if name_or_path is None:
        return Recipe(), DEFAULT_STUDENT
    return open_named_recipe(name_or_path, DEFAULT_STUDENT)


def _checked_student(student: str | None, of_recipe: str, init: str | None, recipe: Recipe) -> str | None:
    check_freeze(recipe, init)
    return of_recipe if student is None and init is None else student


def _label_settings(text: str | None) -> dict[str, Any]:
    """Turns "10" or "1%" into settings."""
    if text is None:
        return {}
    number = text.strip().removesuffix("%").strip()
    try:
        if not text.strip().endswith("%"):
            settings: dict[str, Any] = {"data.labels_per_class": int(number)}
        else:
            settings = {"data.label_fraction": float(number) / 100}
    except ValueError:
        raise ValueError(f"--labels must be like 10 (of each class) or 1%. Received: {text!r}.") from None
    if float(number) <= 0:
        raise ValueError(f"--labels must be more than none. Received: {text!r}.")
    return settings


def _open_images(data: str, recipe: Recipe, progress: Any, *, taught: bool) -> Data:
    from deit.data.few_labels import limited, with_fewer_labels
    from deit.data.opening import open_data

    options = recipe.data
    opened = open_data(
        data,
        val_fraction=options.val_fraction,
        seed=0,  # the same division for every seed, so that runs can be compared
        strict=options.strict,
        image_column=options.image_column,
        label_column=options.label_column,
        problem_type=options.problem_type,
        label_separator=options.label_separator,
        value_range=options.range,
        keep_unlabelled=taught,
        progress=progress,
    )
    return with_fewer_labels(
        limited(opened, train=options.max_train_images, val=options.max_val_images),
        labels_per_class=options.labels_per_class,
        label_fraction=options.label_fraction,
        seed=options.label_seed,
        keep_others=taught,
    )


def _build_task(
    student: str | None,
    init: str | None,
    teachers: list[str],
    teacher_cache: Path | None,
    images: Data,
    recipe: Recipe,
    image_size: int | None,
) -> tuple[Student, Any]:
    from deit.train.students import build_student
    from deit.train.tasks import ClassificationTask, DistillationTask
    from deit.train.teacher import match_teacher, open_teachers

    classes = images.train.classes
    built = build_student(student, classes, recipe, image_size=image_size, init=init)
    if not teachers and teacher_cache is None:
        return built, ClassificationTask(
            built.model,
            built.processor,
            label_smoothing=recipe.label_smoothing,
            loss=recipe.loss,
            problem_type=images.problem_type,
        )
    if images.problem_type != "single_label_classification":
        raise ValueError(
            f"Distillation is for one class per image. Received: data.problem_type={images.problem_type}. "
            "Leave out --teacher."
        )
    if not hasattr(built.model, "distillation_classifier"):
        raise ValueError(
            f"Distillation needs a student with a distillation head. Received: {student or init}. Pass a distilled "
            f"variant as --student, such as {DEFAULT_STUDENT}; --init may be an undistilled checkpoint of its size."
        )
    opened = None
    if teachers:
        opened = match_teacher(open_teachers(teachers), classes, built.processor.output_size)
    return built, DistillationTask(
        built.model,
        opened,
        built.processor,
        distillation=recipe.distillation,
        label_smoothing=recipe.label_smoothing,
        loss=recipe.loss,
    )


def _print_plan(images: Data, recipe: Recipe, student: str | None, built: Student, teachers: list[str]) -> None:
    from deit.data.few_labels import count_unlabelled, labelled_again

    count, unlabelled = len(images.train.labels), count_unlabelled(images.train)
    again = len(labelled_again(images.train, recipe.data.labelled_share))
    few = ""
    if unlabelled:
        shown = (count - unlabelled + again) / (count + again)
        few = f" ({count - unlabelled} with a label, {shown:.0%} of what is shown)"
    say(
        f"{count} training{few} and {len(images.val.labels)} validation images, "
        f"{len(images.train.classes)} classes. Student: {student or type(built.model).__name__}. "
        f"Teacher: {', '.join(teachers) or 'none'}.",
    )
    if built.report is not None:
        say_lines(built.report.describe())

"""`deit train`: from images with labels to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.console import INTERRUPTED, OUT, print_table, progress_bar, report_skipped, reports_errors

if TYPE_CHECKING:
    from deit.data.distributed import Processes
    from deit.data.sources import Data
    from deit.train.loop import FitResult, StepEvent
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
    lr: Annotated[float | None, typer.Option(help="Peak learning rate, taken as it is.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels; the variant's without.")] = None,
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
    resolved = given.with_settings(_settings(given, epochs, batch_size, lr, seed, set_ or []))
    if student is None and init is None:
        student = its_student
    with process_group(device) as processes:
        processes.on_first(lambda: check_run_folder(out, resolved, resume=resume))
        images = _open_images(data, resolved, processes)
        built, task = _build_task(student, init, teacher or [], teacher_cache, images, resolved, image_size)
        if processes.is_first:
            recorded = [f"what {teacher_cache} recorded"] if teacher_cache is not None else []
            _print_plan(images, student, built, teacher or recorded)
        result = _fit(
            task, images, resolved, processes, out=out, device=device, resume=resume, teacher_cache=teacher_cache
        )
        if processes.is_first:
            _print_result(result)


def _open_recipe(name_or_path: str | None) -> tuple[Recipe, str]:
    """Returns a recipe, and the student it is for."""
    from deit.train.recipe import Recipe
    from deit.train.recipes import named_recipe, open_recipe

    if name_or_path is None:
        return Recipe(), DEFAULT_STUDENT
    recipe = open_recipe(name_or_path)
    return recipe, DEFAULT_STUDENT if Path(name_or_path).is_file() else named_recipe(name_or_path).student


def _settings(
    recipe: Recipe, epochs: int | None, batch_size: int | None, lr: float | None, seed: int | None, given: list[str]
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if epochs is not None:
        settings["schedule.epochs"] = epochs
        settings["schedule.warmup_epochs"] = min(recipe.schedule.warmup_epochs, epochs)
    if batch_size is not None:
        settings["batch_size"] = batch_size
    if lr is not None:
        settings.update({"optimizer.lr": lr, "optimizer.reference_batch_size": 0})
    if seed is not None:
        settings["seed"] = seed
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"--set needs NAME=VALUE. Received: {text!r}.")
        settings[name.strip()] = value.strip()
    return settings


def _open_images(data: str, recipe: Recipe, processes: Processes) -> Data:
    from deit.data.opening import open_data

    def open_on_first() -> Data:
        with progress_bar("Checking images") as update:
            return open_data(
                data,
                val_fraction=recipe.data.val_fraction,
                seed=0,  # the same division for every seed, so that runs can be compared
                strict=recipe.data.strict,
                image_column=recipe.data.image_column,
                label_column=recipe.data.label_column,
                problem_type=recipe.data.problem_type,
                progress=update,
            )

    images = processes.on_first(open_on_first)
    if processes.is_first:
        report_skipped(images.skipped)
    return images


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


def _fit(task: Any, images: Data, recipe: Recipe, processes: Processes, **options: Any) -> FitResult:
    from deit.train.loop import TrainingInterrupted, fit

    try:
        with progress_bar("Training", shown=processes.is_first) as update:

            def on_step(event: StepEvent) -> None:
                text = f"{event.images_per_second:.0f} images/s, epoch {event.epoch}, loss {event.loss:.3f}"
                update(event.step, event.total_steps, text)

            on_epoch = _print_epoch if processes.is_first else None
            return fit(task, images, recipe, on_step=on_step, on_epoch=on_epoch, **options)
    except TrainingInterrupted as stop:
        if processes.is_first:
            typer.echo(f"{stop} To go on, run the same command with --resume.", err=True)
        raise typer.Exit(INTERRUPTED) from stop


def _print_plan(images: Data, student: str | None, built: Student, teachers: list[str]) -> None:
    OUT.print(
        f"{len(images.train.labels)} training and {len(images.val.labels)} validation images, "
        f"{len(images.train.classes)} classes. Student: {student or type(built.model).__name__}. "
        f"Teacher: {', '.join(teachers) or 'none'}.",
        highlight=False,
    )
    if built.report is not None:
        OUT.print(built.report.describe(), highlight=False)


def _print_epoch(row: dict[str, Any]) -> None:
    parts = [f"epoch {row['epoch']}", f"loss {row['train_loss']:.3f}"]
    for prefix, label in (("val_", ""), ("ema_", "average ")):
        name = next((key for key in row if key.startswith(prefix)), None)
        if name == f"{prefix}top1":
            parts.append(f"{label or 'top-1 '}{row[name]:.2f} %")
        elif name is not None:
            parts.append(f"{label}{name.removeprefix(prefix).replace('_', ' ')} {row[name]:.4g}")
    OUT.print(", ".join(parts), highlight=False)


def _print_result(result: FitResult) -> None:
    columns = list(next(iter(result.scores.values())).as_dict())
    titles = {"top1": "top-1 %", "top5": "top-5 %"}
    rows = [
        (head, *(f"{value:.2f}" if name in titles else f"{value:.3f}" for name, value in scores.as_dict().items()))
        for head, scores in result.scores.items()
    ]
    print_table("Validation", ("head", *(titles.get(name, name.replace("_", " ")) for name in columns)), rows)
    OUT.print(f"Model: {result.out}  (curves: {result.out / 'curves.png'})", highlight=False, soft_wrap=True)

"""`deit train`: from a folder of images to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.console import INTERRUPTED, OUT, print_table, progress_bar, report_skipped, reports_errors

if TYPE_CHECKING:
    from deit.data.sources import Data
    from deit.train.loop import FitResult, StepEvent
    from deit.train.recipe import Recipe


@reports_errors
def train(
    data: Annotated[Path, typer.Argument(help="Folder with train/ and val/, or with one folder for each class.")],
    out: Annotated[Path, typer.Option(help="Folder for the run and the model; new or empty.")],
    student: Annotated[
        str, typer.Option(help="A variant, such as deit-tiny-distilled-patch16-224, or timm/NAME for a teacher-to-be.")
    ] = "deit-tiny-distilled-patch16-224",
    teacher: Annotated[
        str | None, typer.Option(help="Model directory, timm/NAME or torchvision/NAME; without one: labels alone.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML file of hyper-parameters; the paper's without one.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate, taken as it is.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels; the variant's without.")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share kept for validation when there is no val/.")] = 0.2,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, such as optimizer.weight_decay=0.1.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that is not an image.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
) -> None:
    """Train a student from labels, or with a teacher by distillation.

    Ctrl-C saves the state; the same command with --resume goes on.
    """
    from deit.data.sources import open_data
    from deit.train.loop import TrainingInterrupted, check_run_folder, fit
    from deit.train.recipe import Recipe

    settings = _settings(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, given=set_ or [])
    resolved = (Recipe() if recipe is None else Recipe.load(recipe)).with_settings(settings)
    check_run_folder(out, resolved, resume=resume)
    with progress_bar("Checking images") as update:
        images = open_data(data, val_fraction=val_fraction, seed=0, strict=strict, progress=update)
    report_skipped(images.skipped)
    task = _build_task(student, teacher, images, resolved, image_size)
    OUT.print(
        f"{len(images.train.labels)} training and {len(images.val.labels)} validation images, "
        f"{len(images.train.classes)} classes. Student: {student}. Teacher: {teacher or 'none'}.",
        highlight=False,
    )
    try:
        with progress_bar("Training") as update:

            def on_step(event: StepEvent) -> None:
                text = f"{event.images_per_second:.0f} images/s, epoch {event.epoch}, loss {event.loss:.3f}"
                update(event.step, event.total_steps, text)

            result = fit(
                task, images, resolved, out=out, device=device, resume=resume, on_step=on_step, on_epoch=_print_epoch
            )
    except TrainingInterrupted as stop:
        typer.echo(f"{stop} To go on, run the same command with --resume.", err=True)
        raise typer.Exit(INTERRUPTED) from stop
    _print_result(result)


def _settings(
    *, epochs: int | None, batch_size: int | None, lr: float | None, seed: int | None, given: list[str]
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if epochs is not None:
        settings["schedule.epochs"] = epochs
        settings["schedule.warmup_epochs"] = min(5, epochs)
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


def _build_task(student: str, teacher: str | None, data: Data, recipe: Recipe, image_size: int | None) -> Any:
    from deit.train.students import build_student
    from deit.train.tasks import ClassificationTask, DistillationTask
    from deit.train.teacher import check_teacher, open_teacher

    model, processor = build_student(student, data.train.classes, recipe, image_size=image_size)
    if teacher is None:
        return ClassificationTask(model, processor, label_smoothing=recipe.label_smoothing)
    opened = open_teacher(teacher)
    check_teacher(opened, data.train.classes, processor.output_size)
    return DistillationTask(
        model, opened, processor, distillation=recipe.distillation, label_smoothing=recipe.label_smoothing
    )


def _print_epoch(row: dict[str, Any]) -> None:
    parts = [f"epoch {row['epoch']}", f"loss {row['train_loss']:.3f}", f"top-1 {row['val_top1']:.2f} %"]
    if "ema_top1" in row:
        parts.append(f"average {row['ema_top1']:.2f} %")
    OUT.print(", ".join(parts), highlight=False)


def _print_result(result: FitResult) -> None:
    rows = [(head, f"{s.top1:.2f}", f"{s.top5:.2f}", f"{s.loss:.3f}") for head, s in result.scores.items()]
    print_table("Validation", ("head", "top-1 %", "top-5 %", "loss"), rows)
    OUT.print(f"Model: {result.out}  (curves: {result.out / 'curves.png'})", highlight=False, soft_wrap=True)

"""`deit demo`: trains and compares small models in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.terminal.console import print_table, progress_bar, reports_errors, say
from deit.cli.terminal.parameters import path

if TYPE_CHECKING:
    from deit.train.progress import StepEvent


@reports_errors
def demo(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Folder to write the models and a report to. Must be new or empty.", parser=path
        ),
    ] = Path("deit-demo"),
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed for weights, order, augmentation and dropout.")
    ] = 0,
) -> None:
    """Train and compare small models on handwritten digits.

    Trains a teacher and two students, writes a report and classifies an image. Takes a few minutes on a CPU.
    """
    from deit.demo.journey import run_journey
    from deit.demo.report import write_report
    from deit.runtime.signals import TrainingInterrupted

    try:
        with progress_bar("Training") as update:

            def on_step(name: str, event: StepEvent) -> None:
                update(event.step, event.total_steps, f"{name}: {event.images_per_second:.0f} images/s")

            journey = run_journey(out, seed=seed, on_step=on_step)
    except TrainingInterrupted as stop:
        say(f"Stopped. To see the whole demo, remove {out} or take another --out, and run it again.", err=True)
        raise typer.Exit(stop.exit_code) from stop
    rows = [(name, head, f"{top1:.2f}", f"{loss:.3f}") for name, head, top1, loss in journey.table()]
    print_table("Handwritten digits", ("model", "head", "top-1 %", "loss"), rows)
    said = ", ".join(f"{p.label} ({100 * p.score:.1f} %)" for p in journey.answer.predictions)
    say(f"{journey.held_out} is a {journey.held_out_label}; the saved model says: {said}")
    say(f"Report: {write_report(journey)}")
    say(f"Try it: deit classify {journey.distilled.out} {journey.held_out}")

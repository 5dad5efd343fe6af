"""`deit evaluate`: how good a model is on labelled images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deit.cli.console import print_table, progress_bar, report_skipped, reports_errors


@reports_errors
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    data: Annotated[Path, typer.Argument(help="Folder with one folder for each class; a val/ inside it is taken.")],
    batch_size: Annotated[int, typer.Option(help="Images that go through the model together.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that is not an image.")] = False,
) -> None:
    """Score every head of a model on labelled images."""
    from deit.core import metrics
    from deit.core.model_directory import read_image_processor
    from deit.data.loader import EvaluationBatches
    from deit.data.sources import ImageFolder
    from deit.deploy.runners import open_runner

    runner = open_runner(model, device)
    folder = data / "val" if (data / "val").is_dir() else data
    with progress_bar("Checking images") as update:
        source = ImageFolder(folder, classes=runner.label_names, strict=strict, progress=update)
    report_skipped(source.skipped)
    batches = EvaluationBatches(source, read_image_processor(model), batch_size)
    with progress_bar("Evaluating") as update:

        def watched() -> Iterator[Any]:
            for done, batch in enumerate(batches):
                yield batch
                update(done + 1, len(batches), "")

        scores = metrics.evaluate(runner.heads, watched())
    if as_json:
        typer.echo(json.dumps({head: asdict(s) for head, s in scores.items()}, indent=2))
        return
    rows = [(head, f"{s.top1:.2f}", f"{s.top5:.2f}", f"{s.loss:.3f}", str(s.images)) for head, s in scores.items()]
    print_table(f"{model} on {folder}", ("head", "top-1 %", "top-5 %", "loss", "images"), rows)

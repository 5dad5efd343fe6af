"""`deit classify`: what is in these images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deit.cli.console import PARTLY, print_table, report_found, reports_errors, say, say_json


@reports_errors
def classify(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    images: Annotated[
        list[str],
        typer.Argument(help="Files, folders, patterns such as 'a/*.jpg', or - for one image on standard input."),
    ],
    top_k: Annotated[int, typer.Option(help="Classes to name for each image.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images that go through the model together.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    value_range: Annotated[tuple[float, float] | None, typer.Option(help="Black and white beyond 8 bits.")] = None,
    average: Annotated[str | None, typer.Option(help="Of two heads: logits or probabilities.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that is not an image.")] = False,
) -> None:
    """Name what is in images; files that cannot be read are left out and reported (exit code 3)."""
    from deit.core.image_files import MOST_FILE_BYTES
    from deit.core.image_search import SkippedFile, find_images
    from deit.deploy.predictor import Predictor

    found = find_images(images, strict=strict)
    sources = [sys.stdin.buffer.read(MOST_FILE_BYTES + 1) if path is None else path for path in found.paths]
    predictor = Predictor.open(model, device=device, head_average=average)
    if value_range is not None:
        predictor.processor.value_range = value_range
    results = list(predictor.classify_each(sources, top_k=top_k, batch_size=batch_size, strict=strict))
    rows = []
    for result in results:
        if result.error:
            say(f"Left out: {result.error}", err=True)
            continue
        named = [f"{p.label} {100 * p.score:.1f} %" for p in result.predictions]
        rows.append((result.name, *named))
    if as_json:
        say_json([result.to_dict() for result in results])
    elif rows:
        width = max(len(row) for row in rows) - 1
        print_table("", ("image", *(f"{i + 1}." for i in range(width))), rows)
    if not rows:
        raise ValueError(f"None of {len(results)} file(s) could be classified.")
    broken = [SkippedFile(path=result.name, reason=result.error) for result in results if result.error]
    report_found(len(rows), found.skipped, found.ignored, others=broken)
    if broken:
        raise typer.Exit(PARTLY)

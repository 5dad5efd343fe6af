"""`deit embed`: images as features; and what `deit evaluate --knn` prints of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.console import OUT, print_table, progress_bar, report_skipped, reports_errors

if TYPE_CHECKING:
    from deit.data.sources import Source


@reports_errors
def embed(
    model: Annotated[Path, typer.Argument(help="Model directory of a DeiT or ViT, with or without classifier.")],
    images: Annotated[list[str], typer.Argument(help="Files, folders, or patterns such as 'a/*.jpg'.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write: columns image and features.")],
    token: Annotated[str, typer.Option(help="class, distillation, or mean (of the patches).")] = "class",
    block: Annotated[
        int | None, typer.Option(help="After which block, from 1; the end, after the final norm, without.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images that go through the model together.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that is not an image.")] = False,
) -> None:
    """Write the features of images; files that cannot be read are left out and reported."""
    from deit.deploy.embedding import Embedder, embed_files, write_features
    from deit.deploy.predictor import find_images

    paths = [path for path in find_images(images) if path is not None]
    if not paths:
        raise ValueError("Features need the names of image files. Received: standard input.")
    embedder = Embedder.open(model, device)
    parts = embed_files(embedder, paths, token=token, block=block, batch_size=batch_size, strict=strict)
    notes = {"model": str(model), "token": token, "block": "end" if block is None else str(block)}
    count, errors = write_features(out, parts, notes=notes)
    for error in errors:
        typer.echo(f"Left out: {error}", err=True)
    OUT.print(f"Features of {count} images: {out}", highlight=False, soft_wrap=True)


def evaluate_features_of(
    model: Path,
    data: str,
    known: str,
    *,
    batch_size: int,
    device: str,
    columns: tuple[str, str],
    strict: bool,
    as_json: bool,
) -> None:
    """Prints how well the features of `data` are told apart by those of `known`."""
    from deit.deploy.embedding import Embedder
    from deit.deploy.feature_evaluation import NEIGHBOURS, evaluate_features

    embedder = Embedder.open(model, device)
    first, second = _open(known, data, columns, strict)
    with progress_bar("Embedding") as update:
        scores = evaluate_features(embedder, first, second, batch_size=batch_size, on_batch=update)
    if as_json:
        values = {"model": str(model), "data": data, "known": known, "known_images": len(first.labels)}
        typer.echo(json.dumps({**values, "scores": [asdict(score) for score in scores]}, indent=2))
        return
    rows = [(f"{s.token} token", s.method, f"{s.top1:.2f}", f"{s.top5:.2f}", str(s.images)) for s in scores]
    print_table(f"Features of {model} on {data}", ("features", "method", "top-1 %", "top-5 %", "images"), rows)
    OUT.print(
        f"Known: {len(first.labels)} images of {known}, {NEIGHBOURS} neighbours.", highlight=False, soft_wrap=True
    )


def _open(known: str, data: str, columns: tuple[str, str], strict: bool) -> tuple[Source, Source]:
    """Opens the training part of one and the validation part of the other, which may be the same data set."""
    from deit.data.opening import open_data, open_labelled

    settings = {"image_column": columns[0], "label_column": columns[1], "strict": strict}
    with progress_bar("Checking images") as update:
        opened = open_data(known, progress=update, **settings)  # type: ignore[arg-type]
        if known == data:
            report_skipped(opened.skipped)
            return opened.train, opened.val
        asked = open_labelled(data, classes=opened.train.classes, progress=update, **settings)  # type: ignore[arg-type]
    report_skipped((*opened.skipped, *asked.skipped))
    return opened.train, asked

"""`deit embed`: writes the features of images. Also prints the scores of `deit evaluate --knn`."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import (
    PARTLY,
    counted,
    print_table,
    progress_bar,
    report_found,
    reports_errors,
    say,
    say_json,
)
from deit.cli.terminal.parameters import Device, InferenceBatchSize, Strict, ValueRange, path, place
from deit.cli.terminal.settings import open_on_first
from deit.core.errors import UserError
from deit.data.streams.addresses import named

if TYPE_CHECKING:
    from deit.data.sources import Data
    from deit.evaluate.features import FeatureEvaluation
    from deit.inference.embedder import Embedder


@reports_errors
def embed(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="DeiT or ViT, with or without classifier: model directory or name on the Hugging Face Hub.",
            parser=place,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES", help="Image files, folders, or patterns such as 'a/*.jpg'.", parser=place),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Parquet file to write, with the columns image and features.", parser=path),
    ],
    token: Annotated[
        str,
        typer.Option(metavar="TOKEN", help="Token to take: class, distillation, or mean (over the patch tokens)."),
    ] = "class",
    block: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Block after which to take features, counted from 1, without the final norm.",
            show_default="after the final norm",
        ),
    ] = None,
    batch_size: InferenceBatchSize = 32,
    device: Device = "auto",
    value_range: ValueRange = None,
    strict: Strict = False,
) -> None:
    """Write the features of images to a Parquet file.

    Skips and reports files that cannot be read, and exits with code 3 if there were any.
    """
    from deit.data.storage.image_search import SkippedFile, find_images
    from deit.inference.embedder import Embedder, embed_files, write_features

    found = find_images(images, strict=strict)
    paths = [path for path in found.paths if path is not None]
    if not paths:
        raise UserError("Features need the names of image files. Received: standard input.")
    embedder = Embedder.open(model, device)
    if value_range is not None:
        embedder.processor.value_range = value_range
    parts = embed_files(embedder, paths, token=token, block=block, batch_size=batch_size, strict=strict)
    notes = {"model": str(model), "token": token, "block": "end" if block is None else str(block)}
    count, errors = write_features(out, parts, notes=notes)
    for error in errors:
        say(f"Left out: {error}", err=True)
    broken = [SkippedFile(path="", reason=error) for error in errors]
    report_found(count, found.skipped, found.ignored, others=broken)
    say(f"Features of {counted(count, 'image')}: {out}")
    if errors:
        raise typer.Exit(PARTLY)


def evaluate_features_of(
    model: str,
    data: str,
    known: str,
    *,
    batch_size: int,
    device: str,
    columns: tuple[str, str],
    strict: bool,
    value_range: tuple[float, float] | None,
    as_json: bool,
) -> None:
    """Prints k-nearest-neighbor scores of the features of `data` among those of `known`. Processes share both."""
    from deit.evaluate.features import NEIGHBOURS, evaluate_features
    from deit.inference.embedder import Embedder
    from deit.runtime.processes import process_group

    with process_group(device) as processes:
        opened: list[Embedder] = []
        processes.on_first(lambda: opened.append(Embedder.open(model, device)))  # which alone tells of an error
        embedder = opened[0] if opened else Embedder.open(model, device)
        options: dict[str, Any] = {
            "image_column": columns[0], "label_column": columns[1], "strict": strict,
            "value_range": value_range or embedder.processor.value_range,
        }  # fmt: skip
        images = open_on_first(processes, lambda progress: _open(known, data, {**options, "progress": progress}))
        with progress_bar("Embedding", shown=processes.is_first) as update:
            result = evaluate_features(
                embedder, images.train, images.val, batch_size=batch_size, processes=processes, on_batch=update
            )
    if result is None:  # the first process speaks for all
        return
    notes, data, known = _notes(result), named(data), named(known)
    if as_json:
        values = {"model": str(model), "data": data, "known": known, "known_images": result.known, "notes": notes}
        values |= {"unreadable": result.unreadable, "unreadable_known": result.unreadable_known}
        seen = asdict(result.overlap) if result.overlap else None
        say_json({**values, "overlap": seen, "scores": [asdict(score) for score in result.scores]})
        return
    rows = [(f"{s.token} token", s.method, f"{s.top1:.2f}", f"{s.top5:.2f}", str(s.images)) for s in result.scores]
    print_table(f"Features of {model} on {data}", ("features", "method", "top-1 %", "top-5 %", "images"), rows)
    say(f"Known: {counted(result.known, 'image')} of {known}, {NEIGHBOURS} neighbors.")
    for note in notes:
        say(note)


def _notes(result: FeatureEvaluation) -> list[str]:
    notes = []
    if result.scores[0].left_out:
        notes.append(f"Left out, since they are among the known ones: {counted(result.scores[0].left_out, 'image')}.")
    for what, reasons in (("image", result.unreadable), ("known image", result.unreadable_known)):
        if reasons:
            notes.append(f"Left out, unreadable by now: {counted(len(reasons), what)}; the first: {reasons[0]}")
    return [*notes, *(result.overlap.notes() if result.overlap is not None else ())]


def _open(known: str, data: str, settings: dict[str, Any]) -> Data:
    """Opens known images as `train` and queries as `val`: two data sets, or one that is split."""
    from deit.data.duplicates import count_shared
    from deit.data.open_data import open_data, open_labelled
    from deit.data.sources import Data

    if _is_same_path(known, data):
        return open_data(data, **settings)
    first = open_labelled(known, part="train", **settings)
    second = open_labelled(data, classes=first.classes, **settings)
    if count_shared(second, first) == len(second.labels):
        raise UserError(
            f"{named(known)} and {named(data)} hold the same images, which would be compared with themselves. Pass "
            "other images, or the same path twice to have it divided."
        )
    skipped, ignored = (*first.skipped, *second.skipped), Counter(first.ignored) + Counter(second.ignored)
    return Data(train=first, val=second, skipped=skipped, ignored=ignored)


def _is_same_path(first: str, second: str) -> bool:
    exist = os.path.exists(first) and os.path.exists(second)
    return first == second or (exist and os.path.realpath(first) == os.path.realpath(second))

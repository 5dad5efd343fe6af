"""`deit explain`: draws where a classifier looked, and says whether each map is better than chance."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import (
    PARTLY,
    counted,
    json_array,
    print_table,
    progress_bar,
    report_found,
    reports_errors,
    say,
)
from deit.cli.terminal.parameters import Device, Model, Strict, ValueRange, command_line, path, place
from deit.core.errors import ImageError, UserError

if TYPE_CHECKING:
    from deit.explain.explainer import ExplainedImage, Explainer
    from deit.explain.gallery import Written


Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        help="Image files, folders, patterns such as 'a/*.jpg', or - for one image on standard input.",
        parser=place,
    ),
]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for pictures, arrays and index.html.", parser=path)]
Method = Annotated[str, typer.Option(metavar="NAME", help="How to explain: relevance, legrad, attnlrp or rollout.")]
Target = Annotated[
    str | None,
    typer.Option(metavar="CLASS", help="Name or number of the class to explain.", show_default="the predicted class"),
]
Head = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Head to explain: both (the answer of the model), class or distillation. Can be repeated.",
        show_default="all of the model",
    ),
]


@reports_errors
def explain(
    context: typer.Context,
    model: Model,
    images: Images,
    out: Out = Path("explanations"),
    method: Method = "attnlrp",
    target: Target = None,
    head: Head = None,
    random_orders: Annotated[
        int, typer.Option(metavar="N", help="Random orders of patches to score each map against; 0 for no score.")
    ] = 10,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of these orders.")] = 0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    value_range: ValueRange = None,
    strict: Strict = False,
) -> None:
    """Draw where a classifier looked, with a score of each map.

    Skips and reports unreadable files, and exits with code 3 if there were any.
    """
    from deit.core.images.image_files import MOST_FILE_BYTES
    from deit.data.storage.image_search import SkippedFile, find_images
    from deit.explain.explainer import Explainer
    from deit.explain.maps import check_method

    check_method(method)
    _check_orders(random_orders)
    found = find_images(images, strict=strict)
    explainer = Explainer.open(model, device=device)
    if value_range is not None:
        explainer.processor.value_range = value_range
    _make_folder(out)
    sources = [sys.stdin.buffer.read(MOST_FILE_BYTES + 1) if source is None else source for source in found.paths]
    options: dict[str, Any] = {
        "method": method, "target": target, "heads": head or None, "random_orders": random_orders, "seed": seed
    }  # fmt: skip
    written, broken = _explain_each(explainer, sources, out, options, strict=strict)
    if not written:
        raise UserError(f"None of {len(sources)} file(s) could be explained.")
    _write_overview(out, written, model, command_line(context))
    if as_json:
        with json_array() as say_item:
            for each in written:
                say_item({**each.explained.to_dict(), "array": each.array, "pictures": each.pictures})
    else:
        _print(written, model)
    others = [SkippedFile(path="", reason=error) for error in broken]
    report_found(len(written), found.skipped, found.ignored, others=others)
    say(f"Explanations of {counted(len(written), 'image')}: {out / 'index.html'}", err=as_json)
    if broken:
        raise typer.Exit(PARTLY)


def _check_orders(random_orders: int) -> None:
    from deit.explain.score import FEWEST_ORDERS, ORDERS_LIMIT

    if random_orders != 0 and not FEWEST_ORDERS <= random_orders <= ORDERS_LIMIT:
        raise UserError(
            f"random_orders must be 0, for no score, or {FEWEST_ORDERS} to {ORDERS_LIMIT}. Received: {random_orders}."
        )


def _make_folder(out: Path) -> None:
    from deit.core.writing import writing

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. Pass a folder, which may be new.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)


def _explain_each(
    explainer: Explainer, sources: list[str | bytes], out: Path, options: dict[str, Any], *, strict: bool
) -> tuple[list[Written], list[str]]:
    """Explains images and writes their files. Returns these, and the errors of unreadable images."""
    from deit.explain.gallery import file_stem, write_explained

    written: list[Written] = []
    broken: list[str] = []
    with progress_bar("Explaining") as update:
        for number, source in enumerate(sources, start=1):
            try:
                explained = explainer.explain(source, **options)
            except (ImageError, OSError) as error:
                if strict:
                    raise
                broken.append(_reason(source, error))
                say(f"Left out: {broken[-1]}", err=True)
            else:
                written.append(write_explained(out, explained, file_stem(explained.name, number)))
            update(number, len(sources))
    return written, broken


def _reason(source: str | bytes, error: ImageError | OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{source!s} is not there."
    return str(error)


def _write_overview(out: Path, written: list[Written], model: str, command: str) -> None:
    from deit.evaluate.html_page import write_page
    from deit.explain.gallery import PAGE_NAME, SHEET_NAME, page_values, write_contact_sheet

    write_contact_sheet(out / SHEET_NAME, written)
    write_page(out / PAGE_NAME, "explain", "gallery.html.j2", **page_values(written, model, command))


def _print(written: list[Written], model: str) -> None:
    rows = [row for each in written for row in _rows(each.explained)]
    notes = dict.fromkeys(note for each in written for note in each.explained.explanation.notes)
    print_table(f"Explanations of {model}", ("image", "head", "class", "probability", "score", "against random"), rows)
    for note in notes:
        say(note, err=True)


def _rows(explained: ExplainedImage) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, maps in explained.explanation.heads.items():
        score = explained.scores.get(name)
        told = ("-", "not scored") if score is None else (f"{score.score:+.3f}", _verdict(score))
        rows.append((explained.name, name, maps.label, f"{100 * maps.probability:.1f} %", *told))
    return rows


def _verdict(score: Any) -> str:
    if score.verdict == "unknown":
        return "not judged: the blur changes nothing"
    return f"{score.verdict} ({score.random_low:+.3f} to {score.random_high:+.3f})"

"""Prints the predictions of `deit classify` as rows or JSON, and writes them to files."""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.cli.terminal.console import OUT, json_array, say_cells, say_lines
from deit.core.errors import UserError
from deit.core.labels import REGRESSION, SINGLE_LABEL
from deit.core.printable import is_formula, not_computed, printable
from deit.inference.prediction_rows import cells_of, columns_of, schema_of

if TYPE_CHECKING:
    from deit.inference.predictor import Classified

KINDS = (".csv", ".parquet", ".jsonl")

_MOST_CHARACTERS = 4096  # of a name in a pipe: the longest path that systems take
_ROW_GROUP = 10_000  # rows of a Parquet file that are written together
_NARROW = 0.5  # share of a line above which names get lines of their own

Take = Callable[["Classified"], None]


def check_predictions_path(path: Path) -> None:
    """Checks that predictions can be written to a file of this name, before anything is computed.

    Raises:
        ValueError: Its ending is not known.
        FileNotFoundError: Its folder does not exist.
        IsADirectoryError: It is a folder.
    """
    if path.suffix.lower() not in KINDS:
        raise UserError(f"Predictions are written to a file that ends in {', '.join(KINDS)}. Received: {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}. Make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Pass the name of a file.")


# --- on the screen ------------------------------------------------------------------------------------


class Rows:
    """Prints a row for each image as soon as it is predicted. Never cuts a name.

    In a pipe or a file a row is a line: the image, then each class with its probability, with tabs between. On a
    terminal the columns are aligned; what does not fit continues below, and where names leave no room they get a line
    of their own.

    Args:
        names: Names of all images, for the width of their column.
        problem_type: Meaning of the scores: numbers for a regression, else shares that are printed in percent.
    """

    def __init__(self, names: Sequence[str], problem_type: str = SINGLE_LABEL) -> None:
        self._is_number = problem_type == REGRESSION
        self._width = max((len(printable(name)) for name in names), default=0)
        self._own_line = self._width > _NARROW * OUT.width

    def __call__(self, result: Classified) -> None:
        """Prints the row of an image, unless it could not be read."""
        if result.error:
            return
        found = [f"{p.label} {self._text(p.score)}" for p in result.predictions]
        found += _judged(result)
        if not OUT.is_terminal:
            say_cells((result.name, *found), _MOST_CHARACTERS)
            return
        name = printable(result.name, _MOST_CHARACTERS)
        if self._own_line:
            say_lines(name)
            name, indent = " " * 4, 4
        else:
            name, indent = f"{name:<{self._width}}  ", self._width + 2
        say_lines("\n".join(_filled(name, [printable(cell) for cell in found], indent, OUT.width)))

    def _text(self, score: float) -> str:
        return f"{score:.4g}" if self._is_number else f"{100 * score:.1f} %"


def _judged(result: Classified) -> list[str]:
    """Returns what the calibration says about an answer, in words."""
    told = result.judgement
    if told is None:
        return []
    found = [f"abstains: {told.abstained}"] if told.abstained else []
    if told.named is not None:
        found.append(f"named: {', '.join(told.named) or 'none'}")
    if told.prediction_set is not None:
        found.append(f"set: {', '.join(told.prediction_set)}")
    if told.interval is not None:
        found.append("between {:.4g} and {:.4g}".format(*told.interval))
    if told.is_outlier and not told.abstained.startswith("unlike"):
        found.append(f"unlike the training images ({told.outlier_score:.2f})")
    return found


def _filled(line: str, cells: Sequence[str], indent: int, width: int) -> Iterator[str]:
    """Yields lines of cells, separated by two spaces. Breaks a cell that is longer than a line between words."""
    used = full = False
    for cell in cells:
        if used and (full or len(line) + 2 + len(cell) > width):
            yield line
            line, used = " " * indent, False
        line += "  " * used + cell
        used, full = True, len(line) > width
        if full:
            indented = " " * (indent + 2)
            broken = textwrap.wrap(
                line, width, subsequent_indent=indented, break_long_words=False, break_on_hyphens=False
            )
            yield from broken[:-1]
            line = broken[-1]
    yield line


@contextmanager
def json_rows() -> Iterator[list[Take]]:
    """Prints one JSON array, item by item."""
    with json_array() as say_item:
        yield [lambda result: say_item(result.to_dict())]


# --- into a file --------------------------------------------------------------------------------------


@contextmanager
def written_predictions(path: Path, top_k: int, *, judged: bool = False) -> Iterator[list[Take]]:
    """Writes a file with a row for each image, whole or not at all. The row of an unreadable image holds the error.

    `.csv` and `.parquet` have the columns image, label_1, score_1, ..., error, scores between 0 and 1; and before the
    error set, interval, named, outlier_score and abstained where there is a calibration. `.jsonl` has what `--json`
    prints, an object a line.

    Args:
        path: Of the file, which is replaced.
        top_k: Classes of each image.
        judged: Whether answers are judged by a calibration.

    Raises:
        WritingError: It cannot be written.
        ModuleNotFoundError: It is Parquet, and pyarrow is not installed.
    """
    from deit.core.files import replaced_file

    write = {".csv": _csv_rows, ".parquet": _parquet_rows, ".jsonl": _json_lines}[path.suffix.lower()]
    with replaced_file(path) as temporary, write(temporary, top_k, judged) as take:
        yield [take]


@contextmanager
def _csv_rows(path: Path, top_k: int, judged: bool) -> Iterator[Take]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns_of(top_k, judged=judged))

        def take(result: Classified) -> None:
            name, *others = cells_of(result, top_k, judged=judged)
            writer.writerow([f"./{name}" if is_formula(name) else name, *map(_not_computed, others)])

        yield take


def _not_computed(cell: Any) -> Any:
    return not_computed(cell) if isinstance(cell, str) else cell


@contextmanager
def _json_lines(path: Path, top_k: int, judged: bool) -> Iterator[Take]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda result: file.writelines([json.dumps(result.to_dict()), "\n"])


@contextmanager
def _parquet_rows(path: Path, top_k: int, judged: bool) -> Iterator[Take]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(top_k, judged=judged)
    rows: list[list[Any]] = []
    with pq.ParquetWriter(path, schema) as writer:

        def write() -> None:
            cells = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
            writer.write_table(pa.table(cells, schema=schema))
            rows.clear()

        def take(result: Classified) -> None:
            rows.append(cells_of(result, top_k, judged=judged))
            if len(rows) == _ROW_GROUP:
                write()

        yield take
        write()

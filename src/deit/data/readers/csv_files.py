"""Reads images listed in a CSV or TSV file: a column of paths, one of labels and optionally one of splits."""

from __future__ import annotations

import csv
import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from deit.core.errors import UserError
from deit.core.images.image_files import read_content
from deit.core.images.reading import IMAGE_SUFFIXES, ImageError
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.labels.columns import MOST_COLUMNS, PATH_NAMES, choose_column, choose_labels, described, not_an_image
from deit.data.labels.split_names import divide_rows, note_splits_in_paths, split_columns
from deit.data.readers.image_stores import Rows, divided
from deit.data.readers.reader import Place, ReadOptions, Splits
from deit.data.readers.split_files import files_at, files_in, split_files
from deit.data.sources import SkippedFile
from deit.data.storage.contents import file_stamp
from deit.data.storage.image_search import visible_folders

# Limit of a line, which names an image and its labels. Python's reader allows fields of 128 KiB.
MOST_LINE_CHARACTERS = 2**20
# Limit of empty lines. Spreadsheets save some below the last row.
MOST_EMPTY_LINES = 2_000_000
_ENDINGS = (".csv", ".tsv")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The rows with as many cells as the header. Stores columns to save memory.

    Attributes:
        columns: Cells by the names of the header.
        lines: Line number of each row.
        skipped: The other rows.
    """

    columns: dict[str, list[str]]
    lines: array[int]
    skipped: list[SkippedFile]


class CsvFiles:
    """Reads .csv and .tsv files of paths and labels."""

    def takes(self, place: Place) -> bool:
        """Returns True for tables, and for folders of tables with at most one sub-folder (not train/)."""
        if place.folder is None:
            return bool(files_at(place, _ENDINGS))
        inside = visible_folders(place.folder)
        beside_images = bool(inside) and (len(inside) > 1 or inside[0].name == "train")
        return bool(files_in([place.folder], _ENDINGS)) and not beside_images

    def splits(self, place: Place, options: ReadOptions) -> Splits:
        """Finds the splits by the names of the tables, or by a column."""
        if place.folder is None:
            return split_files(place.names, _open_files, options, at_once=True)
        tables, inside = sorted(files_in([place.folder], _ENDINGS)), visible_folders(place.folder)
        if inside:
            raise UserError(
                f"{place.folder} has one folder, {inside[0].name}/, and a table. Pass the table: {tables[0]}."
            )
        return split_files(tables, _open_files, options, at_once=True)


def _open_files(name: str, files: Sequence[str], options: ReadOptions) -> dict[str, Rows]:
    if len(files) > 1:
        raise UserError(f"{files[0]} and {files[1]} are for the same part. Join them into one table.")
    found = read_table(Path(files[0]), **options.columns())
    return {name: replace(found[""], name=name)} if "" in found else found


def read_table(
    path: Path, *, image_column: str = "", label_column: str = "", problem_type: str = SINGLE_LABEL
) -> dict[str, Rows]:
    """Opens a table of image files.

    The first line names the columns. Paths are relative to the table's folder. Several classes of an image are
    in one cell, or written as zeros and ones in several columns. A column `split`, or another that
    `deit.data.labels.split_names` knows, divides the rows into train, val (validation) and test.

    Args:
        path: The file. A .tsv is separated by tabs; a .csv by commas, or by semicolons if its header is.
        image_column: Column of paths; empty takes the column whose cells end like image files.
        label_column: Column of labels, or several of zeros and ones as "cat,dog"; empty finds it by name, or takes the
            only other column.
        problem_type: Type of the labels.

    Returns:
        The splits by name: "train", "val", "test"; or one named "" with all rows.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, not a table, or its columns cannot be found.
    """
    table = _read(path)
    header, columns = list(table.columns), table.columns
    if not table.lines:
        names = described(dict.fromkeys(header, ""))
        raise UserError(f"{path} has no rows under its header ({names}). It needs one for each image.")
    images = _image_column(path, columns, image_column)
    store = ListedFiles(path, columns[images], table.lines)
    others = [name for name in header if name != images]
    may_divide = {name: columns[name] for name in split_columns(others) if name != label_column}
    split, dividing, notes = divide_rows(
        may_divide, origin=str(path), place=lambda row: f"{path} line {table.lines[row]}"
    )
    labels = choose_labels(
        {name: columns[name] for name in others if name not in dividing},
        header,
        asked=label_column,
        problem_type=problem_type,
        origin=str(path),
        count=len(table.lines),
    )
    for note in notes:
        logger.warning("%s", note)
    if not split:
        note_splits_in_paths(str(path), columns[images])
    return divided(
        Rows(name="", origin=str(path), store=store, labels=labels, skipped=tuple(table.skipped), split=split)
    )


class ListedFiles:
    """Image files named in a table.

    Args:
        table: The table; the paths are relative to its folder.
        paths: Paths as written in the table.
        lines: Line number of each path.
    """

    def __init__(self, table: Path, paths: Sequence[str], lines: Sequence[int]) -> None:
        self._table = table
        self._folder = os.path.abspath(table.parent)
        self._paths = paths
        self._lines = lines

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, row: int) -> bytes:
        """Returns the content of an image file."""
        name = self._paths[row]
        if not name:
            raise ImageError("it names no file.")
        try:
            return read_content(self._table.parent / name, f"the file {name!r}")
        except FileNotFoundError:
            raise ImageError(f"there is no file {name!r}.") from None

    def stamp(self, row: int) -> bytes | None:
        """Returns the stamp of the file; see `StampedStore`."""
        name = self._paths[row]
        return file_stamp(os.path.join(self._folder, name)) if name else None

    def cache_place(self) -> str:
        """Returns the table's path."""
        return os.path.join(self._folder, self._table.name)

    def place(self, row: int) -> str:
        """Names table, line and file."""
        return f"{self._table} line {self._lines[row]} ({self._paths[row]})"


def _read(path: Path) -> _Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(MOST_LINE_CHARACTERS)
            file.seek(0)
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            if delimiter not in first and ";" in first:  # spreadsheets use it if numbers have decimal commas
                delimiter = ";"
            reader = csv.reader(_bounded_lines(file), delimiter=delimiter, strict=True)
            rows = _filled(reader)
            header = _header(path, next(rows, None))
            columns: list[list[str]] = [[] for _ in header]
            appends = [column.append for column in columns]
            lines: array[int] = array("q")
            skipped: list[SkippedFile] = []
            for row in rows:
                if len(row) == len(header):
                    lines.append(reader.line_num)
                    for append, cell in zip(appends, row, strict=True):
                        append(cell.strip())
                else:
                    reason = f"it has {len(row)} cells, but the header has {len(header)}."
                    skipped.append(SkippedFile(path=f"{path} line {reader.line_num}", reason=reason))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a table ({error}). Save it as UTF-8 text.") from error
    return _Table(columns=dict(zip(header, columns, strict=True)), lines=lines, skipped=skipped)


def _header(path: Path, first: Sequence[str] | None) -> list[str]:
    if first is None:
        raise UserError(f"{path} is empty. Its first line must name the columns, such as: path,label")
    header = [cell.strip() for cell in first]
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{path} has {len(header)} columns. At most {MOST_COLUMNS} are read.")
    if any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in header):
        raise UserError(f"{path} has no header: its first line must name the columns, such as: path,label")
    if len(set(header)) < len(header):
        raise UserError(f"{path} names a column twice: {', '.join(header)}. Give each its own name.")
    return header


def _bounded_lines(file: TextIO) -> Iterator[str]:
    """Yields the lines of a table. Refuses a line that would fill the memory."""
    while line := file.readline(MOST_LINE_CHARACTERS + 1):
        if len(line) > MOST_LINE_CHARACTERS:
            raise csv.Error(f"a line has more than {MOST_LINE_CHARACTERS} characters")
        yield line


def _filled(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Skips empty rows, up to a limit."""
    empty = 0
    for row in rows:
        if any(row):
            yield row
        else:
            empty += 1
            if empty > MOST_EMPTY_LINES:
                raise csv.Error(f"more than {MOST_EMPTY_LINES} of its lines are empty")


def _image_column(path: Path, columns: Mapping[str, Sequence[str]], asked: str) -> str:
    images = [name for name, cells in columns.items() if any(map(_is_image_name, cells[:100]))]
    types = dict.fromkeys(columns, "")
    name = choose_column(types, images, PATH_NAMES, option="image_column", origin=str(path), asked=asked)
    cells = columns[name]
    if name not in images and not any((path.parent / cell).is_file() for cell in cells):
        raise not_an_image(str(path), name, f"text such as {cells[0]!r}, which names no file", images)
    return name


def _is_image_name(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)

"""Images listed in a CSV or TSV file: a column of paths, a column of labels, perhaps one that names the part."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deit.core.image_files import read_content
from deit.core.images import IMAGE_SUFFIXES, ImageError
from deit.core.metrics import MULTI_LABEL, SINGLE_LABEL
from deit.data.columns import LABEL_NAMES, PATH_NAMES, choose_column, described, not_an_image
from deit.data.contents import file_stamp
from deit.data.label_columns import UNLABELLED, LabelColumn, ignored_labels
from deit.data.sources import SkippedFile
from deit.data.stores import Part

_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_SWITCH = {"0": 0, "1": 1, "": None}


@dataclass(frozen=True, kw_only=True)
class _Row:
    line: int
    cells: Sequence[str]


def listed_parts(
    path: Path, *, image_column: str = "", label_column: str = "", problem_type: str = SINGLE_LABEL
) -> dict[str, Part]:
    """Opens a table of image files.

    The first line names the columns. Paths are relative to the table's folder. Several classes for an image are
    separated by | or ; in one cell, or written as zeros and ones in several columns. A column `split` divides the rows
    into train, val (validation) and test.

    Args:
        path: The file; .tsv is separated by tabs, .csv by commas, or by semicolons where its header is.
        image_column: Column of paths; the one whose cells end like image files when empty.
        label_column: Column of labels, or several of zeros and ones as "cat,dog"; found by name, or as the only other
            one, when empty.
        problem_type: What the labels are for.

    Returns:
        The parts by name: "train", "val", "test"; or all rows as one of the name "".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, not a table, or its columns cannot be found.
    """
    header, rows, skipped = _read(path)
    columns = dict.fromkeys(header, "")
    if not rows:
        raise ValueError(f"{path} has no rows under its header ({described(columns)}). It needs one for each image.")
    images = _image_column(path, header, rows, image_column)
    split = next((i for i, name in enumerate(header) if name.lower() == "split"), -1)
    others = [i for i in range(len(header)) if i not in (images, split)]
    chosen, switches = _label_columns(path, header, rows, others, label_column, problem_type)
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(_part_name(path, row, split), []).append(row)
    parts = {}
    for name, members in groups.items():
        store = ListedFiles(path, [row.cells[images] for row in members], [row.line for row in members])
        labels = _labels(header, members, chosen, switches)
        origin = f"{path} ({name})" if name else str(path)
        parts[name] = Part(name=name, origin=origin, store=store, labels=labels, skipped=tuple(skipped))
        skipped = []  # reported once, with the first part
    return parts


class ListedFiles:
    """Image files named in a table.

    Args:
        table: The table; the paths are relative to its folder.
        paths: As they were written.
        lines: Where.
    """

    def __init__(self, table: Path, paths: Sequence[str], lines: Sequence[int]) -> None:
        self._table = table
        self._folder = os.path.abspath(table.parent)
        self._paths = list(paths)
        self._lines = list(lines)

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
        """Stands for the file as it is now."""
        name = self._paths[row]
        return file_stamp(os.path.join(self._folder, name)) if name else None

    def cache_place(self) -> str:
        """Returns the table's path."""
        return os.path.join(self._folder, self._table.name)

    def place(self, row: int) -> str:
        """Names table, line and file."""
        return f"{self._table} line {self._lines[row]} ({self._paths[row]})"


def _read(path: Path) -> tuple[list[str], list[_Row], list[SkippedFile]]:
    """Returns the header, the rows that have as many cells, and the others."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            if delimiter not in first and ";" in first:  # what spreadsheets write where the comma is in the numbers
                delimiter = ";"
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            lines = [_Row(line=reader.line_num, cells=[c.strip() for c in row]) for row in reader if any(row)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}). Save it as UTF-8 text.") from error
    if not lines:
        raise ValueError(f"{path} is empty. Its first line must name the columns, such as: path,label")
    header = [cell.strip() for cell in lines[0].cells]
    if any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in header):
        raise ValueError(f"{path} has no header: its first line must name the columns, such as: path,label")
    if len(set(header)) < len(header):
        raise ValueError(f"{path} names a column twice: {', '.join(header)}. Give each its own name.")
    rows = [row for row in lines[1:] if len(row.cells) == len(header)]
    skipped = [
        SkippedFile(
            path=f"{path} line {row.line}", reason=f"it has {len(row.cells)} cells and the header {len(header)}."
        )
        for row in lines[1:]
        if len(row.cells) != len(header)
    ]
    return header, rows, skipped


def _image_column(path: Path, header: Sequence[str], rows: Sequence[_Row], asked: str) -> int:
    sample = rows[:100]
    images = [name for i, name in enumerate(header) if any(_is_image_name(row.cells[i]) for row in sample)]
    columns = dict.fromkeys(header, "")
    name = choose_column(columns, images, PATH_NAMES, option="image_column", origin=str(path), asked=asked)
    column = header.index(name)
    if name not in images and not any((path.parent / row.cells[column]).is_file() for row in rows):
        raise not_an_image(str(path), name, f"text such as {rows[0].cells[column]!r}, which names no file", images)
    return column


def _is_image_name(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)


def _label_columns(
    path: Path, header: Sequence[str], rows: Sequence[_Row], others: Sequence[int], asked: str, problem_type: str
) -> tuple[list[int], bool]:
    """Returns the columns of labels, and whether they are switches: zeros and ones, a class for each column."""
    if problem_type == UNLABELLED:
        return [], False
    columns = dict.fromkeys(header, "")
    names = [header[i] for i in others]
    if problem_type == MULTI_LABEL:
        switches = [i for i in others if all(row.cells[i] in _SWITCH for row in rows)]
        if not asked and switches and not any(name.lower() in LABEL_NAMES for name in names):
            return switches, True
        if "," in asked and asked not in header:
            wanted = [name.strip() for name in asked.split(",")]
            for name in wanted:
                choose_column(columns, names, (), option="label_column", origin=str(path), asked=name)
                if header.index(name) not in switches:
                    raise ValueError(f"Column {name!r} of {path} does not hold zeros and ones. Leave it out.")
            return [header.index(name) for name in wanted], True
    name = choose_column(columns, names, LABEL_NAMES, option="label_column", origin=str(path), asked=asked)
    return [header.index(name)], False


def _labels(header: Sequence[str], rows: Sequence[_Row], chosen: Sequence[int], switches: bool) -> LabelColumn:
    if not chosen:
        return ignored_labels(len(rows))
    names = [header[i] for i in chosen]
    if not switches:
        return LabelColumn(name=names[0], values=[row.cells[chosen[0]] for row in rows])
    values = [tuple(_SWITCH[row.cells[i]] for i in chosen) for row in rows]
    return LabelColumn(name=", ".join(names), values=values, class_names=tuple(names), zeros_and_ones=True)


def _part_name(path: Path, row: _Row, split: int) -> str:
    if split < 0:
        return ""
    written = row.cells[split]
    if written.lower() not in _PART_NAMES:
        raise ValueError(
            f"{path} line {row.line} has the split {written!r}. Use train, val (or validation) or test in each row."
        )
    return _PART_NAMES[written.lower()]

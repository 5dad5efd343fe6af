"""Reads the list of what to fix that `deit inspect` writes, and leaves out and relabels images as it says.

The list is a CSV file with the columns `file` and `action` at least; others are described in docs/inspect.md. Beside it
`deit inspect` writes `images.csv`, with every image that it saw: by it this module tells what changed since.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import DamagedFileError, UserError, parsing, read_bytes, shown
from deit.core.labels import NO_LABEL
from deit.core.printable import FORMULA_SIGNS, counted, some_of
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.readers.reader import DataPath, OpenedSource
from deit.data.sources import Labels, SkippedFile, Source, Subset, contents_of, ignored_of, place_of, skipped_of
from deit.data.storage.contents import Hashes
from deit.data.streams.addresses import is_address, named

DROP, RELABEL, CHECK, KEEP = "drop", "relabel", "check", "keep"
ACTIONS = (DROP, RELABEL, CHECK, KEEP)
WHOLE = "all"  # the part of data that is not divided
IMAGES_LIST = "images.csv"

_KIND = "a list of images to leave out"
_MOST_BYTES = 256 * 2**20
_MOST_NAMED = 10_000  # in a record


def name_in(path: DataPath, place: str) -> str:
    """Returns the name of an image within a data set: its place, less the folder that was passed.

    So the name stays the same when the data set is passed by another path. A name that a spreadsheet would take for a
    formula begins with "./".

    Args:
        path: What the data set was opened by.
        place: From `place_of`, or of a skipped file.

    Examples:
        >>> name_in("photos", "photos/cat/1.png")
        'cat/1.png'
    """
    return names_in(path, [place])[0]


def names_in(path: DataPath, places: Iterable[str]) -> list[str]:
    """Returns the names of images within a data set, see `name_in`."""
    roots = [re.compile(rf"(^|(?<=[ (])){re.escape(root)}") for root in _roots(path)]
    return [_without(roots, place) for place in places]


def _without(roots: Sequence[re.Pattern[str]], place: str) -> str:
    for root in roots:
        place = root.sub("", place)
    return f"./{place}" if place.startswith(FORMULA_SIGNS) else place


def _roots(path: DataPath) -> Iterator[str]:
    if not isinstance(path, (str, os.PathLike, list, tuple)):
        return
    paths: Sequence[Any] = path if isinstance(path, (list, tuple)) else [path]
    for each in dict.fromkeys(os.fspath(one) for one in paths):
        if is_address(each):
            yield named(each).rpartition("/")[0] + "/"
            continue
        root = str(Path(each)) if os.path.isdir(each) else os.path.dirname(str(Path(each)))
        if root not in ("", "."):
            yield root.rstrip(os.sep) + os.sep


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """What a list did to a data set.

    Attributes:
        file: Path of the list.
        hash: SHA-256 of its content.
        dropped: Names of the images that are left out.
        relabelled: Name of an image -> its new label.
    """

    file: str
    hash: str
    dropped: tuple[str, ...] = ()
    relabelled: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Returns the section of `training.json`; names up to 10,000."""
        return {
            "file": self.file,
            "sha256": self.hash,
            "dropped": len(self.dropped),
            "relabelled": len(self.relabelled),
            "dropped_images": list(self.dropped[:_MOST_NAMED]),
            "relabelled_images": dict(list(self.relabelled.items())[:_MOST_NAMED]),
        }

    def describe(self) -> str:
        """Returns a sentence."""
        changed = f", {counted(len(self.relabelled), 'label')} changed" if self.relabelled else ""
        return f"Left out by {self.file}: {counted(len(self.dropped), 'image')}{changed}."


@dataclass(frozen=True, kw_only=True)
class _Row:
    line: int
    part: str
    file: str
    action: str
    label: str
    content: str


class ExclusionList:
    """A list of images to leave out or to relabel, and the state of the data set when it was made.

    Args:
        path: The list.
        data: What the data set is opened by.
        expected_hash: SHA-256 that its content must have; empty for any.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no such list, an action is unknown, two rows contradict each other, or its content is another.
    """

    def __init__(self, path: str | os.PathLike[str], data: DataPath, *, expected_hash: str = "") -> None:
        self.path = Path(path)
        self._data = data
        content = read_bytes(self.path, _KIND, _MOST_BYTES)
        self.hash = hashlib.sha256(content).hexdigest()
        if expected_hash and self.hash != expected_hash:
            raise UserError(
                f"{self.path} was changed since the recipe was written: data.exclude_hash={expected_hash[:12]}..., its "
                f"content has {self.hash[:12]}.... Restore it, or set data.exclude_hash= to accept it as it is."
            )
        self._rows = _rows(self.path, content)
        self._seen = _images_seen(self.path.with_name(IMAGES_LIST))
        self._found: set[int] = set()  # lines of the list
        self._applied: set[str] = set()  # parts
        self._dropped: list[str] = []
        self._relabelled: dict[str, str] = {}

    def apply(self, source: OpenedSource, part: str) -> OpenedSource:
        """Returns the images of a part without those to drop, and with the new labels.

        Args:
            source: The part, as it was opened.
            part: Its name; empty for data that is not divided.

        Raises:
            UserError: The images are not those of the inspection, a label is unknown, or a class or the whole part is
                left without images.
        """
        part = part or WHOLE
        names = names_in(self._data, (place_of(source, i) for i in range(len(source.labels))))
        numbers = {name: number for number, name in enumerate(names)}
        contents = contents_of(source)
        self._refuse_changed(part, names, contents, source.skipped)
        labels = np.array(source.labels)
        kept = np.ones(len(names), dtype=bool)
        for row in self._rows.values():
            number = numbers.get(row.file)
            if number is None or row.part not in ("", part):
                continue
            self._found.add(row.line)
            if row.content and contents is not None and row.content != f"{int(contents[number]):016x}":
                raise self._changed(f"{row.file} has another content")
            if row.action == DROP:
                kept[number] = False
                self._dropped.append(row.file)
            elif row.label and source.classes:
                labels[number] = self._label(row, source)
                self._relabelled[row.file] = row.label
        unreadable = set(names_in(self._data, (file.path for file in source.skipped)))
        self._found |= {row.line for row in self._rows.values() if row.file in unreadable}  # left out in any case
        self._applied.add(part)
        self._refuse_empty(part, source, labels, kept)
        if kept.all() and np.array_equal(labels, source.labels):
            return source
        return Corrected(source, np.flatnonzero(kept), labels[kept])

    def finish(self, parts: Sequence[str]) -> Exclusion:
        """Returns what was done, once every part that is used was passed to `apply`.

        Args:
            parts: Names of all parts of the data set, those that are not used among them.

        Raises:
            UserError: The list names images that were not there.
        """
        unused = {part or WHOLE for part in parts} - self._applied
        rows = self._rows.values()
        missing = [row.file for row in rows if row.line not in self._found and row.part not in unused]
        if missing:
            raise self._changed(f"{counted(len(missing), 'image')} of the list not found, the first is {missing[0]}")
        return Exclusion(
            file=str(self.path), hash=self.hash, dropped=tuple(self._dropped), relabelled=dict(self._relabelled)
        )

    def _label(self, row: _Row, source: Source) -> int:
        if source.problem_type != SINGLE_LABEL:
            raise UserError(
                f"{self.path} line {row.line}: labels can be changed where an image has one class. Received: "
                f"{source.problem_type}. Correct the label in the data set."
            )
        if row.label not in source.classes:
            raise UserError(
                f"{self.path} line {row.line}: {shown(row.label)} is not one of the classes {some_of(source.classes)}."
            )
        return source.classes.index(row.label)

    def _refuse_empty(self, part: str, source: Source, labels: Labels, kept: npt.NDArray[np.bool_]) -> None:
        if not kept.any():
            raise UserError(f"{self.path} leaves out all {len(kept)} images of the part {part}. Keep some.")
        if source.problem_type != SINGLE_LABEL or not source.classes:
            return
        before, after = (
            np.bincount(some[some != NO_LABEL], minlength=len(source.classes)) for some in (source.labels, labels[kept])
        )
        lost = np.flatnonzero((before > 0) & (after == 0)).tolist()
        if lost:
            names = ", ".join(repr(source.classes[i]) for i in lost[:5])
            raise UserError(
                f"{self.path} leaves no image of {counted(len(lost), 'class', 'classes')} in the part {part}: {names}. "
                "Keep some of them, or take the class out of the data set."
            )

    def _refuse_changed(
        self, part: str, names: Sequence[str], contents: Hashes | None, skipped: Sequence[SkippedFile]
    ) -> None:
        """Compares a part with what `images.csv` says of it, where that lies beside the list."""
        seen = self._seen.get(part)
        if seen is None:
            return
        there = set(names)
        gone = [name for name in seen if name not in there]
        new = [name for name in names if name not in seen]
        if gone or new:
            many = [f"{counted(len(some), 'image')} {what} (the first is {some[0]})" for some, what in
                    ((gone, "gone"), (new, "new")) if some]  # fmt: skip
            raise self._changed(f"the part {part} has {len(names)} images in place of {len(seen)}: {', '.join(many)}")
        if contents is None:
            return
        other = [
            n for n, content in zip(names, contents.tolist(), strict=True) if seen[n] not in ("", f"{content:016x}")
        ]
        if other:
            raise self._changed(f"{counted(len(other), 'image')} with another content, the first is {other[0]}")

    def _changed(self, what: str) -> UserError:
        return UserError(f"The data set changed since {self.path} was written: {what}. Run deit inspect again.")


def table_of(path: Path, content: bytes, kind: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line numbers and rows of a CSV file with a header; cells that are missing are empty.

    Args:
        path: For messages.
        content: UTF-8; bytes of names that are no text are kept.
        kind: What the file should be, for messages.
        needed: Columns that must be there.

    Raises:
        UserError: A column is missing.
        DamagedFileError: It is not CSV.
    """
    text = content.decode("utf-8-sig", "surrogateescape")
    with parsing(path, kind):
        comma = "," if "," in text.partition("\n")[0] else ";"  # spreadsheets of many countries write the latter
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=comma)
        header = [name.strip().lower() for name in next(reader, [])]
    missing = [name for name in needed if name not in header]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}. Received: {shown(','.join(header))}. Pass a fix.csv that deit "
            "inspect wrote, or any CSV file with the columns file and action."
        )
    while True:
        with parsing(path, kind):
            cells = next(reader, None)
        if cells is None:
            return
        if any(cells):
            yield reader.line_num, dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=False))


def hash_of_list(path: Path) -> str:
    """Returns the SHA-256 of a list, as recipes record it.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is too large, or no file.
    """
    return hashlib.sha256(read_bytes(path, _KIND, _MOST_BYTES)).hexdigest()


def _rows(path: Path, content: bytes) -> dict[str, _Row]:
    """Returns the rows to act on, by part and file; drop wins over relabel."""
    found: dict[str, _Row] = {}
    for line, cells in table_of(path, content, _KIND, ("file", "action")):
        action = cells["action"].strip().lower() or KEEP
        if action not in ACTIONS:
            raise UserError(
                f"{path} line {line}: unknown action {shown(cells['action'])}. Choose one of: {', '.join(ACTIONS)}."
            )
        if action not in (DROP, RELABEL):
            continue
        if not cells["file"]:
            raise UserError(f"{path} line {line}: the column file is empty, and the action is {action}.")
        label = cells.get("suggested_label", "").strip()
        row = _Row(
            line=line, part=cells.get("part", ""), file=cells["file"], action=action, label=label,
            content=cells.get("content", "").strip().lower(),
        )  # fmt: skip
        key = f"{row.part}\0{row.file}"
        other = found.get(key)
        if other is None or (other.action == RELABEL and (action == DROP or not other.label)):
            found[key] = row
        elif other.action == action == RELABEL and label and label != other.label:
            raise UserError(f"{path} lines {other.line} and {line} give {row.file} two labels. Keep one of them.")
    return found


def _images_seen(path: Path) -> dict[str, dict[str, str]]:
    """Returns part -> name of an image -> its content, of the list of all images; empty where there is none."""
    seen: dict[str, dict[str, str]] = {}
    try:
        content = read_bytes(path, "a list of images", _MOST_BYTES)
    except FileNotFoundError:
        return seen
    try:
        for _, cells in table_of(path, content, "a list of images", ("part", "file", "content")):
            seen.setdefault(cells["part"], {})[cells["file"]] = cells["content"]
    except DamagedFileError:
        raise
    except UserError:  # another file of that name
        return {}
    return seen


class Corrected(Subset):
    """Another source without some of its images, and with some other labels.

    Args:
        source: The other source.
        indices: (N,) which of its images.
        labels: (N,) their labels.
    """

    def __init__(self, source: OpenedSource, indices: npt.NDArray[np.int64], labels: Labels) -> None:
        super().__init__(source, indices)
        self.labels = labels

    @property
    def skipped(self) -> Sequence[SkippedFile]:
        """Files that the other source left out."""
        return skipped_of(self.source)

    @property
    def ignored(self) -> Mapping[str, int]:
        """Counts of files that the other source passed over."""
        return ignored_of(self.source)

    def _fingerprint(self, of_source: str) -> str:
        digest = hashlib.sha256(b"corrected\n" + of_source.encode())
        return hashlib.sha256(digest.digest() + self.indices.tobytes() + self.labels.tobytes()).hexdigest()

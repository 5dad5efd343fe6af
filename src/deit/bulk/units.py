"""Reads the units of a job: which images each holds, and their bytes."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deit.core.errors import DamagedFileError, UserError
from deit.core.images.image_files import read_content
from deit.core.images.reading import ImageError
from deit.data.readers.arrow_columns import image_bytes
from deit.data.readers.parquet import images_of_groups
from deit.data.readers.webdataset import Member, TarImages
from deit.data.streams.shard_files import LocalFile

if TYPE_CHECKING:
    import pyarrow as pa

FILES, PARQUET, SHARDS = "files", "parquet", "shards"

_COUNT = re.compile(rb'{"images":(\d{1,9}),')  # how the line of a unit begins


class UnitError(UserError):
    """A unit cannot be read. Other units go on."""


def line_of(images: int, facts: dict[str, Any]) -> bytes:
    """Returns a unit as a line of the list of units. Its number is that of the line."""
    text = json.dumps({"images": images, **facts}, separators=(",", ":"))  # ASCII: names may be no UTF-8
    return text.encode("ascii") + b"\n"


class UnitList:
    """The units of a job. Holds 12 bytes for each, and reads the rest when it is asked for.

    Args:
        path: The list of units.
        digest: Object of hashlib that gets the content, or None.

    Attributes:
        counts: (U,) number of images of each unit.

    Raises:
        DamagedFileError: It is no list of units.
    """

    def __init__(self, path: Path, digest: Any = None) -> None:
        self.path = path
        starts: list[int] = []
        counts: list[int] = []
        place = 0
        with path.open("rb") as file:
            for line in file:
                if digest is not None:
                    digest.update(line)
                found = _COUNT.match(line)
                if found is None or not line.endswith(b"}\n"):
                    raise DamagedFileError(f"{path} is damaged in line {len(starts) + 1}. Start a new job.")
                starts.append(place)
                counts.append(int(found[1]))
                place += len(line)
        self._starts = np.array(starts, np.int64)
        self.counts = np.array(counts, np.int32)

    def __len__(self) -> int:
        return len(self._starts)

    def facts(self, number: int) -> dict[str, Any]:
        """Returns what the list says of a unit."""
        with self.path.open("rb") as file:
            file.seek(int(self._starts[number]))
            values: dict[str, Any] = json.loads(file.readline())
        return values

    def each(self) -> Iterator[dict[str, Any]]:
        """Yields what the list says of each unit, in order."""
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)


class UnitImages:
    """The images of one unit, in their order.

    Args:
        facts: What the list of units says.
        base: Folder that paths start from.
        kind: One of the kinds above.
        column: Column of images of Parquet files.

    Raises:
        UnitError: The file of the unit cannot be read.
    """

    def __init__(self, facts: dict[str, Any], base: Path, kind: str, column: str = "") -> None:
        if "damaged" in facts:
            raise UnitError(facts["damaged"])
        self._base = base
        self._count, self._names = int(facts["images"]), names_of(facts, kind)
        self._tar: TarImages | None = None
        self._cells: _Cells | None = None
        if kind == FILES:
            return
        path = base / facts["file"]
        if (stamp := stamp_of(str(path))) != tuple(facts["stamp"]):
            raise UnitError(f"{facts['file']} {'is not there' if stamp[1] < 0 else 'has changed since the job began'}.")
        if kind == PARQUET:
            self._cells = _Cells(path, column, facts["groups"], self._count)
        else:
            members = [
                None if size < 0 else Member(name=name, offset=at, size=size) for _, name, at, size in facts["samples"]
            ]
            keys = [key for key, *_ in facts["samples"]]
            self._tar = TarImages([LocalFile(path)], [0] * len(keys), members, keys)

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Returns the name of an image: its path as it was given, or file and row, or shard and member."""
        return self._names[index]

    def read(self, index: int) -> bytes:
        """Returns the bytes of an image, once; threads may call it at the same time.

        Raises:
            ImageError: There is no such image.
            FileNotFoundError: Likewise.
            UnitError: The unit cannot be read.
        """
        name, store = self._names[index], self._cells or self._tar
        if store is None:
            return read_content(self._base / name, name)
        try:
            return store.read(index)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
        except OSError as error:
            raise UnitError(f"{name}: {error}") from error


def names_of(facts: dict[str, Any], kind: str) -> Sequence[str]:
    """Returns the names of the images of a unit, in order; see `UnitImages.name`."""
    if "damaged" in facts:
        return []
    if kind == FILES:
        return [file[0] for file in facts["files"]]
    if kind == PARQUET:
        return _RowNames(facts)
    return [f"{facts['file']}: {name or key}" for key, name, _, _ in facts["samples"]]


class _RowNames(Sequence[str]):
    def __init__(self, facts: dict[str, Any]) -> None:
        self._file, self._start, self._count = facts["file"], facts["start"], facts["images"]

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, index: Any) -> Any:
        if index >= self._count:
            raise IndexError(index)
        return f"{self._file} row {self._start + index}"


class _Cells:
    """The cells of some groups of rows, read in order as they are asked for; each is kept until it was read."""

    def __init__(self, path: Path, column: str, groups: Sequence[int], count: int) -> None:
        self._path, self._count = path, count
        self._parts = images_of_groups(path, column, groups)
        self._held: list[list[Any]] = []  # first row, cells, cells not read yet
        self._loaded = 0
        self._lock = threading.Lock()
        self._failure = ""

    def read(self, index: int) -> bytes:
        with self._lock:
            while self._loaded <= index:
                self._load()
            part = next(each for each in self._held if each[0] <= index < each[0] + len(each[1]))
            part[2] -= 1
            if not part[2]:
                self._held.remove(part)
            cell: pa.Scalar = part[1][index - part[0]]
        return image_bytes(cell, self._path.parent)

    def _load(self) -> None:
        if not self._failure:
            try:
                part = next(self._parts)
                if len(part):
                    self._held.append([self._loaded, part, len(part)])
                    self._loaded += len(part)
                return
            except StopIteration:
                self._failure = f"{self._path} ends after {self._loaded} of {self._count} rows. It has changed."
            except (UserError, OSError) as error:
                self._failure = str(error)
        raise UnitError(self._failure)


def changed_files(facts: dict[str, Any], base: Path) -> list[str]:
    """Returns the files of a unit of files that differ from the list by size or time, or are gone."""
    changed = []
    root = os.path.join(base, "")
    for name, size, modified in facts.get("files", ()):
        try:
            found = os.stat(name if name.startswith(os.sep) else root + name)
        except (OSError, ValueError):
            found = None
        if found is None or found.st_size != size or found.st_mtime_ns != modified:
            changed.append(name)
    return changed


def stamp_of(path: str) -> tuple[int, int]:
    """Returns size and time of last change (nanoseconds) of a file; -1 and the time for a folder; -1, -1 if gone."""
    with suppress(OSError, ValueError):
        found = os.stat(path)
        return (-1 if os.path.isdir(path) else found.st_size), found.st_mtime_ns
    return -1, -1

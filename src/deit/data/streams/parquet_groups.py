"""The images of Parquet files elsewhere: each group of rows is fetched and unpacked once, into the cache.

One image of a Parquet file cannot be read by itself, because a group of rows is packed together. An entry of the cache
is a group unpacked: where each image begins, 8 bytes each and the end, then the images one after the other.
"""

from __future__ import annotations

import bisect
import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from deit.core.images.reading import ImageError
from deit.data.storage.contents import part_stamp
from deit.data.streams.shard_files import Reader, StreamedFile

_PLACE = np.dtype("<u8")
_IN_MEMORY = 2**28  # bytes of unpacked groups that each process keeps if there is no cache on disk


class BrokenGroupError(ImageError):
    """A group of rows cannot be unpacked."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A Parquet file elsewhere.

    Attributes:
        file: The file.
        metadata: Its `pyarrow.parquet.FileMetaData`.
        cells: Yields the images of a group of rows from a file object, for this, a column and the number of the group;
            b"" for a row without one. Raises `BrokenGroupError`.
    """

    file: StreamedFile
    metadata: Any
    cells: Callable[[Any, Groups, str, int], Iterable[bytes]]

    def column_range(self, group: int, column: str) -> range:
        """Returns the bytes of the file that hold a column of a group."""
        chunks = [self.metadata.row_group(group).column(i) for i in range(self.metadata.num_columns)]
        spans = []
        for chunk in chunks:
            if chunk.path_in_schema.split(".")[0] == column:
                starts = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
                spans.append((min(starts), min(starts) + chunk.total_compressed_size))
        found = range(min(start for start, _ in spans), max(stop for _, stop in spans))
        if found.start < 0 or found.stop > self.file.size:
            raise BrokenGroupError("its part of the Parquet file claims bytes beyond its end.")
        return found


class StreamedRows:
    """The images of Parquet files elsewhere; see `ImageStore`.

    Args:
        files: The files.
        column: The column of images.
    """

    def __init__(self, files: Sequence[Groups], column: str) -> None:
        self._groups, self._column = list(files), column
        self.files = [each.file for each in files]
        self._of_group: list[tuple[int, int]] = []  # file and number of each group
        self._starts = [0]
        self._file_starts = []
        for number, each in enumerate(files):
            self._file_starts.append(self._starts[-1])
            for group in range(each.metadata.num_row_groups):
                self._of_group.append((number, group))
                self._starts.append(self._starts[-1] + each.metadata.row_group(group).num_rows)
        self._memory: OrderedDict[int, bytes] = OrderedDict()
        self._broken: dict[int, str] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": OrderedDict()}

    def read(self, row: int) -> bytes:
        """Returns the content of an image file."""
        at = bisect.bisect_right(self._starts, row) - 1
        if at in self._broken:
            raise ImageError(self._broken[at])
        try:
            return self._read(at, row)
        except BrokenGroupError as error:
            self._broken[at] = str(error)
            raise

    def _read(self, at: int, row: int) -> bytes:
        number, group = self._of_group[at]
        entry = _Group(self._groups[number], self._column, group)
        place = (row - self._starts[at]) * _PLACE.itemsize
        first, end = np.frombuffer(self._bytes(at, entry, place, 2 * _PLACE.itemsize), _PLACE).tolist()
        if first == end:
            raise ImageError("it has no image.")
        return self._bytes(at, entry, first, end - first)

    def _bytes(self, at: int, entry: _Group, start: int, size: int) -> bytes:
        if entry.of.file.has_cache:
            return entry.of.file.kept(entry, start, size)
        content = self._memory.get(at)
        if content is None:
            self._memory[at] = content = entry.unpacked()
            while len(self._memory) > 1 and sum(map(len, list(self._memory.values()))) > _IN_MEMORY:
                self._memory.popitem(last=False)
        return content[start : start + size]

    def fetch_ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Begins to fetch the groups that hold some images."""
        for at in np.unique(np.searchsorted(self._starts, rows, side="right") - 1).tolist():
            number, group = self._of_group[at]
            self.files[number].keep_ahead([_Group(self._groups[number], self._column, group)])

    def _file(self, row: int) -> int:
        return bisect.bisect_right(self._file_starts, row) - 1

    def stamp(self, row: int) -> bytes | None:
        """Returns the stamp of a cell when the file was opened; see `StampedStore`."""
        file = self._file(row)
        return part_stamp(self.files[file].stamp(), f"{self._column} {row - self._file_starts[file]}")

    def cache_place(self) -> str:
        """Returns the addresses of the files."""
        return "\0".join(file.key for file in self.files)

    def pieces(self) -> npt.NDArray[np.int64]:
        """Returns the number of the group of rows that each image is in; see `ShardStore`."""
        return np.repeat(np.arange(len(self._of_group)), np.diff(self._starts))

    def place(self, row: int) -> str:
        """Returns file and row, counted from 0."""
        file = self._file(row)
        return f"{self.files[file]} row {row - self._file_starts[file]}"


@dataclass(frozen=True)
class _Group:
    """A group of rows in the cache; see `Entry`."""

    of: Groups
    column: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.of.file.identity}-{self.column.encode().hex()[:40]}-rows{self.number}"

    @property
    def shard(self) -> str:
        return f"{self.of.file.identity}-{self.column.encode().hex()[:40]}"

    @property
    def origin(self) -> str:
        return str(self.of.file)

    def begin(self) -> tuple[int, bytes]:
        content = self.unpacked()
        return len(content), content

    def fill(self, part: IO[bytes], begun: bytes) -> None:
        part.write(begun[part.tell() :])

    def unpacked(self) -> bytes:
        here = self.of.column_range(self.number, self.column)
        content = self.of.file.fetch(here.start, here.stop)

        def read(start: int, size: int) -> bytes:
            if start >= here.start and start + size <= here.stop:
                return content[start - here.start :][:size]
            return self.of.file.fetch(start, start + size)

        source = io.BufferedReader(Reader(read, self.of.file.size))
        images = list(self.of.cells(source, self.of, self.column, self.number))
        places = np.cumsum([(len(images) + 1) * _PLACE.itemsize, *map(len, images)], dtype=_PLACE)
        return b"".join([places.tobytes(), *images])

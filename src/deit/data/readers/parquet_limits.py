"""Limits the unpacked size of Parquet files. A few KB can claim a billion rows, or one cell of many GB."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from deit.core.errors import DamagedFileError
from deit.data.labels.columns import MOST_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

# A row holds an image, which takes at least a hundred bytes; copies take about a bit.
MOST_ROWS_PER_BYTE = 1
# Images are already compressed. Uncompressed images (BMP) of drawings and masks shrink to a fiftieth.
MOST_TIMES_UNPACKED = 64
# Size that any small file may unpack to.
MOST_UNPACKED_BYTES = 2**24

# Limit of the notes of `datasets`, which take many times their size when parsed. 30,000 class names take 2 MiB.
MOST_NOTES_BYTES = 2**22

_BATCH_BYTES = 2**24


def check_parquet(path: str, size: int, metadata: Any) -> None:
    """Refuses a file whose footer is damaged, or claims more rows or columns than a file of its size can hold.

    Args:
        path: Name of the file for messages.
        size: Its length in bytes.
        metadata: Its `pyarrow.parquet.FileMetaData`; nothing of its groups may have been asked for before.

    Raises:
        DamagedFileError: The file is damaged or exceeds a limit.
    """
    _check_groups(path, size, metadata)
    if metadata.num_rows > size * MOST_ROWS_PER_BYTE:
        raise DamagedFileError(f"{path} claims {metadata.num_rows} rows in {size} bytes, too few for so many images.")
    if metadata.num_rows != sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)):
        raise DamagedFileError(f"{path} is damaged: its groups do not hold the {metadata.num_rows} rows it claims.")
    if metadata.num_columns > MOST_COLUMNS:
        raise DamagedFileError(f"{path} has {metadata.num_columns} columns. At most {MOST_COLUMNS} are read.")


class _Empty(io.RawIOBase):
    """Stands for a file of a size, holds nothing, and notes whether it was read."""

    def __init__(self, size: int) -> None:
        self._size, self._place, self.was_asked = size, 0, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        self.was_asked = True
        return b""


def _check_groups(path: str, size: int, metadata: Any) -> None:
    """Checks that pyarrow can describe every group and column of a footer. Reads nothing.

    Where a description is damaged, `FileMetaData.row_group` and `RowGroupMetaData.column` end the process: a C++
    exception passes through them (pyarrow 26.0.1). Reading meets the same damage as an error. So this reads with
    `pre_buffer`, which asks for all descriptions before any data, from a file that has no data.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = _Empty(size)
    file = pq.ParquetFile(pa.PythonFile(content, mode="r"), metadata=metadata, pre_buffer=True)
    try:
        file.read_row_groups(list(range(metadata.num_row_groups)), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        if not content.was_asked:
            reason = f"Its footer is damaged ({str(error).partition(chr(10))[0]})."
            raise DamagedFileError(f"{path} cannot be read as a Parquet file. {reason}") from error


def check_columns(path: str, metadata: Any, names: Iterable[str]) -> None:
    """Refuses columns that unpack to more than images and labels can.

    Args:
        path: Name of the file for messages.
        metadata: Its `pyarrow.parquet.FileMetaData`.
        names: Names of the columns to read.

    Raises:
        DamagedFileError: A column exceeds the limit.
    """
    wanted = set(names)
    for group in range(metadata.num_row_groups):
        for chunk in _chunks(metadata.row_group(group)):
            name = chunk.path_in_schema.split(".")[0]
            most = MOST_UNPACKED_BYTES + MOST_TIMES_UNPACKED * chunk.total_compressed_size
            if name in wanted and chunk.total_uncompressed_size > most:
                raise DamagedFileError(
                    f"{path} has {chunk.total_compressed_size} bytes in its column {name!r} that unpack to "
                    f"{chunk.total_uncompressed_size}, more than images do."
                )


def rows_together(row_group: Any, column: str, most: int) -> int:
    """Returns the number of rows of a group to unpack at once.

    Args:
        row_group: A `pyarrow.parquet.RowGroupMetaData`.
        column: Column of images.
        most: Maximum number of rows.
    """
    largest = 1
    for chunk in _chunks(row_group):
        if chunk.path_in_schema.split(".")[0] != column:
            continue
        unpacked = chunk.total_uncompressed_size
        cell = unpacked // max(row_group.num_rows, 1)
        if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:  # each row may be its largest entry
            pages = chunk.total_compressed_size - (chunk.data_page_offset - chunk.dictionary_page_offset)
            cell = max(cell, unpacked - int(0.98 * pages))
        largest = max(largest, cell)
    return max(min(_BATCH_BYTES // largest, most), 1)


def joined(batches: Iterable[pa.RecordBatch], rows: int, path: str, size: int, used: list[int]) -> Iterator[pa.Array]:
    """Joins the first columns of small batches into larger arrays.

    Args:
        batches: Batches of one column.
        rows: Approximate number of rows in an array.
        path: Name of the file for messages.
        size: Its length in bytes.
        used: List with one number, the unpacked bytes of the file so far, which this increases.

    Raises:
        DamagedFileError: The file unpacks to more than images can.
    """
    import pyarrow as pa

    def taken() -> pa.Array:
        rows = pa.concat_arrays(held) if len(held) > 1 else held[0]
        held.clear()
        return rows

    most = MOST_UNPACKED_BYTES + MOST_TIMES_UNPACKED * size
    held: list[pa.Array] = []
    try:
        for batch in batches:
            held.append(batch.column(0))
            used[0] += batch.nbytes
            if used[0] > most:
                raise DamagedFileError(f"{path} unpacks to more than {most} bytes, more than images do.")
            if sum(map(len, held)) >= rows or sum(part.nbytes for part in held) >= _BATCH_BYTES:
                yield taken()
    except (pa.ArrowException, OSError):  # rows before the damage are readable
        if held:
            yield taken()
        raise
    if held:
        yield taken()


def _chunks(row_group: Any) -> Iterator[Any]:
    return (row_group.column(i) for i in range(row_group.num_columns))

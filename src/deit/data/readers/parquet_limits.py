"""Limits how much a Parquet file may unpack to: a few KB can claim a billion rows, or one cell of many GB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.core.errors import DamagedFileError
from deit.data.labels.columns import MOST_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

# A row has an image of its own, which takes a hundred bytes and more; copies take a bit or so.
MOST_ROWS_PER_BYTE = 1
# Images are compressed as they are. Uncompressed ones (BMP) of drawings and masks shrink to a fiftieth.
MOST_TIMES_UNPACKED = 64
# What a small file may unpack to in any case.
MOST_UNPACKED_BYTES = 2**24

# What `datasets` notes of the columns: 30,000 class names take 2 MiB or less; parsed, it takes many times its size.
MOST_NOTES_BYTES = 2**22

_BATCH_BYTES = 2**24


def check_parquet(path: Path, metadata: Any) -> None:
    """Refuses a file whose footer says more rows or columns, or that they unpack to more, than images do.

    Args:
        path: The file.
        metadata: Its `pyarrow.parquet.FileMetaData`.

    Raises:
        DamagedFileError: It does.
    """
    size = path.stat().st_size
    if metadata.num_rows > size * MOST_ROWS_PER_BYTE:
        raise DamagedFileError(f"{path} says {metadata.num_rows} rows in {size} bytes. It cannot hold as many images.")
    if metadata.num_rows != sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)):
        raise DamagedFileError(f"{path} is damaged: its groups have not the {metadata.num_rows} rows that it says.")
    if metadata.num_columns > MOST_COLUMNS:
        raise DamagedFileError(f"{path} has {metadata.num_columns} columns. At most {MOST_COLUMNS} are read.")


def check_columns(path: Path, metadata: Any, names: Iterable[str]) -> None:
    """Refuses columns that unpack to more than images and labels do.

    Args:
        path: The file.
        metadata: Its `pyarrow.parquet.FileMetaData`.
        names: Of the columns that shall be read.

    Raises:
        DamagedFileError: They do.
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
    """Returns how many rows of a group may be unpacked at once.

    Args:
        row_group: A `pyarrow.parquet.RowGroupMetaData`.
        column: Of images.
        most: Rows at most.
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


def joined(batches: Iterable[pa.RecordBatch], rows: int, path: Path, used: list[int]) -> Iterator[pa.Array]:
    """Joins the first columns of small batches.

    Args:
        batches: Of one column.
        rows: Of an array, about.
        path: The file, for the message.
        used: One number: the bytes of the file that were unpacked so far; it is added to.

    Raises:
        DamagedFileError: The file unpacks to more than images do.
    """
    import pyarrow as pa

    def taken() -> pa.Array:
        rows = pa.concat_arrays(held) if len(held) > 1 else held[0]
        held.clear()
        return rows

    most = MOST_UNPACKED_BYTES + MOST_TIMES_UNPACKED * path.stat().st_size
    held: list[pa.Array] = []
    try:
        for batch in batches:
            held.append(batch.column(0))
            used[0] += batch.nbytes
            if used[0] > most:
                raise DamagedFileError(f"{path} unpacks to more than {most} bytes, more than images do.")
            if sum(map(len, held)) >= rows or sum(part.nbytes for part in held) >= _BATCH_BYTES:
                yield taken()
    except (pa.ArrowException, OSError):  # what stands before the damage can be read
        if held:
            yield taken()
        raise
    if held:
        yield taken()


def _chunks(row_group: Any) -> Iterator[Any]:
    return (row_group.column(i) for i in range(row_group.num_columns))

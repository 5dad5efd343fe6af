"""Reads images in Parquet files."""

from __future__ import annotations

import bisect
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import DamagedFileError, UserError, parsing
from deit.core.images.reading import ImageError
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.labels.split_names import note_splits_in_paths, split_columns
from deit.data.readers.arrow_columns import (
    ArrowTable,
    class_names_of,
    column_features,
    image_bytes,
    image_column_of,
    is_text,
    labels_and_split,
)
from deit.data.readers.image_stores import Rows, divided
from deit.data.readers.parquet_limits import check_columns, check_parquet, joined, rows_together
from deit.data.readers.reader import Place, ReadOptions, Splits
from deit.data.readers.split_files import files_at, split_files
from deit.data.sources import Progress
from deit.data.storage.contents import part_stamp
from deit.data.streams.parquet_groups import BrokenGroupError, Groups, StreamedRows
from deit.data.streams.shard_files import LocalFile, Reader, ShardFile, StreamedFile, each_of, shard_files
from deit.runtime.cache_folder import cache_folder

if TYPE_CHECKING:
    import pyarrow as pa

# Maximum size of encoded images that each process holds in memory. Larger tables are unpacked once into the cache and
# mapped from there, one copy for all processes, because reading one row of a Parquet file unpacks many.
IN_MEMORY = 2**28
_BATCH = 1000  # rows that are unpacked together
_READ_BYTES = 2**16  # of a file elsewhere at once: most footers, and columns of labels of a group of rows


class ParquetFiles:
    """Reads Parquet files as the Hugging Face hub has them."""

    def takes(self, place: Place) -> bool:
        """Returns True for Parquet files."""
        return bool(files_at(place, [".parquet"], fetched=True))

    def splits(self, place: Place, options: ReadOptions) -> Splits:
        """Finds the splits by the names of the files, or by a column."""
        return split_files(files_at(place, [".parquet"], fetched=True), _open_files, options)


def _open_files(name: str, files: Sequence[str], options: ReadOptions) -> dict[str, Rows]:
    opened = shard_files(files, options.progress)
    return divided(read_parquet(name, opened, **options.columns(), progress=options.progress))


def read_parquet(
    name: str,
    shards: Sequence[Path | ShardFile],
    *,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    progress: Progress | None = None,
) -> Rows:
    """Opens Parquet files that together are one split of a data set.

    Args:
        name: Name of the split.
        shards: The files, in order, all here or all elsewhere.
        image_column: Column of images: bytes, or a struct of bytes and path; empty finds it by its type.
        label_column: Column of labels; empty finds it by type and name.
        problem_type: Type of the labels.
        progress: Called with (rows unpacked, rows in all) for tables that exceed the memory limit.

    Raises:
        ValueError: A file is not Parquet or lacks a column, or the columns cannot be found.
        ModuleNotFoundError: pyarrow is not installed.
    """
    if not shards:
        raise UserError("No Parquet files were given.")
    files = [LocalFile(shard) if isinstance(shard, Path) else shard for shard in shards]
    if len({isinstance(file, StreamedFile) for file in files}) > 1:
        raise UserError("Some of the Parquet files are here and others elsewhere. Open them one by one.")
    described = each_of(_footer, files, None)
    schemas = [metadata.schema.to_arrow_schema() for metadata in described]
    image = image_column_of(schemas[0], str(files[0]), image_column)
    store = _store(files, described, image)

    def read(names: Sequence[str]) -> dict[str, list[Any]]:
        _require_same_columns(files, schemas, [image, *names])
        numbers = {id(file): number for number, file in enumerate(files)}

        def columns(file: ShardFile) -> dict[str, list[Any]]:
            with _opened(file, described[numbers[id(file)]]) as opened:
                check_columns(str(file), opened.metadata, names)
                table = opened.read(columns=list(names))
                if table.num_rows != opened.metadata.num_rows:
                    raise DamagedFileError(f"{file} is damaged: not all columns have {opened.metadata.num_rows} rows.")
                return {each: table.column(each).to_pylist() for each in names}

        parts = each_of(columns, files, None) if names else []
        return {each: [value for part in parts for value in part[each]] for each in names}

    origin = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    table = ArrowTable(schema=schemas[0], origin=str(files[0]), read=read, place=store.place)
    labels, split = labels_and_split(table, len(store), label_column, problem_type)
    if isinstance(store, ParquetStore):
        store.load(progress)
        if not split:
            note_splits_in_paths(str(files[0]), store.folders())
    return Rows(name=name, origin=origin, store=store, labels=labels, split=split)


def _footer(file: ShardFile) -> Any:
    with _opened(file) as opened:
        check_parquet(str(file), file.size, opened.metadata)
        return opened.metadata


@contextmanager
def _opened(file: ShardFile, metadata: Any = None) -> Iterator[Any]:
    """Opens a `ParquetFile`; of one elsewhere it fetches only what is read, past the cache."""
    import pyarrow.parquet as pq

    source: Any = file.path if isinstance(file, LocalFile) else None
    if isinstance(file, StreamedFile):
        source = io.BufferedReader(Reader(lambda at, size: file.fetch(at, at + size), file.size), _READ_BYTES)
    with _readable(file), pq.ParquetFile(source, metadata=metadata) as opened:
        yield opened


def _store(files: Sequence[ShardFile], described: Sequence[Any], column: str) -> ParquetStore | StreamedRows:
    here = [file.path for file in files if isinstance(file, LocalFile)]
    if here:
        return ParquetStore(here, described, column)
    groups = []
    for file, metadata in zip(files, described, strict=True):
        assert isinstance(file, StreamedFile)
        check_columns(str(file), metadata, [column])
        groups.append(Groups(file=file, metadata=metadata, cells=_images_of))
    return StreamedRows(groups, column)


def _images_of(source: Any, of: Groups, column: str, group: int) -> Iterator[bytes]:
    """Yields the images of a group of rows of a file elsewhere; b"" for a row that has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source, metadata=of.metadata) as file:
            for cells in _cells(of.file, file, group, column, [0]):
                for cell in cells:
                    try:
                        yield image_bytes(cell, None)
                    except ImageError:
                        yield b""
    except (pa.ArrowException, OSError) as error:
        raise BrokenGroupError(f"its part of the Parquet file cannot be read ({_first_line(error)}).") from error


def _require_same_columns(files: Sequence[ShardFile], schemas: Sequence[pa.Schema], names: Sequence[str]) -> None:
    """Refuses files that lack a column, name its classes differently, or have another column of splits."""

    def shape(schema: pa.Schema) -> list[Any]:
        features = column_features(schema)
        return [
            split_columns(schema.names),
            *((name in schema.names, class_names_of(features.get(name))) for name in names),
        ]

    for file, schema in zip(files[1:], schemas[1:], strict=True):
        if shape(schema) != shape(schemas[0]):
            raise UserError(f"{file} has other columns or class names than {files[0]}. Open them one by one.")


class ParquetStore:
    """The images of Parquet files on a disk.

    Args:
        paths: The files.
        described: Their `pyarrow.parquet.FileMetaData`.
        column: The column of images.
    """

    def __init__(self, paths: Sequence[Path], described: Sequence[Any], column: str) -> None:
        self._paths = list(paths)
        self.files = [LocalFile(path) for path in paths]
        self._column = column
        counts = [metadata.num_rows for metadata in described]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._sizes = [file.size for file in self.files]
        self._groups = [
            metadata.row_group(group).num_rows for metadata in described for group in range(metadata.num_row_groups)
        ]
        self._rows: pa.ChunkedArray | None = None
        self._broken: list[tuple[range, str]] = []

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # another process opens the files itself

    def load(self, progress: Progress | None = None) -> None:
        """Reads the column of images into memory, or unpacks it into the cache and maps it.

        Args:
            progress: Called with (rows unpacked, rows in all).

        Raises:
            ValueError: A file has changed or cannot be read.
            OSError: The cache cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._broken = []
        for path, size in zip(self._paths, self._sizes, strict=True):
            if path.stat().st_size != size:
                raise UserError(f"{path} has changed since it was opened. Start again.")
        described = []
        for path in self._paths:
            with _readable(path):
                described.append(pq.read_metadata(path))
        for path, metadata in zip(self._paths, described, strict=True):
            check_columns(str(path), metadata, [self._column])
        total = sum(_unpacked_size(metadata, self._column) for metadata in described)
        chunks: list[pa.Array] = []
        for start, path in zip(self._starts, self._paths, strict=False):

            def report(done: int, start: int = start) -> None:
                if progress is not None:
                    progress(start + done, len(self))

            batches = self._read(path, start)
            if total <= IN_MEMORY:
                chunks += batches
            else:
                chunks += _mapped(path, self._column, batches, report)
        self._rows = pa.chunked_array(chunks) if chunks else pa.chunked_array([], type=pa.binary())

    def _read(self, path: Path, start: int) -> Iterator[pa.Array]:
        """Reads a column in pieces. A broken group of rows becomes empty cells."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        unpacked = [0]
        with pq.ParquetFile(path, memory_map=True) as file:
            kind = file.schema_arrow.field(self._column).type
            for group in range(file.num_row_groups):
                expected, done = file.metadata.row_group(group).num_rows, 0
                reason = ""
                try:
                    for cells in _cells(LocalFile(path), file, group, self._column, unpacked):
                        rows = cells[: expected - done]
                        done += len(rows)
                        yield rows
                except (pa.ArrowException, OSError) as error:
                    reason = f" ({_first_line(error)})"
                if done < expected:  # its footer may claim more rows than there are
                    reason = f"its part of the Parquet file cannot be read{reason}."
                    self._broken.append((range(start + done, start + expected), reason))
                    yield pa.nulls(expected - done, kind)
                start += expected

    def folders(self) -> list[str]:
        """Returns the distinct folders of the images' paths, each with a trailing slash, if cells have paths."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._rows is None:
            return []
        kind = self._rows.type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0 or not is_text(kind.field("path").type):
            return []
        paths = pc.struct_field(self._rows, "path").cast(pa.large_string())
        found = pc.unique(pc.replace_substring_regex(paths, r"[^/\\]*$", ""))
        folders = []
        for cell in found:
            with suppress(UnicodeDecodeError):  # its image is left out
                folders.append(cell.as_py())
        return [folder for folder in folders if folder]

    def read(self, row: int) -> bytes:
        """Returns the content of an image file."""
        if self._rows is None:
            self.load()
        assert self._rows is not None
        for rows, reason in self._broken:
            if row in rows:
                raise ImageError(reason)
        return image_bytes(self._rows[row], self._paths[self._file(row)].parent)

    def _file(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def stamp(self, row: int) -> bytes | None:
        """Returns the stamp of a cell when the file was opened; None for a cell that names another file."""
        if self._rows is None:
            self.load()
        assert self._rows is not None
        cell = self._rows[row]
        content = cell["bytes"] if cell.is_valid and hasattr(cell, "keys") else cell
        file = self._file(row)
        return (
            part_stamp(self.files[file].stamp(), f"{self._column} {row - self._starts[file]}")
            if content.is_valid
            else None
        )

    def cache_place(self) -> str:
        """Returns the paths of the files."""
        return "\0".join(file.key for file in self.files)

    def pieces(self) -> npt.NDArray[np.int64]:
        """Returns the number of the group of rows that each image is in; see `ShardStore`."""
        return np.repeat(np.arange(len(self._groups)), self._groups)

    def place(self, row: int) -> str:
        """Returns file and row, counted from 0."""
        file = self._file(row)
        return f"{self._paths[file]} row {row - self._starts[file]}"


def _cells(shard: ShardFile, file: Any, group: int, column: str, unpacked: list[int]) -> Iterator[pa.Array]:
    """Reads a column of a group of rows in pieces; `unpacked` as `joined` takes it."""
    together = rows_together(file.metadata.row_group(group), column, _BATCH)
    return joined(
        file.iter_batches(together, row_groups=[group], columns=[column]), _BATCH, str(shard), shard.size, unpacked
    )


def row_groups(path: Path, image_column: str = "") -> tuple[str, list[int]]:
    """Returns the column of images of a Parquet file, and the number of rows of each of its groups.

    Args:
        path: The file.
        image_column: See `read_parquet`.

    Raises:
        DamagedFileError: It is no Parquet file, or exceeds a limit.
        UserError: It has no such column.
    """
    with _opened(shard := LocalFile(path)) as file:
        check_parquet(str(path), shard.size, file.metadata)
        schema = file.schema_arrow
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return image_column_of(schema, str(path), image_column), counts


def images_of_groups(path: Path, column: str, groups: Sequence[int]) -> Iterator[pa.Array]:
    """Yields the cells of a column of images, about a thousand together, of some groups of rows.

    Args:
        path: The file.
        column: The column.
        groups: Numbers of the groups.

    Raises:
        DamagedFileError: They cannot be read; what came before is readable.
    """
    import pyarrow.parquet as pq

    unpacked = [0]
    with _readable(path), pq.ParquetFile(path, memory_map=True) as file:
        check_parquet(str(path), path.stat().st_size, file.metadata)
        check_columns(str(path), file.metadata, [column])
        for group in groups:
            yield from _cells(LocalFile(path), file, group, column, unpacked)


@contextmanager
def _readable(path: Path | ShardFile) -> Iterator[None]:
    """Converts errors of pyarrow, and of cells that Python has no value for, to `DamagedFileError`."""
    import pyarrow as pa

    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DamagedFileError(f"{path} cannot be read as a Parquet file ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _unpacked_size(metadata: Any, column: str) -> int:
    size = 0
    for group in range(metadata.num_row_groups):
        chunks = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        size += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
    return size


def _mapped(path: Path, column: str, batches: Iterator[pa.Array], report: Any) -> list[pa.Array]:
    """Returns the column, mapped from an Arrow file in the cache. Writes that file if it is missing."""
    import pyarrow as pa

    stat = path.stat()
    stamp = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{column}"
    key = hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()
    unpacked = cache_folder() / "parquet" / f"{key[:32]}.arrow"
    if not unpacked.exists():
        try:
            _write(unpacked, batches, report)
        except OSError as error:
            raise OSError(
                f"{path} cannot be unpacked into {unpacked.parent} ({error.strerror or error}). "
                "Free some space, or choose another folder with the environment variable DEIT_CACHE."
            ) from error
    with parsing(unpacked, "an unpacked column, and may be removed"), pa.memory_map(str(unpacked)) as mapped:
        return list(pa.ipc.open_file(mapped).read_all().column(0).chunks)


def _write(path: Path, batches: Iterator[pa.Array], report: Any) -> None:
    """Writes an Arrow file atomically."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        writer, done = None, 0
        with pa.OSFile(temporary, "wb") as sink:
            for batch in batches:
                record = pa.record_batch([batch], names=["image"])
                writer = writer or pa.ipc.new_file(sink, record.schema)
                writer.write_batch(record)
                done += len(batch)
                report(done)
            if writer is None:
                writer = pa.ipc.new_file(sink, pa.schema([("image", pa.binary())]))
            writer.close()
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)

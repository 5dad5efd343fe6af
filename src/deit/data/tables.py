"""Images in Parquet files and in data sets of the Hugging Face `datasets` package."""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.core.errors import DamagedFileError, parsing, read_json, shown
from deit.core.field_checks import MOST_LABELS
from deit.core.image_files import read_content
from deit.core.images import ImageError
from deit.core.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from deit.data.cache_folder import cache_folder
from deit.data.columns import IMAGE_NAMES, LABEL_NAMES, choose_column, choose_switches, not_an_image
from deit.data.contents import file_stamp, part_stamp
from deit.data.label_columns import UNLABELLED, LabelColumn, ignored_labels, switch_labels
from deit.data.parquet_limits import MOST_NOTES_BYTES, check_columns, check_parquet, joined, rows_together
from deit.data.part_names import divide_rows, split_columns
from deit.data.sources import Progress
from deit.data.stores import Part

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Bytes of images (compressed as they are) that each process holds in memory. Larger tables are unpacked into the cache
# once and mapped from there, one copy for all processes: a single row cannot be read from a Parquet file without
# unpacking many.
IN_MEMORY = 2**28
_BATCH = 1000  # rows that are unpacked together


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A table whose images are found: its schema, and how other columns are read."""

    schema: pa.Schema
    origin: str
    read: Callable[[Sequence[str]], dict[str, list[Any]]]  # values by column
    place: Callable[[int], str]


# --- columns of an Arrow table ------------------------------------------------------------------------


def _image_column(schema: pa.Schema, origin: str, asked: str) -> str:
    """Chooses the column of images by the types of a table, and by what `datasets` wrote into it."""
    columns, images = _described(schema), _image_columns(schema)
    image = choose_column(columns, images, IMAGE_NAMES, option="image_column", origin=origin, asked=asked)
    if image not in images:
        raise not_an_image(origin, image, columns[image], images)
    return image


def _described(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _image_columns(schema: pa.Schema) -> list[str]:
    features = _features(schema)
    return [field.name for field in schema if _can_be_image(field.type, features.get(field.name))]


def _labels_and_split(table: _Table, count: int, asked: str, problem_type: str) -> tuple[LabelColumn, Sequence[str]]:
    """Returns the labels of a table, and the part of each row where a column says it."""
    features, images = _features(table.schema), _image_columns(table.schema)
    others = [name for name in table.schema.names if name not in images]
    found = table.read([name for name in split_columns(others) if name != asked])
    may_divide = {name: _named(values, features.get(name)) for name, values in found.items()}
    split, dividing, notes = divide_rows(may_divide, origin=table.origin, place=table.place)
    for note in notes:
        logger.warning("%s", note)
    others = [name for name in others if name not in dividing]
    if problem_type == UNLABELLED:
        return ignored_labels(count), split
    if problem_type == MULTI_LABEL and (switches := _switches(table, others, asked)):
        return switch_labels(switches, table.origin), split
    name = _label_column(table.schema, table.origin, others, asked, problem_type)
    return LabelColumn(name=name, values=table.read([name])[name], class_names=_class_names(features.get(name))), split


def _named(values: list[Any], feature: Any) -> list[Any]:
    names = _class_names(feature)
    return values if names is None else [v if v is None or not 0 <= v < len(names) else names[v] for v in values]


def _switches(table: _Table, names: Sequence[str], asked: str) -> dict[str, list[Any]]:
    """Returns the columns of zeros and ones, where labels are written so and not as a list or names."""
    if asked in names or (not asked and any(name.lower() in LABEL_NAMES for name in names)):
        return {}
    fields = [table.schema.field(name) for name in names]
    if not asked and any(_is_list(field.type) for field in fields):
        return {}
    columns = table.read([field.name for field in fields if _can_be_switch(field.type)])
    several = choose_switches(columns, asked=asked, origin=table.origin)
    return {name: columns[name] for name in several}


def _label_column(schema: pa.Schema, origin: str, names: Sequence[str], asked: str, problem_type: str) -> str:
    features = _features(schema)
    others = [schema.field(name) for name in names]
    labels = [field.name for field in others if _can_be_label(field.type, problem_type)]
    labels += [field.name for field in others if field.name.lower() in LABEL_NAMES and field.name not in labels]
    named = [name for name in labels if _class_names(features.get(name))]
    if not any(name.lower() in LABEL_NAMES for name in labels) and len(named) == 1 and problem_type != REGRESSION:
        labels = named
    return choose_column(_described(schema), labels, LABEL_NAMES, option="label_column", origin=origin, asked=asked)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Returns the types that `datasets` notes in a table: {"label": {"_type": "ClassLabel", "names": [...]}}."""
    noted = (schema.metadata or {}).get(b"huggingface", b"{}")
    if len(noted) > MOST_NOTES_BYTES:
        raise DamagedFileError(f"The notes of its columns have {len(noted)} bytes, more than {MOST_NOTES_BYTES}.")
    try:
        return dict(json.loads(noted).get("info", {}).get("features") or {})
    except (ValueError, AttributeError, TypeError, RecursionError):  # somebody else's note
        return {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    if isinstance(feature, list) and len(feature) == 1:  # how `datasets` once wrote a list
        feature = feature[0]
    if isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) else None
    if names is not None and (not isinstance(names, list) or len(names) > MOST_LABELS):
        raise DamagedFileError(f"A table needs a list of at most {MOST_LABELS} class names. Received: {shown(names)}.")
    return tuple(str(name) for name in names) if names else None


def _can_be_image(kind: pa.DataType, feature: Any) -> bool:
    import pyarrow as pa

    noted = feature.get("_type", "Value") if isinstance(feature, dict) else "Value"
    if noted not in ("Image", "Value"):
        return False
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return False
        content = kind.field("bytes").type
        return _is_binary(content) or bool(pa.types.is_null(content))  # null: all images are files beside the table
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _can_be_label(kind: pa.DataType, problem_type: str) -> bool:
    from pyarrow import types

    if problem_type == REGRESSION:
        return bool(types.is_integer(kind) or types.is_floating(kind))
    if problem_type == MULTI_LABEL:
        return bool(_is_text(kind) or _is_list(kind))
    return bool(_is_text(kind) or types.is_integer(kind) or types.is_boolean(kind))


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind))


def _is_list(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _can_be_switch(kind: pa.DataType) -> bool:
    from pyarrow import types

    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return bool(number or _is_text(kind))


def _image_bytes(value: Any, folder: Path) -> bytes:
    """Returns the content of an image file from a cell: bytes, or {"bytes": ..., "path": ...} as `datasets` has it."""
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if value is None and path:
        try:
            return read_content(folder / path, f"the file {path}, which it names,")
        except FileNotFoundError as error:
            raise ImageError(f"it names the file {path}, which cannot be read ({error.strerror}).") from error
    if not value:
        raise ImageError("it has no image.")
    return bytes(value)


# --- Parquet ------------------------------------------------------------------------------------------


def parquet_part(
    name: str,
    paths: Sequence[Path],
    *,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    progress: Progress | None = None,
) -> Part:
    """Opens Parquet files that together are one part of a data set.

    Args:
        name: Of the part.
        paths: The files, in order.
        image_column: Column of images: bytes, or a struct of bytes and path; found by its type when empty.
        label_column: Column of labels; found by type and name when empty.
        problem_type: What the labels are for.
        progress: Called with (rows unpacked, rows in all), for tables that are too large for the memory.

    Raises:
        ValueError: A file is not Parquet or lacks a column, or the columns cannot be found.
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow.parquet as pq

    if not paths:
        raise ValueError("No Parquet files were given.")
    schemas, counts = [], []
    for path in paths:
        with _readable(path), pq.ParquetFile(path) as file:
            check_parquet(path, file.metadata)
            schemas.append(file.schema_arrow)
            counts.append(file.metadata.num_rows)
    image = _image_column(schemas[0], str(paths[0]), image_column)
    store = ParquetStore(paths, counts, image)

    def read(names: Sequence[str]) -> dict[str, list[Any]]:
        _require_same_columns(paths, schemas, [image, *names])
        values: dict[str, list[Any]] = {each: [] for each in names}
        for path in paths if names else ():
            with _readable(path), pq.ParquetFile(path) as file:
                check_columns(path, file.metadata, names)
                table = file.read(columns=list(names))
                for each in names:
                    values[each] += table.column(each).to_pylist()
        return values

    origin = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    table = _Table(schema=schemas[0], origin=str(paths[0]), read=read, place=store.place)
    labels, split = _labels_and_split(table, len(store), label_column, problem_type)
    store.load(progress)
    return Part(name=name, origin=origin, store=store, labels=labels, split=split)


def _require_same_columns(paths: Sequence[Path], schemas: Sequence[pa.Schema], names: Sequence[str]) -> None:
    """Refuses files that lack one of some columns, name its classes differently, or have a column of parts more."""

    def shape(schema: pa.Schema) -> list[Any]:
        features = _features(schema)
        return [
            split_columns(schema.names),
            *((name in schema.names, _class_names(features.get(name))) for name in names),
        ]

    for path, schema in zip(paths[1:], schemas[1:], strict=True):
        if shape(schema) != shape(schemas[0]):
            raise ValueError(f"{path} has other columns or class names than {paths[0]}. Open them one by one.")


class ParquetStore:
    """The images of Parquet files.

    Args:
        paths: The files.
        counts: Rows of each.
        column: The column of images.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], column: str) -> None:
        self._paths = list(paths)
        self._column = column
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._sizes = [path.stat().st_size for path in paths]
        self._stamps = [file_stamp(os.path.abspath(path)) for path in paths]
        self._rows: pa.ChunkedArray | None = None
        self._broken: list[tuple[range, str]] = []

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # another process opens the files for itself

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
                raise ValueError(f"{path} has changed since it was opened. Start again.")
        described = [pq.read_metadata(path) for path in self._paths]
        for path, metadata in zip(self._paths, described, strict=True):
            check_columns(path, metadata, [self._column])
        total = sum(_unpacked_size(metadata, self._column) for metadata in described)
        parts: list[pa.Array] = []
        for start, path in zip(self._starts, self._paths, strict=False):

            def report(done: int, start: int = start) -> None:
                if progress is not None:
                    progress(start + done, len(self))

            batches = self._read(path, start)
            if total <= IN_MEMORY:
                parts += batches
            else:
                parts += _mapped(path, self._column, batches, report)
        self._rows = pa.chunked_array(parts) if parts else pa.chunked_array([], type=pa.binary())

    def _read(self, path: Path, start: int) -> Iterator[pa.Array]:
        """Reads a column piece by piece; a group of rows that is broken becomes empty cells."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        unpacked = [0]
        with pq.ParquetFile(path, memory_map=True) as file:
            kind = file.schema_arrow.field(self._column).type
            for group in range(file.num_row_groups):
                found, done = file.metadata.row_group(group), 0
                expected, together = found.num_rows, rows_together(found, self._column, _BATCH)
                try:
                    batches = file.iter_batches(together, row_groups=[group], columns=[self._column])
                    for rows in joined(batches, _BATCH, path, unpacked):
                        done += len(rows)
                        yield rows
                except (pa.ArrowException, OSError) as error:
                    reason = f"its part of the Parquet file cannot be read ({_first_line(error)})."
                    self._broken.append((range(start + done, start + expected), reason))
                    yield pa.nulls(expected - done, kind)
                start += expected

    def read(self, row: int) -> bytes:
        """Returns the content of an image file."""
        if self._rows is None:
            self.load()
        assert self._rows is not None
        for rows, reason in self._broken:
            if row in rows:
                raise ImageError(reason)
        return _image_bytes(self._rows[row].as_py(), self._paths[self._file(row)].parent)

    def _file(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def stamp(self, row: int) -> bytes | None:
        """Stands for a cell of the file as that was when it was opened; None for a cell that names another file."""
        if self._rows is None:
            self.load()
        assert self._rows is not None
        cell = self._rows[row]
        content = cell["bytes"] if cell.is_valid and hasattr(cell, "keys") else cell
        file = self._file(row)
        return (
            part_stamp(self._stamps[file], f"{self._column} {row - self._starts[file]}") if content.is_valid else None
        )

    def cache_place(self) -> str:
        """Returns the paths of the files."""
        return "\0".join(os.path.abspath(path) for path in self._paths)

    def place(self, row: int) -> str:
        """Names file and row, counted from 0."""
        file = self._file(row)
        return f"{self._paths[file]} row {row - self._starts[file]}"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns pyarrow's errors into one of ours."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a Parquet file ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _unpacked_size(metadata: Any, column: str) -> int:
    size = 0
    for group in range(metadata.num_row_groups):
        chunks = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        size += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
    return size


def _mapped(path: Path, column: str, batches: Iterator[pa.Array], report: Any) -> list[pa.Array]:
    """Returns the column from an Arrow file in the cache, mapped into memory; writes that file where there is none."""
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
    with pa.memory_map(str(unpacked)) as mapped:
        return list(pa.ipc.open_file(mapped).read_all().column(0).chunks)


def _write(path: Path, batches: Iterator[pa.Array], report: Any) -> None:
    """Writes an Arrow file whole or not at all."""
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


# --- the `datasets` package ---------------------------------------------------------------------------


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `datasets.save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def load_saved_dataset(folder: Path) -> dict[str, datasets.Dataset]:
    """Opens what `datasets.save_to_disk` wrote: the parts by name, one of the name "" where there are none.

    Raises:
        ValueError: It is damaged.
        ModuleNotFoundError: `datasets` is not installed.
    """
    import datasets

    for file in folder.rglob("*.json"):  # nested too deep, they end the parser
        read_json(file, "a description of a saved data set")
    with parsing(folder, "a saved data set"):
        loaded = datasets.load_from_disk(str(folder))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def dataset_part(
    name: str,
    dataset: datasets.Dataset,
    *,
    origin: str,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
) -> Part:
    """Takes a `datasets.Dataset` as one part of a data set.

    Args:
        name: Of the part.
        dataset: With a column of images and one of labels.
        origin: What messages call it.
        image_column: See `parquet_part`.
        label_column: See `parquet_part`.
        problem_type: What the labels are for.

    Raises:
        ValueError: The columns cannot be found.
    """
    schema = dataset.features.arrow_schema
    store = DatasetStore(dataset, _image_column(schema, origin, image_column), origin)

    def read(names: Sequence[str]) -> dict[str, list[Any]]:
        if not names:
            return {}
        table = dataset.select_columns(list(names)).with_format("arrow")[:]
        return {each: table.column(each).to_pylist() for each in names}

    table = _Table(schema=schema, origin=origin, read=read, place=store.place)
    labels, split = _labels_and_split(table, len(dataset), label_column, problem_type)
    return Part(name=name, origin=origin, store=store, labels=labels, split=split)


class DatasetStore:
    """The images of a `datasets.Dataset`, as they are stored.

    Args:
        dataset: The data set.
        column: Its column of images.
        origin: What messages call it.
    """

    def __init__(self, dataset: datasets.Dataset, column: str, origin: str) -> None:
        self._images = dataset.select_columns([column]).with_format("arrow")  # this format decodes nothing
        self._origin = origin

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> bytes:
        """Returns the content of an image file."""
        return _image_bytes(self._images[row].column(0)[0].as_py(), Path())

    def place(self, row: int) -> str:
        """Names data set and row, counted from 0."""
        return f"{self._origin} row {row}"

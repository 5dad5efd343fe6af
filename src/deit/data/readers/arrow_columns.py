"""Finds the columns of a typed table: images, labels and splits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.core.config.field_checks import MOST_LABELS
from deit.core.errors import DamagedFileError, shown
from deit.core.images.image_files import read_content
from deit.core.images.reading import ImageError
from deit.core.scores.metrics import MULTI_LABEL, REGRESSION
from deit.data.labels.columns import IMAGE_NAMES, LABEL_NAMES, PATH_NAMES, choose_column, choose_switches, not_an_image
from deit.data.labels.label_columns import UNLABELLED, LabelColumn, ignored_labels, switch_labels
from deit.data.labels.split_names import divide_rows, note_splits_in_paths, split_columns
from deit.data.readers.parquet_limits import MOST_NOTES_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ArrowTable:
    """A table with a known column of images: its schema, and a function that reads other columns."""

    schema: pa.Schema
    origin: str
    read: Callable[[Sequence[str]], dict[str, list[Any]]]  # values by column
    place: Callable[[int], str]


def image_column_of(schema: pa.Schema, origin: str, asked: str) -> str:
    """Chooses the column of images by the types of a table and the notes of `datasets` in it."""
    columns, images = _described(schema), _image_columns(schema)
    image = choose_column(columns, images, IMAGE_NAMES, option="image_column", origin=origin, asked=asked)
    if image not in images:
        raise not_an_image(origin, image, columns[image], images)
    return image


def _described(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _image_columns(schema: pa.Schema) -> list[str]:
    features = column_features(schema)
    return [field.name for field in schema if _can_be_image(field.type, features.get(field.name))]


def labels_and_split(table: ArrowTable, count: int, asked: str, problem_type: str) -> tuple[LabelColumn, Sequence[str]]:
    """Returns the labels of a table, and the split of each row if a column gives it."""
    features, images = column_features(table.schema), _image_columns(table.schema)
    others = [name for name in table.schema.names if name not in images]
    found = table.read([name for name in split_columns(others) if name != asked])
    may_divide = {name: _named(values, features.get(name)) for name, values in found.items()}
    split, dividing, notes = divide_rows(may_divide, origin=table.origin, place=table.place)
    for note in notes:
        logger.warning("%s", note)
    for name in [] if split else others:
        if name.lower() in PATH_NAMES and name != asked and is_text(table.schema.field(name).type):
            note_splits_in_paths(table.origin, [path for path in table.read([name])[name] if path])
    others = [name for name in others if name not in dividing]
    if problem_type == UNLABELLED:
        return ignored_labels(count), split
    if problem_type == MULTI_LABEL and (switches := _switches(table, others, asked)):
        return switch_labels(switches, table.origin), split
    name = _label_column(table.schema, table.origin, others, asked, problem_type)
    return LabelColumn(
        name=name, values=table.read([name])[name], class_names=class_names_of(features.get(name))
    ), split


def _named(values: list[Any], feature: Any) -> list[Any]:
    names = class_names_of(feature)
    if names is None:
        return values
    return [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in values]


def _switches(table: ArrowTable, names: Sequence[str], asked: str) -> dict[str, list[Any]]:
    """Returns the columns of zeros and ones that hold the labels; none if a column holds lists or names."""
    if asked in names or (not asked and any(name.lower() in LABEL_NAMES for name in names)):
        return {}
    fields = [table.schema.field(name) for name in names]
    if not asked and any(_is_list(field.type) for field in fields):
        return {}
    columns = table.read([field.name for field in fields if _can_be_switch(field.type)])
    several = choose_switches(columns, asked=asked, origin=table.origin)
    return {name: columns[name] for name in several}


def _label_column(schema: pa.Schema, origin: str, names: Sequence[str], asked: str, problem_type: str) -> str:
    features = column_features(schema)
    others = [schema.field(name) for name in names]
    labels = [field.name for field in others if _can_be_label(field.type, problem_type)]
    labels += [field.name for field in others if field.name.lower() in LABEL_NAMES and field.name not in labels]
    named = [name for name in labels if class_names_of(features.get(name))]
    if not any(name.lower() in LABEL_NAMES for name in labels) and len(named) == 1 and problem_type != REGRESSION:
        labels = named
    return choose_column(_described(schema), labels, LABEL_NAMES, option="label_column", origin=origin, asked=asked)


def column_features(schema: pa.Schema) -> dict[str, Any]:
    """Returns the types that `datasets` records in a table: {"label": {"_type": "ClassLabel", "names": [...]}}."""
    noted = (schema.metadata or {}).get(b"huggingface", b"{}")
    if len(noted) > MOST_NOTES_BYTES:
        raise DamagedFileError(f"The notes of its columns have {len(noted)} bytes, more than {MOST_NOTES_BYTES}.")
    try:
        return dict(json.loads(noted).get("info", {}).get("features") or {})
    except (ValueError, AttributeError, TypeError, RecursionError):  # another program's note
        return {}


def class_names_of(feature: Any) -> tuple[str, ...] | None:
    """Returns the class names that `datasets` records for a column, or None."""
    if isinstance(feature, list) and len(feature) == 1:  # the list format of old `datasets` versions
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
        return bool(is_text(kind) or _is_list(kind))
    return bool(is_text(kind) or types.is_integer(kind) or types.is_boolean(kind))


def is_text(kind: pa.DataType) -> bool:
    """Returns True if a column holds texts, each stored by itself or once in a dictionary."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _can_be_switch(kind: pa.DataType) -> bool:
    from pyarrow import types

    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return bool(number or is_text(kind))


def image_bytes(cell: pa.Scalar, folder: Path | None) -> bytes:
    """Returns the content of an image file from a cell: bytes, or `datasets`' {"bytes": ..., "path": ...}.

    Args:
        cell: The cell.
        folder: Folder of the files that cells name; None reads no such files.

    Raises:
        ImageError: There is no image.
    """
    path = None
    try:
        value: Any = cell.as_py()
    except UnicodeDecodeError as error:
        raise ImageError(f"its path is not UTF-8 text ({error}).") from error
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if value is None and path and folder is not None:
        try:
            return read_content(folder / path, f"the file {path}, which it names,")
        except FileNotFoundError as error:
            raise ImageError(f"it names the file {path}, which cannot be read ({error.strerror}).") from error
    if not value:
        raise ImageError("it has no image.")
    return bytes(value)

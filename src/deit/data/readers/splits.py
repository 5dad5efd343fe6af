"""What is at the path of a data set: its parts, opened when they are asked for, or a folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deit.core.errors import DamagedFileError, UserError, WrongTypeError
from deit.core.images.reading import ValueRange
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.downloads import fetch_shards
from deit.data.labels.label_columns import UNLABELLED
from deit.data.labels.split_names import name_parts, part_of, part_within
from deit.data.readers.csv_files import listed_parts
from deit.data.readers.hf_datasets import dataset_part, is_saved_dataset, load_saved_dataset
from deit.data.readers.image_stores import Part, divided
from deit.data.readers.parquet import parquet_part
from deit.data.readers.webdataset import expand_braces, shard_part
from deit.data.sources import Progress
from deit.data.storage.image_search import is_hidden, visible_folders

if TYPE_CHECKING:
    import datasets

DataPath: TypeAlias = (
    "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | datasets.Dataset | datasets.DatasetDict"
)

SUPPORTED = (
    "a folder with one sub-folder of images for each class (or train/ and val/ of that form), .parquet files, "
    "a .csv or .tsv file of paths and labels, a folder of datasets.save_to_disk, or .tar shards"
)
Parts: TypeAlias = Mapping[str, Callable[[], Part]]


@dataclass(frozen=True)
class ReadOptions:
    """How a part is read; see `deit.data.open_data.open_data`."""

    image_column: str
    label_column: str
    problem_type: str
    progress: Progress | None
    value_range: ValueRange | None = None
    label_separator: str = ""
    strict: bool = False
    check: bool = True

    def columns(self) -> dict[str, str]:
        """Returns what every kind of part takes."""
        return {
            "image_column": self.image_column,
            "label_column": self.label_column,
            "problem_type": self.problem_type,
        }


def find_parts(path: DataPath, options: ReadOptions) -> Parts | Path:
    """Returns functions that open the parts of a data set, by name; or a folder of images.

    A data set that is not divided is one part of any name.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: It is of no known kind or of several, or its parts cannot be told apart.
        TypeError: It is no path and no data set of `datasets`.
    """
    if not isinstance(path, (str, os.PathLike, list, tuple)):
        return _parts_of_object(path, options)
    names = [os.fspath(each) for each in path] if isinstance(path, (list, tuple)) else [os.fspath(path)]
    names = [name for each in names for name in ([each] if os.path.exists(each) else expand_braces(each))]
    if not names:
        raise UserError(f"An empty list has no data. Supported: {SUPPORTED}.")
    for name in names:
        if not _is_address(name) and not os.path.exists(name):
            raise FileNotFoundError(f"There is nothing at {name}. Supported: {SUPPORTED}.")
    if len(names) == 1 and os.path.isdir(names[0]):
        return _parts_of_folder(Path(names[0]), options)
    kinds = sorted({_kind(name) for name in names})
    if len(kinds) > 1:
        raise UserError(f"The files are of several kinds: {', '.join(kinds)}. Pass files of one.")
    return _parts_of_files(kinds[0], names, options)


def _is_address(name: str) -> bool:
    return "://" in name or name.startswith("pipe:")


def _kind(name: str) -> str:
    """Returns ".parquet", ".csv" (for .tsv too) or ".tar"."""
    bare = name.partition("?")[0] if _is_address(name) else name
    ending = Path(bare).suffix.lower()
    ending = ".csv" if ending == ".tsv" else ending
    if os.path.isdir(name) or ending not in (".parquet", ".csv", ".tar"):
        raise UserError(f"{bare} is not a data set of a known kind. Supported: {SUPPORTED}.")
    if _is_address(name) and ending != ".tar":
        raise UserError(f"{bare} cannot be opened: only .tar shards are fetched. Download it and pass its path.")
    return ending


def _parts_of_folder(folder: Path, options: ReadOptions) -> Parts | Path:
    if is_saved_dataset(folder):
        return _parts_of_datasets(load_saved_dataset(folder), str(folder), options)
    inside = visible_folders(folder)
    places = [folder, *(p for p in inside if part_within(p.name) or p.name.lower() == "data")]
    for ending in (".parquet", ".tar"):
        for files in (_files(places[:1], ending), _files(places[1:], ending)):
            if files:
                return _parts_of_files(ending, files, options)
    tables = sorted([*_files([folder], ".csv"), *_files([folder], ".tsv")])
    if tables and not inside:
        return _parts_of_files(".csv", tables, options)
    if tables and len(inside) == 1 and inside[0].name != "train":
        raise UserError(f"{folder} has one folder, {inside[0].name}/, and a table. Pass the table: {tables[0]}.")
    _refuse_columns(folder, options)
    return folder


def _refuse_columns(root: Path, options: ReadOptions) -> None:
    if options.image_column or options.label_column:
        raise UserError(f"{root} is a folder of images, which has no columns. Leave image_column and label_column out.")
    if options.problem_type not in (SINGLE_LABEL, UNLABELLED):
        raise UserError(
            f"{root} is a folder of images, where each has one class. For {options.problem_type}, list the files and "
            "their labels in a .csv file."
        )


def _files(folders: Sequence[Path], ending: str) -> list[str]:
    found = [file for folder in folders for file in sorted(folder.iterdir()) if not is_hidden(file.name)]
    return [str(file) for file in found if file.suffix.lower() == ending and file.is_file()]


def _parts_of_files(kind: str, names: Sequence[str], options: ReadOptions) -> Parts:
    groups = _named_after_parts(names)
    if kind == ".csv":
        for members in groups.values():
            if len(members) > 1:
                raise UserError(f"{members[0]} and {members[1]} are for the same part. Join them into one table.")
    if len(groups) == 1:  # which a column may divide, whatever its name is
        ((part, members),) = groups.items()
        return _opened_parts(_open_files(kind, part, members, options))
    if kind == ".csv":  # quickly read, and then all contradictions are found before an image is
        return _opened_parts({part: _open_one_of(kind, part, members, options) for part, members in groups.items()})
    return {part: partial(_open_one_of, kind, part, members, options) for part, members in groups.items()}


def _open_files(kind: str, part: str, names: Sequence[str], options: ReadOptions) -> dict[str, Part]:
    for name in names:
        if os.path.exists(name) and not os.path.isfile(name):  # opened, a pipe waits and a device goes on for ever
            raise DamagedFileError(f"{name} cannot be read as a {kind} file: it is a pipe, a socket or a device.")
    if kind == ".csv":
        parts = listed_parts(Path(names[0]), **options.columns())
        return {part: replace(parts[""], name=part)} if "" in parts else parts
    if kind == ".parquet":
        paths = [Path(name) for name in names]
        return divided(parquet_part(part, paths, **options.columns(), progress=options.progress))
    shards = fetch_shards(names, options.progress)
    return divided(shard_part(part, shards, **options.columns(), progress=options.progress))


def _open_one_of(kind: str, part: str, names: Sequence[str], options: ReadOptions) -> Part:
    return _only(part, _open_files(kind, part, names, options), names[0])


def _only(part: str, parts: Mapping[str, Part], origin: str) -> Part:
    """Returns the part of what is named after it; a column must not say something else."""
    if list(parts) != [part]:
        raise UserError(
            f"{origin} is one of several tables and has a column 'split' or the like, which says {', '.join(parts)} in "
            f"place of {part}. Pass it alone, or remove the column."
        )
    return parts[part]


def _opened_parts(parts: Mapping[str, Part]) -> Parts:
    return {name: partial(_given, part) for name, part in parts.items()}


def _given(part: Part) -> Part:
    return part


def _named_after_parts(names: Sequence[str]) -> dict[str, list[str]]:
    """Groups files by the part that their names tell, or else the names of their folders: "cifar10-train.parquet"."""
    several = len({Path(name).parent for name in names}) > 1  # then one word of a folder's name is enough
    groups: dict[str, list[str]] = {}
    for name in names:
        path = Path(name.partition("?")[0] if _is_address(name) else name)
        parent = path.parent.name
        told = part_within(path.stem) or (part_within(parent) if several else part_of(parent))
        groups.setdefault(told, []).append(name)
    if "" in groups and len(groups) > 1:
        raise UserError(
            f"Some files are named after a part of the data and others are not: {groups[''][0]}. "
            "Name each after train, val or test, or none."
        )
    return groups


def _parts_of_object(data: Any, options: ReadOptions) -> Parts:
    if type(data).__module__.partition(".")[0] == "datasets":
        import datasets

        if isinstance(data, datasets.DatasetDict):
            return _parts_of_datasets(dict(data), "the data set", options)
        if isinstance(data, datasets.Dataset):
            return _parts_of_datasets({"": data}, "the data set", options)
    raise WrongTypeError(
        f"path must be a path, a list of paths, a datasets.Dataset or a DatasetDict. Received: {type(data).__name__}."
    )


def _parts_of_datasets(loaded: Mapping[str, datasets.Dataset], origin: str, options: ReadOptions) -> Parts:
    if not loaded:
        raise UserError(f"{origin} has no parts. Save it again.")
    if len(loaded) == 1:
        ((name, dataset),) = loaded.items()
        return _opened_parts(_open_dataset(part_of(name) or name, dataset, origin, options))
    known = {key: part for part, key in name_parts(list(loaded), origin).items()}
    return {
        known.get(name, name): partial(_open_one_dataset, known.get(name, name), dataset, f"{origin} ({name})", options)
        for name, dataset in loaded.items()
    }


def _open_dataset(name: str, dataset: datasets.Dataset, origin: str, options: ReadOptions) -> dict[str, Part]:
    shown = f"{origin} ({name})" if name else origin
    return divided(dataset_part(name, dataset, origin=shown, **options.columns()))


def _open_one_dataset(name: str, dataset: datasets.Dataset, origin: str, options: ReadOptions) -> Part:
    return _only(name, divided(dataset_part(name, dataset, origin=origin, **options.columns())), origin)

"""Reads data sets of the Hugging Face `datasets` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.core.errors import UserError, parsing, read_json
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.labels.split_names import name_splits, split_of
from deit.data.readers.arrow_columns import ArrowTable, image_bytes, image_column_of, labels_and_split
from deit.data.readers.image_stores import Rows, StoredSplit, divided
from deit.data.readers.reader import Place, ReadOptions, Splits
from deit.data.readers.split_files import only, opened_splits

if TYPE_CHECKING:
    import datasets


class HuggingFaceDatasets:
    """Reads a `datasets.Dataset` or `DatasetDict`, and folders of `datasets.save_to_disk`."""

    def takes(self, place: Place) -> bool:
        """Returns True for such an object or folder."""
        if place.folder is not None:
            return is_saved_dataset(place.folder)
        if type(place.data).__module__.partition(".")[0] != "datasets":
            return False
        import datasets

        return isinstance(place.data, (datasets.Dataset, datasets.DatasetDict))

    def splits(self, place: Place, options: ReadOptions) -> Splits:
        """Finds the splits by the keys of the data set, or by a column."""
        if place.folder is not None:
            return _splits_of(load_saved_dataset(place.folder), str(place.folder), options)
        return _splits_of(
            dict(place.data) if isinstance(place.data, dict) else {"": place.data}, "the data set", options
        )


def _splits_of(loaded: Mapping[str, datasets.Dataset], origin: str, options: ReadOptions) -> Splits:
    if not loaded:
        raise UserError(f"{origin} has no parts. Save it again.")
    if len(loaded) == 1:
        ((key, dataset),) = loaded.items()
        return opened_splits(partial(_open, split_of(key) or key, dataset, origin), options)
    known = {key: name for name, key in name_splits(list(loaded), origin).items()}
    named = {known.get(key, key): dataset for key, dataset in loaded.items()}
    origins = {known.get(key, key): f"{origin} ({key})" for key in loaded}
    return Splits(
        named={
            name: StoredSplit(read=partial(_open_one, name, dataset, origins[name]), options=options)
            for name, dataset in named.items()
        }
    )


def _open(name: str, dataset: datasets.Dataset, origin: str, options: ReadOptions) -> dict[str, Rows]:
    shown = f"{origin} ({name})" if name else origin
    return divided(read_dataset(name, dataset, origin=shown, **options.columns()))


def _open_one(name: str, dataset: datasets.Dataset, origin: str, options: ReadOptions) -> Rows:
    return only(name, divided(read_dataset(name, dataset, origin=origin, **options.columns())), origin)


def is_saved_dataset(folder: Path) -> bool:
    """Returns True if `datasets.save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def load_saved_dataset(folder: Path) -> dict[str, datasets.Dataset]:
    """Opens a folder of `datasets.save_to_disk`. Returns the splits by name, or one named "" without splits.

    Raises:
        ValueError: The folder is damaged.
        ModuleNotFoundError: `datasets` is not installed.
    """
    import datasets

    for file in folder.rglob("*.json"):  # deep nesting would crash the parser
        read_json(file, "a description of a saved data set")
    with parsing(folder, "a saved data set"):
        loaded = datasets.load_from_disk(str(folder))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def read_dataset(
    name: str,
    dataset: datasets.Dataset,
    *,
    origin: str,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
) -> Rows:
    """Reads a `datasets.Dataset` as one split of a data set.

    Args:
        name: Name of the split.
        dataset: Data set with a column of images and one of labels.
        origin: Name of the data set, for messages.
        image_column: See `read_parquet`.
        label_column: See `read_parquet`.
        problem_type: Type of the labels.

    Raises:
        ValueError: The columns cannot be found.
    """
    schema = dataset.features.arrow_schema
    store = DatasetStore(dataset, image_column_of(schema, origin, image_column), origin)

    def read(names: Sequence[str]) -> dict[str, list[Any]]:
        if not names:
            return {}
        with parsing(Path(origin), "a data set of readable columns"):
            table = dataset.select_columns(list(names)).with_format("arrow")[:]
            return {each: table.column(each).to_pylist() for each in names}

    table = ArrowTable(schema=schema, origin=origin, read=read, place=store.place)
    labels, split = labels_and_split(table, len(dataset), label_column, problem_type)
    return Rows(name=name, origin=origin, store=store, labels=labels, split=split)


class DatasetStore:
    """The images of a `datasets.Dataset`, undecoded.

    Args:
        dataset: The data set.
        column: Its column of images.
        origin: Name of the data set, for messages.
    """

    def __init__(self, dataset: datasets.Dataset, column: str, origin: str) -> None:
        self._images = dataset.select_columns([column]).with_format("arrow")  # decodes nothing
        self._origin = origin

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> bytes:
        """Returns the content of an image file."""
        return image_bytes(self._images[row].column(0)[0], Path())

    def place(self, row: int) -> str:
        """Returns data set and row, counted from 0."""
        return f"{self._origin} row {row}"

"""Images in data sets of the Hugging Face `datasets` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.core.errors import parsing, read_json
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.readers.arrow_columns import ArrowTable, image_bytes, image_column_of, labels_and_split
from deit.data.readers.image_stores import Part

if TYPE_CHECKING:
    import datasets

# Bytes of images (compressed as they are) that each process holds in memory. Larger tables are unpacked into the cache


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
    store = DatasetStore(dataset, image_column_of(schema, origin, image_column), origin)

    def read(names: Sequence[str]) -> dict[str, list[Any]]:
        if not names:
            return {}
        table = dataset.select_columns(list(names)).with_format("arrow")[:]
        return {each: table.column(each).to_pylist() for each in names}

    table = ArrowTable(schema=schema, origin=origin, read=read, place=store.place)
    labels, split = labels_and_split(table, len(dataset), label_column, problem_type)
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
        return image_bytes(self._images[row].column(0)[0].as_py(), Path())

    def place(self, row: int) -> str:
        """Names data set and row, counted from 0."""
        return f"{self._origin} row {row}"

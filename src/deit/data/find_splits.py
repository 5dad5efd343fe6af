"""Finds the reader of a data set, and with it the splits. `READERS` is the table of all sources."""

from __future__ import annotations

import os
from pathlib import Path

from deit.core.errors import UserError
from deit.data.readers.csv_files import CsvFiles
from deit.data.readers.hf_datasets import HuggingFaceDatasets
from deit.data.readers.image_folder import ImageFolders
from deit.data.readers.parquet import ParquetFiles
from deit.data.readers.reader import DataPath, Place, Reader, ReadOptions, Splits
from deit.data.readers.webdataset import Shards, expand_braces
from deit.data.streams.addresses import check_address, is_address, name_of, path_of, shown
from deit.data.streams.shard_files import addresses_of

# The first reader that takes a place reads it. To add a source, add a line.
READERS: tuple[Reader, ...] = (
    HuggingFaceDatasets(),
    ParquetFiles(),
    Shards(),
    CsvFiles(),
    ImageFolders(),  # takes every folder that no other takes
)

SUPPORTED = (
    "a folder with one sub-folder of images for each class (or train/ and val/ of that form), .parquet files, "
    "a .csv or .tsv file of paths and labels, a folder of datasets.save_to_disk, or .tar shards; .parquet and .tar "
    "files also by their addresses (https://, s3://, ...)"
)


def find_splits(path: DataPath, options: ReadOptions) -> Splits:
    """Returns the splits of a data set, mostly unopened.

    Args:
        path: See `deit.data.open_data.open_data`.
        options: How to read.

    Raises:
        FileNotFoundError: There is nothing at the path.
        UserError: No reader takes the data, it mixes several kinds, or its splits are ambiguous.
        TypeError: `path` is neither a path nor a data set of `datasets`.
    """
    place = _place(path)
    reader = _reader_of(place)
    if reader is None:
        raise _refusal(place)
    return reader.splits(place, options)


def _place(path: DataPath) -> Place:
    if not isinstance(path, (str, os.PathLike, list, tuple)):
        return Place(data=path)
    names = [os.fspath(each) for each in path] if isinstance(path, (list, tuple)) else [os.fspath(path)]
    names = [path_of(name) for each in names for name in ([each] if os.path.exists(each) else expand_braces(each))]
    names = [name for each in names for name in (addresses_of(each) if is_address(each) else [each])]
    if not names:
        raise UserError(f"An empty list has no data. Supported: {SUPPORTED}.")
    for name in names:
        if not is_address(name) and not os.path.exists(name):
            raise FileNotFoundError(f"There is nothing at {name}. Supported: {SUPPORTED}.")
    if len(names) == 1 and os.path.isdir(names[0]):
        return Place(folder=Path(names[0]))
    return Place(names=tuple(names))


def _reader_of(place: Place) -> Reader | None:
    return next((reader for reader in READERS if reader.takes(place)), None)


def _refusal(place: Place) -> Exception:
    """Returns the error for a place that no reader takes."""
    if not place.names:
        return TypeError(
            "path must be a path, a list of paths, a datasets.Dataset or a DatasetDict. "
            f"Received: {type(place.data).__name__}."
        )
    for name in place.names:
        if _reader_of(Place(names=(name,))) is not None:
            continue
        if is_address(name):
            check_address(name)
            if _reader_of(Place(names=(name_of(name),))) is not None:
                return UserError(
                    f"{shown(name)} cannot be opened: only .tar and .parquet files are read by their addresses. Copy "
                    "it and pass its path."
                )
        return UserError(f"{shown(name)} is not a data set of a known kind. Supported: {SUPPORTED}.")
    kinds = sorted({Path(name_of(name)).suffix.lower() for name in place.names})
    return UserError(f"The files are of several kinds: {', '.join(kinds)}. Pass files of one.")

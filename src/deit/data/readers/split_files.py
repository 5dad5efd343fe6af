"""Groups files by the splits in their names, and opens each group on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from deit.core.errors import DamagedFileError, UserError
from deit.data.labels.split_names import split_of, split_within
from deit.data.readers.image_stores import Rows, StoredSplit
from deit.data.readers.reader import Place, ReadOptions, Splits
from deit.data.storage.image_search import is_hidden, visible_folders
from deit.data.streams.addresses import is_address, name_of, named

# Opens the files of one split, given its name. A column may divide them into several splits.
OpenFiles: TypeAlias = Callable[[str, Sequence[str], ReadOptions], Mapping[str, Rows]]


def files_at(place: Place, endings: Sequence[str], *, fetched: bool = False) -> list[str]:
    """Returns the files at a place if all are of one kind, else an empty list.

    Searches a folder; if it holds no such file, its sub-folders named after splits or "data".

    Args:
        place: Files, or a folder.
        endings: Endings of that kind, in lower case.
        fetched: True accepts addresses too.
    """
    if place.folder is None:
        return list(place.names) if all(_is_file(name, endings, fetched) for name in place.names) else []
    inside = [f for f in visible_folders(place.folder) if split_within(f.name) or f.name.lower() == "data"]
    return files_in([place.folder], endings) or files_in(inside, endings)


def files_in(folders: Sequence[Path], endings: Sequence[str]) -> list[str]:
    """Returns the visible files with given endings, sorted within each folder."""
    found = [file for folder in folders for file in sorted(folder.iterdir()) if not is_hidden(file.name)]
    return [str(file) for file in found if file.suffix.lower() in endings and file.is_file()]


def _is_file(name: str, endings: Sequence[str], fetched: bool) -> bool:
    return (
        Path(name_of(name)).suffix.lower() in endings and (fetched or not is_address(name)) and not os.path.isdir(name)
    )


def split_files(names: Sequence[str], open_files: OpenFiles, options: ReadOptions, *, at_once: bool = False) -> Splits:
    """Returns the splits of files that are named after them: "cifar10-train.parquet", "train/0001.tar".

    Files without such names are one group, which a column may divide.

    Args:
        names: The files.
        open_files: Opens the files of one split.
        options: How to read.
        at_once: True opens every group now, to find contradictions before images are read.

    Raises:
        UserError: Only some names contain a split, or a file is not a regular one.
    """
    groups = _by_split(names)
    if len(groups) == 1:
        ((name, members),) = groups.items()
        return opened_splits(partial(_open, open_files, name, members), options)
    named: dict[str, Callable[[ReadOptions], Rows]] = {
        name: partial(_open_one, open_files, name, members) for name, members in groups.items()
    }
    if at_once:
        named = {name: _kept(read(options), options, read) for name, read in named.items()}
    return Splits(named={name: StoredSplit(read=read, options=options) for name, read in named.items()})


def opened_splits(read_all: Callable[[ReadOptions], Mapping[str, Rows]], options: ReadOptions) -> Splits:
    """Reads files that a column may divide, and returns their splits."""

    def read_one(name: str, asked: ReadOptions) -> Rows:
        found = read_all(asked)
        if name not in found:
            raise UserError(f"The data has no part {name!r} with these columns. Found: {', '.join(found)}.")
        return found[name]

    found = read_all(options)
    named = {name: _kept(rows, options, partial(read_one, name)) for name, rows in found.items()}
    return Splits(named={name: StoredSplit(read=read, options=options) for name, read in named.items()})


def _kept(rows: Rows, options: ReadOptions, read: Callable[[ReadOptions], Rows]) -> Callable[[ReadOptions], Rows]:
    """Returns a function that returns the given rows, or reads again for other options."""
    return lambda asked: rows if asked is options else read(asked)


def _open(open_files: OpenFiles, name: str, members: Sequence[str], options: ReadOptions) -> Mapping[str, Rows]:
    for member in members:
        if os.path.exists(member) and not os.path.isfile(member):  # pipes block and devices never end
            kind = Path(member).suffix.lower()
            raise DamagedFileError(f"{member} cannot be read as a {kind} file: it is a pipe, a socket or a device.")
    return open_files(name, members, options)


def _open_one(open_files: OpenFiles, name: str, members: Sequence[str], options: ReadOptions) -> Rows:
    return only(name, _open(open_files, name, members, options), members[0])


def only(name: str, found: Mapping[str, Rows], origin: str) -> Rows:
    """Returns the rows of a file that is named after its split.

    Raises:
        UserError: A column gives another split.
    """
    if list(found) != [name]:
        raise UserError(
            f"{origin} is one of several tables and has a column of splits with {', '.join(found)} "
            f"instead of {name}. Pass it alone, or remove the column."
        )
    return found[name]


def _by_split(names: Sequence[str]) -> dict[str, list[str]]:
    """Groups files by the splits in their names, or else in the names of their folders."""
    several = len({Path(name).parent for name in names}) > 1  # one word of a folder's name is then enough
    groups: dict[str, list[str]] = {}
    for name in names:
        path = Path(named(name))
        parent = path.parent.name
        told = split_within(path.stem) or (split_within(parent) if several else split_of(parent))
        groups.setdefault(told, []).append(name)
    if "" in groups and len(groups) > 1:
        raise UserError(
            f"Some files are named after a part of the data and others are not: {groups[''][0]}. "
            "Name all files after train, val or test, or none."
        )
    return groups

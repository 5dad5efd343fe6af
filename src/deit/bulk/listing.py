"""Lists the inputs of a job, and divides them into units."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deit.bulk.units import FILES, PARQUET, SHARDS, stamp_of
from deit.core.errors import DamagedFileError, UserError
from deit.data.readers.parquet import row_groups
from deit.data.readers.reader import Place
from deit.data.readers.split_files import files_at
from deit.data.readers.webdataset import DAMAGED, expand_braces, images_of_shard
from deit.data.storage.image_search import SkippedFile, find_images
from deit.data.streams.addresses import is_address, shown

Facts = dict[str, Any]
Progress = Callable[[int], None]


@dataclass(kw_only=True)
class Listing:
    """The inputs of a job.

    Attributes:
        kind: "files", "parquet" or "shards".
        column: Column of images of Parquet files; for shards the ending of the images, if one was asked for.
        watched: Files and folders whose size and time say whether the inputs are still the same.
        paths: The images of a job of files, the Parquet files or the shards, in order.
        skipped: What is left out, with reasons. Complete when the units were made.
        ignored: Counts of files that are not meant to be used.
    """

    kind: str
    column: str = ""
    watched: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def units(self, unit_images: int, progress: Progress = lambda done: None) -> Iterator[tuple[int, Facts]]:
        """Yields for each unit the number of its images, and where they are.

        Reads sizes and times of files, the footers of Parquet files and the headers of shards.

        Args:
            unit_images: Images of a unit. A group of rows of a Parquet file is not divided.
            progress: Called with the number of images so far.
        """
        makers = {FILES: self._of_files, PARQUET: self._of_parquet, SHARDS: self._of_shards}
        done = 0
        for images, facts in makers[self.kind](unit_images):
            yield images, facts
            done += images
            progress(done)

    def _of_files(self, unit_images: int) -> Iterator[tuple[int, Facts]]:
        for start in range(0, len(self.paths), unit_images):
            names = self.paths[start : start + unit_images]
            yield len(names), {"files": [[name, *stamp_of(name)] for name in names]}

    def _of_parquet(self, unit_images: int) -> Iterator[tuple[int, Facts]]:
        for path in self.paths:
            stamp = stamp_of(path)
            try:
                self.column, counts = row_groups(Path(path), self.column)
            except DamagedFileError as error:
                yield 0, {"damaged": str(error), "file": path}
                continue
            start, images = 0, 0
            groups: list[int] = []
            for group, count in enumerate(counts):
                if groups and images + count > unit_images:
                    yield images, {"file": path, "stamp": stamp, "groups": groups, "start": start}
                    start, images, groups = start + images, 0, []
                groups.append(group)
                images += count
            if images:
                yield images, {"file": path, "stamp": stamp, "groups": groups, "start": start}

    def _of_shards(self, unit_images: int) -> Iterator[tuple[int, Facts]]:
        for path in self.paths:
            stamp, before = stamp_of(path), len(self.skipped)
            found = images_of_shard(Path(path), self.skipped, self.ignored, self.column)
            if not found:
                told = next((s.reason for s in self.skipped[before:] if s.kind == DAMAGED), "It has no images.")
                yield 0, {"damaged": f"{path}: {told}", "file": path}
            for start in range(0, len(found), unit_images):
                samples = [
                    [key, "", 0, -1] if image is None else [key, image.name, image.offset, image.size]
                    for key, image in found[start : start + unit_images]
                ]
                yield len(samples), {"file": path, "stamp": stamp, "bytes": _range(samples), "samples": samples}


def _range(samples: Sequence[Any]) -> list[int]:
    """Returns where the bytes of the images of a unit begin and end in their shard."""
    inside = [(at, at + size) for _, _, at, size in samples if size >= 0]
    return [min(at for at, _ in inside), max(end for _, end in inside)] if inside else [0, 0]


def list_inputs(inputs: Sequence[str], image_column: str = "") -> Listing:
    """Finds the inputs: Parquet files, tar shards, or images, whose folders are searched as everywhere.

    A folder that holds Parquet files or shards stands for these. Inputs are of one kind.

    Args:
        inputs: Files, folders, patterns.
        image_column: Column of images of Parquet files; ending of the images of shards.

    Raises:
        FileNotFoundError: There is nothing.
        UserError: Inputs are of several kinds, web addresses or standard input, or one is named twice.
    """
    for given in inputs:
        if given == "-" or is_address(given):
            raise UserError(
                f"A bulk job reads files and folders that are here. Received: {shown(given)}. Save it first."
            )
    given_names = [name for each in inputs for name in ([each] if os.path.exists(each) else _braces(each))]
    kinds: dict[str, list[str]] = {}
    for name in given_names:
        kind, files = _kind_of(name)
        kinds.setdefault(kind, []).extend(files)
    if len(kinds) > 1:
        raise UserError(f"The inputs are of several kinds: {', '.join(sorted(kinds))}. Start a job for each.")
    ((kind, files),) = kinds.items()
    _refuse_repeated(given_names)
    if kind != FILES:
        _refuse_repeated(files)
        folders = [name for name in given_names if os.path.isdir(name)]
        inside = [os.path.dirname(file) for file in files] if folders else []
        return Listing(
            kind=kind, column=image_column, watched=[*dict.fromkeys([*folders, *inside]), *files], paths=files
        )
    if image_column:
        raise UserError("--image-column is for Parquet files and shards. The inputs are image files.")
    found = find_images(files)
    paths = [path for path in found.paths if path is not None]
    if any(not os.path.isdir(name) for name in given_names):
        _refuse_repeated(paths)
    return Listing(kind=kind, watched=found.folders, paths=paths, skipped=found.skipped, ignored=found.ignored)


def _braces(name: str) -> list[str]:
    return expand_braces(name) if name.endswith((".tar", ".parquet")) else [name]


def _kind_of(name: str) -> tuple[str, list[str]]:
    place = Place(folder=Path(name)) if os.path.isdir(name) else Place(names=(name,))
    for kind, ending in ((PARQUET, ".parquet"), (SHARDS, ".tar")):
        if files := files_at(place, [ending]):
            for file in files:
                if not os.path.isfile(file):
                    raise FileNotFoundError(f"There is no file {file}.")
            return kind, files
    return FILES, [name]


def _refuse_repeated(names: Sequence[str]) -> None:
    """Refuses inputs of which one is, or holds, another: its images would be there twice.

    Raises:
        UserError: There are such inputs.
    """
    seen: dict[str, str] = {}
    for name in names:
        path = os.path.realpath(name)
        if path in seen:
            raise UserError(f"{seen[path]} and {name} are the same input. Name it once.")
        seen[path] = name
    folders = {path: name for path, name in seen.items() if os.path.isdir(path)}
    for path, name in seen.items() if folders else ():
        parent = os.path.dirname(path)
        while parent != os.path.dirname(parent):
            if parent in folders:
                raise UserError(f"{name} lies in {folders[parent]}, which is an input too. Name one of them.")
            parent = os.path.dirname(parent)

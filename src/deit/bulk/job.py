"""A job on disk: its manifest, which says what identifies it, and where its parts are."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from deit.bulk.listing import Listing, Progress, list_inputs
from deit.bulk.units import FILES, PARQUET, SHARDS, UnitList, changed_files, line_of, stamp_of
from deit.core.config.file_fields import FileFields
from deit.core.errors import DamagedFileError, UserError, parsing, read_json
from deit.core.files import replaced_file, write_json_atomically
from deit.core.printable import counted, some_of

MANIFEST_NAME, UNITS_NAME, INPUTS_NAME = "_manifest.json", "_units.jsonl", "_inputs.jsonl"
LEFT_OUT_NAME, FAILED_NAME = "_left_out.jsonl", "_failed"
_FORMAT = 1
_MOST_DIFFERENCES = 20  # that are named
_MOST_THREADS = 65_536


def part_name(number: int) -> str:
    """Returns the name of the file of a unit's predictions."""
    return f"part-{number:08d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a job is.

    Attributes:
        identity: What must be equal to go on: model, engine, options, versions.
        inputs: Absolute paths, as they were given.
        kind: "files", "parquet" or "shards".
        column: Column of images.
        base: Folder that relative names of inputs start from.
        opening: How the model is opened, and the number of threads.
        units: Number of units.
        images: Number of images.
        listed: SHA-256 of the list of units.
        left_out: Counts of files that are not used, by kind.
        launch: What started the job, where several processes start together; else empty.
    """

    identity: Mapping[str, Any]
    inputs: list[str]
    kind: str
    column: str
    base: str
    opening: Mapping[str, Any]
    units: int
    images: int
    listed: str
    left_out: Mapping[str, int]
    launch: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A job in a folder.

    Attributes:
        folder: Where the predictions are.
        manifest: What it is.
        units: Its units.
    """

    folder: Path
    manifest: Manifest
    units: UnitList

    def part(self, number: int) -> Path:
        """Returns the path of the predictions of a unit."""
        return self.folder / part_name(number)

    def failure(self, number: int) -> Path:
        """Returns the path of the report on a unit that cannot be read."""
        return self.folder / FAILED_NAME / f"{number:08d}.json"

    def done(self) -> set[int]:
        """Returns the numbers of the units whose predictions are there."""
        return {int(name[5:-8]) for name in os.listdir(self.folder) if is_part(name)} & set(range(len(self.units)))

    def failures(self) -> dict[int, str]:
        """Returns unit -> why it could not be read."""
        folder = self.folder / FAILED_NAME
        found = {}
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if name.endswith(".json") and name[:-5].isdigit():
                found[int(name[:-5])] = str(read_json(folder / name, "a report").get("error"))
        return found


def is_part(name: str) -> bool:
    """Whether a file has the name of a part."""
    return name.startswith("part-") and name.endswith(".parquet") and name[5:-8].isdigit() and len(name) >= 21


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The lists of a job that has no manifest yet.

    Attributes:
        units: See `UnitList`.
        images: Number of images.
        listed: SHA-256 of the list of units.
        left_out: See `Manifest`.
    """

    units: UnitList
    images: int
    listed: str
    left_out: Mapping[str, int]


def write_lists(folder: Path, listing: Listing, unit_images: int, progress: Progress = lambda done: None) -> Lists:
    """Writes the lists of units, of what is watched, and of what is left out.

    Args:
        folder: That exists.
        listing: The inputs.
        unit_images: See `Listing.units`.
        progress: See `Listing.units`.

    Raises:
        UserError: There are no images.
        WritingError: They cannot be written.
    """
    stamps = [(path, stamp_of(path)) for path in listing.watched]  # before reading: a later change is seen
    digest, images = hashlib.sha256(), 0
    with replaced_file(folder / UNITS_NAME) as temporary, temporary.open("wb") as file:
        for count, facts in listing.units(unit_images, progress):
            line = line_of(count, facts)
            file.write(line)
            digest.update(line)
            images += count
    if not images:
        (folder / UNITS_NAME).unlink()
        told = listing.skipped[0] if listing.skipped else None
        raise UserError(f"The inputs hold no images. {f'{told.path}: {told.reason}' if told else ''}".strip())
    with replaced_file(folder / INPUTS_NAME) as temporary, temporary.open("w", encoding="ascii") as text:
        text.writelines(json.dumps([path, *stamp]) + "\n" for path, stamp in stamps)
    with replaced_file(folder / LEFT_OUT_NAME) as temporary, temporary.open("w", encoding="ascii") as text:
        text.writelines(json.dumps(vars(each)) + "\n" for each in listing.skipped)
    counts = listing.ignored + Counter(each.kind for each in listing.skipped)
    return Lists(units=UnitList(folder / UNITS_NAME), images=images, listed=digest.hexdigest(), left_out=dict(counts))


def write_manifest(
    folder: Path,
    listing: Listing,
    lists: Lists,
    *,
    inputs: Sequence[str],
    identity: Mapping[str, Any],
    opening: Mapping[str, Any],
    launch: str = "",
) -> None:
    """Writes the manifest, with which a job begins to exist.

    Args:
        folder: That holds the lists.
        listing: The inputs.
        lists: What `write_lists` wrote of them.
        inputs: As they were given.
        identity: See `Manifest`.
        opening: See `Manifest`.
        launch: See `Manifest`.

    Raises:
        WritingError: It cannot be written.
    """
    values = {
        "format": _FORMAT,
        "identity": identity,
        "inputs": [os.path.abspath(each) for each in inputs],
        "kind": listing.kind,
        "column": listing.column,
        "base": os.getcwd(),
        "opening": opening,
        "units": len(lists.units),
        "images": lists.images,
        "listed": lists.listed,
        "left_out": lists.left_out,
        "launch": launch,
    }
    write_json_atomically(folder / MANIFEST_NAME, values)


def open_job(folder: Path) -> Job:
    """Opens the job in a folder.

    Raises:
        FileNotFoundError: There is none.
        DamagedFileError: A file of it is damaged, or was changed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no bulk job: there is no {MANIFEST_NAME}.")
    values = read_json(path, "a manifest")
    if values.get("format") != _FORMAT:
        raise DamagedFileError(f"{path} is of another version of this package. Start a new job.")
    manifest = _parsed(values, FileFields(path, advice="Start a new job"))
    digest = hashlib.sha256()
    units = UnitList(folder / UNITS_NAME, digest)
    if digest.hexdigest() != manifest.listed or len(units) != manifest.units:
        raise DamagedFileError(f"{units.path} is not the list that {MANIFEST_NAME} was written with. Start a new job.")
    return Job(folder=folder, manifest=manifest, units=units)


def _parsed(values: Mapping[str, Any], fields: FileFields) -> Manifest:
    identity, opening = fields.table(values, "identity"), fields.table(values, "opening")
    engine = fields.table(identity, "engine")
    for name in ("name", "device"):
        fields.text(engine, name)
    fields.require(isinstance(engine.get("precision"), (str, NoneType)), "precision", "a text or null")
    fields.table(identity, "options")
    fields.text(opening, "model")
    fields.whole(opening, "threads", 1, _MOST_THREADS)
    left_out = fields.table(values, "left_out")
    return Manifest(
        identity=identity,
        inputs=fields.listed(values, "inputs", str, sys.maxsize),
        kind=fields.text(values, "kind", (FILES, PARQUET, SHARDS)),
        column=fields.text(values, "column"),
        base=fields.text(values, "base"),
        opening=opening,
        units=fields.whole(values, "units", 0, sys.maxsize),
        images=fields.whole(values, "images", 0, sys.maxsize),
        listed=fields.text(values, "listed"),
        left_out={kind: fields.whole(left_out, kind, 0, sys.maxsize) for kind in left_out},
        launch=fields.text({"launch": "", **values}, "launch"),
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> list[str]:
    """Returns what differs between two identities: "options.top_k: 3 before, 5 now"."""
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        called = f"{name}.{key}" if name else key
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, called)
        elif old != new:
            found.append(f"{called}: {_short(old)} before, {_short(new)} now")
    return found


def _short(value: Any) -> str:
    text = "none" if value in (None, "") else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def changed_inputs(job: Job, inputs: Sequence[str], image_column: str) -> list[str]:
    """Returns how the inputs differ from those of the manifest; empty if they do not.

    Compares the size and the time of last change of every file. A folder whose own time is the same has the same
    entries; else the inputs are listed again. Reads no image.
    """
    given = [os.path.abspath(each) for each in inputs]
    if given != job.manifest.inputs:
        return [f"inputs: {some_of(job.manifest.inputs, 3)} before, {some_of(given, 3)} now"]
    base = Path(job.manifest.base)
    changed: list[str] = []
    folders: list[str] = []
    listed = job.folder / INPUTS_NAME
    with listed.open("rb") as file:
        for line in file:
            with parsing(listed, "a list of inputs"):
                path, size, modified = json.loads(line)
                former = int(size), int(modified)
                place = str(base / path)
            if stamp_of(place) != former:
                (folders if former[0] < 0 else changed).append(path)
    if job.manifest.kind == FILES:
        for facts in job.units.each():
            changed += changed_files(facts, base)
    told = [f"input {path}: changed since the job began" for path in changed[:_MOST_DIFFERENCES]]
    if len(changed) > _MOST_DIFFERENCES:
        told.append(f"and {len(changed) - _MOST_DIFFERENCES} more inputs")
    if told or not (folders or any(not (base / each).exists() for each in job.manifest.inputs)):
        return told
    return _other_names(job, list_inputs(_as_listed(job, inputs), image_column))


def _as_listed(job: Job, inputs: Sequence[str]) -> Sequence[str]:
    """Returns the inputs as seen from the folder that the job began in, so that names are the same."""
    return inputs if os.getcwd() == job.manifest.base else [os.path.abspath(each) for each in inputs]


def _other_names(job: Job, listing: Listing) -> list[str]:
    """Returns which files came and went."""
    base = job.manifest.base

    def place(path: str) -> str:
        return os.path.normpath(os.path.join(base, path))

    now = {place(path) for path in listing.paths}
    key = "files" if job.manifest.kind == FILES else "file"
    before: set[str] = set()
    for facts in job.units.each():
        names = [file[0] for file in facts["files"]] if key == "files" else [facts["file"]]
        before.update(map(place, names))
    told = []
    for words, names in (("new", sorted(now - before)), ("gone", sorted(before - now))):
        if names:
            told.append(f"inputs: {counted(len(names), 'file')} {words}, such as {names[0]}")
    return told

"""Proves from the output of a job that every input is there exactly once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit.bulk.job import Job, is_part, open_job, part_name
from deit.bulk.predictions import HASH, images_of
from deit.bulk.units import names_of
from deit.core.errors import UserError
from deit.core.printable import as_unicode
from deit.data.storage.contents import content_hash

if TYPE_CHECKING:
    import pyarrow as pa

_TOGETHER = 10_000  # rows that are compared together


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found.

    Attributes:
        units: Units of the job.
        images: Inputs of the job.
        found: Inputs that are there exactly once.
        unreadable: Of these, the ones whose row holds an error.
        compared: Inputs that were read again and are the same; None if none were read.
        problems: What is wrong, a line each; empty if every input is there exactly once.
    """

    units: int
    images: int
    found: int
    unreadable: int
    compared: int | None
    problems: tuple[str, ...]

    def describe(self) -> str:
        """Returns one line with the result."""
        told = f"{self.found} of {self.images} inputs are there exactly once, in {self.units} units"
        told += f"; {self.unreadable} of them could not be read" if self.unreadable else ""
        return told + ("." if self.compared is None else f"; {self.compared} are the same as when they were read.")


def audit(folder: Path, *, contents: bool = False, progress: Callable[[int, int], None] | None = None) -> Audit:
    """Compares each row of the output with the list of inputs: unit, index and name, in their order.

    Reads one unit at a time, and the inputs themselves only with `contents`.

    Args:
        folder: Of the predictions.
        contents: Also read each input again and compare the hash of its bytes with that in the row.
        progress: Called with (images compared, images in all).

    Raises:
        FileNotFoundError: The folder holds no job.
        DamagedFileError: The manifest or the list of units is damaged.
    """
    job = open_job(folder)
    expected = {part_name(number) for number in range(len(job.units))}
    tables = [name for name in os.listdir(folder) if name.endswith(".parquet") and not name.startswith((".", "_"))]
    problems = [
        f"{name} is not a part of the job{', which has fewer units' if is_part(name) else ''}. Its rows would be there "
        "twice or be others. Remove it."
        for name in sorted(set(tables) - expected)
    ]
    reasons = job.failures()
    found = unreadable = compared = done = 0
    for number, facts in enumerate(job.units.each()):
        names = names_of(facts, job.manifest.kind)
        if not job.part(number).is_file():
            if names or "damaged" in facts:
                why = reasons.get(number, "it is not done. Go on with --resume")
                problems.append(f"Unit {number} ({len(names)} inputs) has no predictions: {why.rstrip('.')}.")
        else:
            unit = _Unit(job, number, contents=contents)
            problem = unit.compare(names)
            problems += [f"{part_name(number)}: {problem}"] if problem else []
            found, unreadable, compared = found + unit.found, unreadable + unit.unreadable, compared + unit.compared
        done += len(names)
        if progress is not None:
            progress(done, job.manifest.images)
    return Audit(
        units=len(job.units),
        images=job.manifest.images,
        found=found,
        unreadable=unreadable,
        compared=compared if contents else None,
        problems=tuple(problems),
    )


class _Unit:
    """Compares the part of one unit with its inputs."""

    def __init__(self, job: Job, number: int, *, contents: bool) -> None:
        self._job, self._number, self._contents = job, number, contents
        self.found = self.unreadable = self.compared = 0

    def compare(self, names: Any) -> str:
        """Returns what is wrong; empty if nothing is."""
        import pyarrow as pa

        index = 0
        images = None
        try:
            if self._contents:
                images = images_of(self._job, self._number)
            for rows in self._rows():
                for unit, place, name, error, hashed in rows:
                    if unit != self._number or place != index or index >= len(names):
                        return f"row {index} is of unit {unit}, index {place}."
                    if name != as_unicode(names[index]):
                        return f"row {index} is of {name}, the input is {names[index]}."
                    if images is not None and (problem := self._differs(images, index, hashed)):
                        return problem
                    self.found += 1
                    self.unreadable += error is not None
                    index += 1
        except (pa.ArrowException, ValueError, OverflowError, OSError) as error:  # of cells, names, images
            return f"it cannot be compared ({str(error).splitlines()[0]})."
        return "" if index == len(names) else f"it has {index} rows, the unit has {len(names)} inputs."

    def _differs(self, images: Any, index: int, hashed: int | None) -> str:
        try:
            now: int | None = content_hash(images.read(index))
        except (UserError, OSError):
            now = None
        if now != hashed:
            return f"the input {images.name(index)} has changed since it was predicted."
        self.compared += 1
        return ""

    def _rows(self) -> Iterator[list[tuple[Any, ...]]]:
        import pyarrow.parquet as pq

        columns = ["unit", "index", "image", "error", HASH]
        with pq.ParquetFile(self._job.part(self._number)) as file:
            for batch in file.iter_batches(_TOGETHER, columns=columns):
                table: pa.RecordBatch = batch
                yield list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))

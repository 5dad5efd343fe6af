"""Stores a teacher's answers for every view of a training on disk, so that later runs do not need the teacher.

A view is a function of seed, epoch, image and repeat. The mixing of a batch is a function of seed and step. So a cache
stores no images and no random states: its header holds the settings that determine the views, and each record holds
the checksum of the views that the teacher saw. Runs refuse a cache whose settings or checksums differ. A step is
recorded in units, of which each process has some, so that other numbers of processes can read the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import os
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deit.core.errors import DamagedFileError, UserError, read_json
from deit.core.files import remove_leftovers, write_json_atomically
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.writing import writing
from deit.data.augment import BatchMixer
from deit.models.weights.finiteness import refuse_non_finite_answers
from deit.runtime.folder_lock import LOCK_NAME, folder_lock
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.teachers.records import HardRecords, SoftRecords
from deit.train.teachers.teacher import Teacher, TeacherEnsemble

logger = logging.getLogger(__name__)

_HEADER, _RECORDS = "header.json", "records.bin"
_FORMAT = 1
_IMAGES = "training images"
_HASHES = {
    _IMAGES: "other training images or another order",
    "teacher_fingerprint": "a teacher with other weights",
    "mixing": "another mixing of batches",
}
# What is recorded for a kind of distillation: first classes, the largest logits, or all logits.
_RECORDED = {"hard": "hard", "soft": "soft", "wttm": "soft", "standardized": "logits", "dist": "logits"}
_INTACT = "What was recorded before is intact."
_CHECKSUMS = 8  # bytes before each record: checksum of the views, checksum of the record
_MOST_UNITS = 64  # of a step, if not more processes share it; each takes 8 bytes more


@dataclass(frozen=True, kw_only=True)
class BatchPlace:
    """Identifies a batch of a training.

    Attributes:
        step: Number of the step, from 0.
        part: Rank of the process that computes the batch.
        checksums: Checksum of the views of each unit before mixing; see `deit.data.loader.Batch`.
        parts: Processes that share the step: image i of this part is image part + i x parts of the step.
    """

    step: int
    part: int
    checksums: tuple[int, ...] = (0,)
    parts: int = 1


class TeacherCache:
    """Records of a teacher's answers, one for each unit of a step of a training.

    Of n units, the images i, i + n, ... of a step are unit i. Each process has equally many of them, so any number of
    processes that divides n can record and read.

    The folder holds `header.json` and `records.bin`. Nothing in it is ever executed. An incomplete or damaged record
    counts as missing: the teacher is asked again.

    Args:
        folder: Folder of the cache; created if missing.
        identity: Plain values that determine the views and the teacher's answers.
        records: Encoding of answers.
        batch_size: Views in a unit.
        units: Units of a step.
        former: Alternative values of `identity` that caches of older versions have.

    Attributes:
        header: `identity` and the format of the cache.
        units: Units of a step.

    Raises:
        ValueError: The folder holds a cache of another training, or other files; or it is new and `identity` names no
            teacher.

    Examples:
        >>> import tempfile
        >>> place = BatchPlace(step=0, part=0, checksums=(7,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = TeacherCache(Path(folder), {"teacher": "a"}, HardRecords(3), batch_size=2)
        ...     missing = cache.read(place)
        ...     cache.write(place, torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]))
        ...     cache.read(place)
        tensor([1, 0])
        tensor([1, 0])
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        records: HardRecords | SoftRecords,
        *,
        batch_size: int,
        units: int = 1,
        former: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.units = folder, units
        self._records = records
        self._payload = batch_size * records.bytes_per_view
        self._warned = False
        self.header = _open_header(folder, _header(identity, batch_size, units), former or {})
        self._lock: contextlib.ExitStack | None = None
        self._file = self._open()
        weakref.finalize(self, os.close, self._file)

    def _open(self) -> int:
        """Opens the records for the lifetime of the cache, because each step reads or writes one small record."""
        path = self.folder / _RECORDS
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES) and path.is_file():
                return os.open(path, os.O_RDONLY)  # enough for a complete cache
            with writing(path):
                raise

    def read(self, place: BatchPlace) -> Tensor | None:
        """Returns the recorded answer for a batch: classes (B,) or logits (B, K); None if a part of it is missing.

        Raises:
            ValueError: The teacher saw other views.
        """
        found = [self._read(place.step, unit, checksum) for unit, checksum in _units_of(place)]
        parts = [part for part in found if part is not None]
        return torch.stack(parts, 1).flatten(0, 1) if len(parts) == len(found) else None

    def _read(self, step: int, unit: int, checksum: int) -> Tensor | None:
        record = os.pread(self._file, _CHECKSUMS + self._payload, self._offset(step, unit))
        if not any(record[:_CHECKSUMS]):
            return None
        payload = record[_CHECKSUMS:]
        views, own = np.frombuffer(record[:_CHECKSUMS].ljust(_CHECKSUMS, b"\0"), "<u4").tolist()
        if len(payload) != self._payload or own != _checksum(payload, views, step, unit):
            if not self._warned:
                logger.warning("A record of the teacher cache %s is damaged; the teacher is asked again.", self.folder)
                self._warned = True
            return None
        if views != checksum:
            raise UserError(
                f"The views of step {step} are not those that the teacher of {self.folder} saw: the images or "
                "the augmentation libraries have changed. Pass an empty folder as --teacher-cache."
            )
        return self._decoded(payload)

    def _decoded(self, payload: bytes) -> Tensor:
        try:
            return self._records.decode(payload)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"The teacher cache {self.folder} holds {error}. Pass an empty folder, and a teacher whose answers are "
                "numbers."
            ) from error

    def write(self, place: BatchPlace, logits: Tensor) -> Tensor:
        """Records the teacher's logits (B, K) and returns them as `read` will.

        Train on the returned values, not on the logits, so that recording runs equal reading runs.

        Raises:
            FolderInUseError: Another run is recording.
            WritingError: The record cannot be written, for example because the disk is full.
            ValueError: A logit is NaN or infinite; nothing is recorded.
        """
        refuse_non_finite_answers(logits, "The teacher")
        self._keep_others_out(place.part)
        count = len(place.checksums)
        parts = []
        for number, (unit, checksum) in enumerate(_units_of(place)):
            payload = self._records.encode(logits[number::count])
            sums = np.array([checksum, _checksum(payload, checksum, place.step, unit)], "<u4")
            record = sums.tobytes() + payload
            with writing(self.folder / _RECORDS, _INTACT):
                if os.pwrite(self._file, record, self._offset(place.step, unit)) != len(record):
                    raise OSError(errno.ENOSPC, "No space left on device")
            parts.append(self._records.decode(payload))
        return torch.stack(parts, 1).flatten(0, 1)

    def _keep_others_out(self, part: int) -> None:
        """Prevents other runs from recording answers. Runs that only read are allowed."""
        if self._lock is None:
            with contextlib.ExitStack() as stack:
                lock = folder_lock(self.folder, name=f"{LOCK_NAME}-{part}", work="Another run that records answers")
                stack.enter_context(lock)
                self._lock = stack.pop_all()

    def release(self) -> None:
        """Allows other runs to record answers until this one writes again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def sync(self) -> None:
        """Flushes all records to the disk.

        Raises:
            WritingError: The records cannot be written.
        """
        with writing(self.folder / _RECORDS, _INTACT):
            if self._lock is not None:
                os.fsync(self._file)

    def _offset(self, step: int, unit: int) -> int:
        return (step * self.units + unit) * (_CHECKSUMS + self._payload)


def _units_of(place: BatchPlace) -> Iterator[tuple[int, int]]:
    """Yields the number of each unit of a batch, and its checksum; the images i, i + n, ... of n units are unit i."""
    return zip(itertools.count(place.part, place.parts), place.checksums, strict=False)


def _checksum(payload: bytes, views: int, step: int, unit: int) -> int:
    return zlib.crc32(payload, zlib.crc32(np.array([views, step, unit], "<u4").tobytes()))


def is_cache(folder: Path) -> bool:
    """Returns True if a folder holds a teacher cache."""
    return (folder / _HEADER).is_file()


def open_cache(
    folder: Path,
    *,
    teacher: Teacher | TeacherEnsemble | None,
    processor: DeiTImageProcessor,
    recipe: Recipe,
    data_fingerprint: str,
    former_data_fingerprint: str = "",
    num_images: int,
    num_classes: int,
    processes: Processes,
) -> TeacherCache:
    """Opens the teacher cache of a training, or creates it. Every process of the run must call it.

    Args:
        folder: Folder of the cache: new, empty, or of the same training with any student.
        teacher: Teacher whose answers are recorded; None reads recorded answers only.
        processor: Preprocessing of the student, whose views the teacher sees.
        recipe: Seed, batch size, augmentation and distillation are used.
        data_fingerprint: Fingerprint of the training images.
        former_data_fingerprint: Fingerprint of the training images in older versions, accepted for their caches.
        num_images: Number of training images.
        num_classes: Number of classes K.
        processes: Processes of the run.

    Raises:
        ValueError: The folder holds a cache of another training, or no cache and there is no teacher.
    """
    settings = recipe.distillation
    records: HardRecords | SoftRecords
    match _RECORDED[settings.kind]:
        case "hard":
            records = HardRecords(num_classes)
        case "soft":
            records = SoftRecords(num_classes, settings.cache_top_k, settings.temperature)
        case _:
            records = SoftRecords(num_classes, num_classes, 1.0)
    former = {_IMAGES: former_data_fingerprint}
    for turn in (True, False):  # the first process writes the header; then the others find it
        if processes.is_first == turn:
            units = _units(folder, recipe.batch_size, processes)
            identity = _identity(teacher, processor, recipe, num_images, num_classes, units)
            identity[_IMAGES] = data_fingerprint
            share = recipe.batch_size // units
            cache = TeacherCache(folder, identity, records, batch_size=share, units=units, former=former)
        processes.barrier()
    return cache


def refuse_other_cache(
    folder: Path,
    *,
    teacher: Teacher | TeacherEnsemble | None,
    processor: DeiTImageProcessor,
    recipe: Recipe,
    num_images: int,
    num_classes: int,
    processes: Processes,
) -> None:
    """Refuses the cache of another training early, without reading the images. Arguments as in `open_cache`.

    Raises:
        ValueError: The folder holds a cache of another training, judged by everything except the images.
    """
    if not is_cache(folder):
        return
    units = _units(folder, recipe.batch_size, processes)
    identity = _identity(teacher, processor, recipe, num_images, num_classes, units)
    header = _header(identity, recipe.batch_size // units, units)
    found = read_json(folder / _HEADER, "the header of a teacher cache")
    _refuse_other(folder, found, header | {_IMAGES: found.get(_IMAGES)}, {})


def _units(folder: Path, batch_size: int, processes: Processes) -> int:
    """Returns the number of units of a step in a cache, or in one that is to be made.

    Raises:
        UserError: The processes cannot share the units of the cache.
    """
    world_size = processes.world_size
    most = max(_MOST_UNITS, world_size)
    if not is_cache(folder):
        return max(count for count in range(world_size, most + 1, world_size) if batch_size % count == 0)
    units = read_json(folder / _HEADER, "the header of a teacher cache").get("parts")
    if not isinstance(units, int) or units < 1 or batch_size % units:
        return world_size  # of another batch: the comparison of the headers says so
    if units % world_size:
        able = ", ".join(str(count) for count in range(1, units + 1) if units % count == 0)
        raise UserError(
            f"The teacher cache {folder} records each step in {units} parts, which {world_size} processes cannot "
            f"share. Start {able} process(es), or pass an empty folder."
        )
    return units


def _header(identity: Mapping[str, Any], batch_size: int, units: int) -> dict[str, Any]:
    """Returns the header of a cache with JSON types: lists instead of tuples."""
    header = {"format": _FORMAT, "batch_size": batch_size, "parts": units, **identity}
    values: dict[str, Any] = json.loads(json.dumps(header))
    return values


def _identity(
    teacher: Teacher | TeacherEnsemble | None,
    processor: DeiTImageProcessor,
    recipe: Recipe,
    num_images: int,
    num_classes: int,
    units: int,
) -> dict[str, Any]:
    """Returns the values, except the images, that determine the views and the teacher's answers."""
    settings = recipe.distillation
    identity: dict[str, Any] = {
        "num_images": num_images,
        "num_classes": num_classes,
        "image_size": processor.output_size,
        "mean": processor.channel_mean,
        "std": processor.channel_std,
        "seed": recipe.seed,
        "labelled_share": recipe.data.labelled_share,
        "augment": dataclasses.asdict(recipe.augment),
        "mixing": _mixing_probe(recipe, num_classes, processor.output_size, units),
        "kind": _RECORDED[settings.kind],
    }
    if teacher is not None:
        identity |= {"teacher": teacher.name, "teacher_fingerprint": teacher.fingerprint()}
    if settings.flip_teacher:
        identity |= {"flip_teacher": True}
    if _RECORDED[settings.kind] == "soft":
        identity |= {"temperature": settings.temperature, "top_k": settings.cache_top_k}
    return identity


def _mixing_probe(recipe: Recipe, num_classes: int, image_size: tuple[int, int], units: int) -> str:
    """Returns a hash of some mixed batches, which changes if another version of a library mixes differently."""
    if not recipe.augment.mixes:
        return "none"
    mixer = BatchMixer(recipe.augment, num_classes, 0.0, recipe.seed)
    black_and_white = torch.stack([torch.zeros(3, *image_size), torch.ones(3, *image_size)])
    # In older versions each process drew its own mix, and had one unit. The prefix refuses their caches.
    digest = hashlib.sha256(b"whole step" if units > 1 else b"")
    for step in range(4):
        pixels, targets = mixer(black_and_white, torch.tensor([0, num_classes - 1]), step)
        digest.update(pixels.numpy().tobytes() + targets.numpy().tobytes())
    return digest.hexdigest()


def _open_header(folder: Path, header: dict[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / _HEADER
    if not path.is_file():
        remove_leftovers(folder)
        if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(LOCK_NAME) for p in folder.iterdir())):
            raise UserError(f"{folder} is not a teacher cache and holds other files. Pass an empty folder.")
        if "teacher" not in header:
            raise UserError(f"There is no teacher cache in {folder}. Pass the teacher as well, to record its answers.")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, header)
        return header
    found = read_json(path, "the header of a teacher cache")
    _refuse_other(folder, found, header, former)
    return found


def _refuse_other(folder: Path, found: dict[str, Any], header: dict[str, Any], former: Mapping[str, Any]) -> None:
    of_teacher = {"teacher", "teacher_fingerprint"} if "teacher" not in header else set()
    found, header = _with_batch_of_step(found), _with_batch_of_step(header)
    names = (found.keys() | header.keys()) - of_teacher
    other = sorted(
        name
        for name in names
        if found.get(name) != header.get(name) and not (name in former and found.get(name) == former[name])
    )
    if other:
        parts = [_difference(name, found.get(name), header.get(name)) for name in other]
        raise UserError(
            f"The teacher cache {folder} belongs to another training: {'; '.join(parts)}. "
            "Pass the same settings, or an empty folder."
        )


def _with_batch_of_step(header: dict[str, Any]) -> dict[str, Any]:
    """Returns a header with the images of a step in place of those of a unit, whose number says nothing to a reader."""
    size, units = header.get("batch_size"), header.get("parts")
    if not (isinstance(size, int) and isinstance(units, int)):
        return header
    return {**header, "batch_size": size * units, "parts": None}


def _difference(name: str, recorded: Any, received: Any) -> str:
    """Describes one difference of a cache. Describes hashes in words, because their values mean nothing to a reader."""
    if name in _HASHES:
        return _HASHES[name]
    return f"{name} {_short(recorded)}, now {_short(received)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"

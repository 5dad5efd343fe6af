"""Keeps a teacher's answers for every view of a training on disk, so that later runs need not ask the teacher again.

A view is a function of seed, epoch, image and repeat, and the mixing of a batch one of seed and step. A cache therefore
holds no pictures and no random states: its header names what the views follow from, and each record holds the
checksum of the views that the teacher saw. It is refused when any of them differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import weakref
import zlib
from collections.abc import Mapping
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
    _IMAGES: "other training images, or another order of them",
    "teacher_fingerprint": "a teacher with other weights",
    "mixing": "batches that are mixed in another way",
}
# What is recorded for a kind of distillation: first classes, the largest logits, or all logits.
_RECORDED = {"hard": "hard", "soft": "soft", "wttm": "soft", "standardized": "logits", "dist": "logits"}
_INTACT = "What was recorded before is intact."
_CHECKSUMS = 8  # bytes in front of a record: the views' checksum, and the record's own


@dataclass(frozen=True, kw_only=True)
class BatchPlace:
    """Which batch of a training this is.

    Attributes:
        step: From 0.
        part: The process that works on it.
        checksum: Of its views before mixing, see `deit.data.loader.Batch`.
        parts: Processes that share the step: image i of this part is image part + i x parts of the step.
    """

    step: int
    part: int
    checksum: int
    parts: int = 1


class TeacherCache:
    """Records of a teacher's answers, one for each batch of a training.

    The folder holds `header.json` and `records.bin`; nothing in it is ever executed. A record that was only half
    written, or was damaged since, counts as missing: the teacher is asked again.

    Args:
        folder: Of the cache; made when it does not exist.
        identity: Plain values that the views and the teacher's answers follow from.
        records: How answers are written.
        batch_size: Views in a batch of one process.
        parts: Processes that work together.
        former: Values of `identity` by which a cache of an older version is known as well.

    Attributes:
        header: What the cache is of: `identity` and more.

    Raises:
        ValueError: The folder holds a cache of another training, or something else; or it is new and `identity` names
            no teacher.

    Examples:
        >>> import tempfile
        >>> place = BatchPlace(step=0, part=0, checksum=7)
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
        parts: int = 1,
        former: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._records, self._parts = records, parts
        self._payload = batch_size * records.bytes_per_view
        self._warned = False
        self.header = _open_header(folder, _header(identity, batch_size, parts), former or {})
        self._lock: contextlib.ExitStack | None = None
        self._file = self._open()
        weakref.finalize(self, os.close, self._file)

    def _open(self) -> int:
        """Opens the records for the cache's lifetime: a step reads or writes one small record, at its place."""
        path = self.folder / _RECORDS
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES) and path.is_file():
                return os.open(path, os.O_RDONLY)  # enough for a cache that lacks nothing
            with writing(path):
                raise

    def read(self, place: BatchPlace) -> Tensor | None:
        """Returns what the teacher said about a batch: classes (B,) or logits (B, K); None when it was not asked.

        Raises:
            ValueError: The teacher saw other views.
        """
        record = os.pread(self._file, _CHECKSUMS + self._payload, self._offset(place))
        if not any(record[:_CHECKSUMS]):
            return None
        payload = record[_CHECKSUMS:]
        views, own = np.frombuffer(record[:_CHECKSUMS].ljust(_CHECKSUMS, b"\0"), "<u4").tolist()
        if len(payload) != self._payload or own != _checksum(payload, views, place):
            if not self._warned:
                logger.warning("A record of the teacher cache %s is damaged; the teacher is asked again.", self.folder)
                self._warned = True
            return None
        if views != place.checksum:
            raise UserError(
                f"The views of step {place.step} are not those that the teacher of {self.folder} saw: the images, or "
                "the libraries that vary them, have changed. Pass an empty folder as --teacher-cache."
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
        """Records the teacher's logits (B, K) and returns what `read` will give for them.

        Using this in place of the logits makes a run that records equal to the runs that read.

        Raises:
            FolderInUseError: Another run is recording.
            WritingError: The disk is full, ...
            ValueError: A logit is NaN or infinite; nothing is recorded.
        """
        refuse_non_finite_answers(logits, "The teacher")
        self._keep_others_out(place.part)
        payload = self._records.encode(logits)
        sums = np.array([place.checksum, _checksum(payload, place.checksum, place)], "<u4")
        record = sums.tobytes() + payload
        with writing(self.folder / _RECORDS, _INTACT):
            if os.pwrite(self._file, record, self._offset(place)) != len(record):
                raise OSError(errno.ENOSPC, "No space left on device")
        return self._records.decode(payload)

    def _keep_others_out(self, part: int) -> None:
        """Lets no other run record answers; runs that only read them may do so."""
        if self._lock is None:
            with contextlib.ExitStack() as stack:
                lock = folder_lock(self.folder, name=f"{LOCK_NAME}-{part}", work="Another run that records answers")
                stack.enter_context(lock)
                self._lock = stack.pop_all()

    def release(self) -> None:
        """Lets other runs record answers, until this one does so again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def sync(self) -> None:
        """Returns when all records are on the disk.

        Raises:
            WritingError: They cannot be written.
        """
        with writing(self.folder / _RECORDS, _INTACT):
            if self._lock is not None:
                os.fsync(self._file)

    def _offset(self, place: BatchPlace) -> int:
        return (place.step * self._parts + place.part) * (_CHECKSUMS + self._payload)


def _checksum(payload: bytes, views: int, place: BatchPlace) -> int:
    return zlib.crc32(payload, zlib.crc32(np.array([views, place.step, place.part], "<u4").tobytes()))


def is_cache(folder: Path) -> bool:
    """Whether a folder holds the record of a teacher."""
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
    """Opens the teacher cache of a training, or begins it.

    Args:
        folder: Of the cache; new, empty, or of the same training with any student.
        teacher: Whose answers these are; None to take those that are there.
        processor: The student's: the teacher is shown its views.
        recipe: Its seed, batch size, augmentation and distillation.
        data_fingerprint: Of the training images.
        former_data_fingerprint: The one they had in older versions, whose caches are known by it.
        num_images: N of the training images.
        num_classes: K.
        processes: Those that work together: each mixes its own share of a batch.

    Raises:
        ValueError: The folder holds a cache of another training, or none and there is no teacher.
    """
    settings = recipe.distillation
    identity = {_IMAGES: data_fingerprint} | _identity(teacher, processor, recipe, num_images, num_classes, processes)
    records: HardRecords | SoftRecords
    match _RECORDED[settings.kind]:
        case "hard":
            records = HardRecords(num_classes)
        case "soft":
            records = SoftRecords(num_classes, settings.cache_top_k, settings.temperature)
        case _:
            records = SoftRecords(num_classes, num_classes, 1.0)
    share = recipe.batch_size // processes.world_size
    former = {_IMAGES: former_data_fingerprint}
    return TeacherCache(folder, identity, records, batch_size=share, parts=processes.world_size, former=former)


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
    """Refuses the cache of another training before anything begins; arguments as in `open_cache`, which looks at all.

    Raises:
        ValueError: The folder holds a cache of another training, as far as it can be told without the images.
    """
    if not is_cache(folder):
        return
    identity = _identity(teacher, processor, recipe, num_images, num_classes, processes)
    header = _header(identity, recipe.batch_size // processes.world_size, processes.world_size)
    found = read_json(folder / _HEADER, "the header of a teacher cache")
    _refuse_other(folder, found, header | {_IMAGES: found.get(_IMAGES)}, {})


def _header(identity: Mapping[str, Any], batch_size: int, parts: int) -> dict[str, Any]:
    """Returns the header of a cache as it is read back: with lists in place of tuples."""
    header = {"format": _FORMAT, "batch_size": batch_size, "parts": parts, **identity}
    values: dict[str, Any] = json.loads(json.dumps(header))
    return values


def _identity(
    teacher: Teacher | TeacherEnsemble | None,
    processor: DeiTImageProcessor,
    recipe: Recipe,
    num_images: int,
    num_classes: int,
    processes: Processes,
) -> dict[str, Any]:
    """Returns what the views, the images aside, and the teacher's answers follow from."""
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
        "mixing": _mixing_probe(recipe, num_classes, processor.output_size, processes.world_size),
        "kind": _RECORDED[settings.kind],
    }
    if teacher is not None:
        identity |= {"teacher": teacher.name, "teacher_fingerprint": teacher.fingerprint()}
    if _RECORDED[settings.kind] == "soft":
        identity |= {"temperature": settings.temperature, "top_k": settings.cache_top_k}
    return identity


def _mixing_probe(recipe: Recipe, num_classes: int, image_size: tuple[int, int], parts: int) -> str:
    """Returns a hash of how some batches would be mixed: it changes when the libraries that mix do."""
    if not recipe.augment.mixes:
        return "none"
    mixer = BatchMixer(recipe.augment, num_classes, 0.0, recipe.seed)
    black_and_white = torch.stack([torch.zeros(3, *image_size), torch.ones(3, *image_size)])
    # Each process once drew its own mix; since then the whole step has one.
    digest = hashlib.sha256(b"whole step" if parts > 1 else b"")
    for step in range(4):
        pixels, targets = mixer(black_and_white, torch.tensor([0, num_classes - 1]), step)
        digest.update(pixels.numpy().tobytes() + targets.numpy().tobytes())
    return digest.hexdigest()


def _open_header(folder: Path, header: dict[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / _HEADER
    if not path.is_file():
        remove_leftovers(folder)
        if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(LOCK_NAME) for p in folder.iterdir())):
            raise UserError(f"{folder} is no teacher cache and holds other files. Pass an empty folder.")
        if "teacher" not in header:
            raise UserError(f"There is no teacher cache in {folder}. Pass the teacher as well: it will be recorded.")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, header)
        return header
    found = read_json(path, "the header of a teacher cache")
    _refuse_other(folder, found, header, former)
    return found


def _refuse_other(folder: Path, found: dict[str, Any], header: dict[str, Any], former: Mapping[str, Any]) -> None:
    of_teacher = {"teacher", "teacher_fingerprint"} if "teacher" not in header else set()
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


def _difference(name: str, recorded: Any, received: Any) -> str:
    """Says in what a cache is another; hashes, which tell a reader nothing, by what they are of."""
    if name in _HASHES:
        return _HASHES[name]
    return f"{name} {_short(recorded)}, now {_short(received)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"

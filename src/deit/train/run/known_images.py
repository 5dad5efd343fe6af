"""The images of a run: what is kept of them in its folder, and what initial weights and teachers knew of them."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deit.core.images.known_images import INITIAL, LEARNT, MEASURED, TAUGHT, KnownImages, Overlap
from deit.core.model_directory import read_known_images
from deit.data.sources import Data, contents_of
from deit.train.tasks.task import Task
from deit.train.teachers.teacher import Teacher, TeacherEnsemble

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """What a run knows of its images.

    Attributes:
        known: For the model directory.
        taught: What the teachers were trained on, for a teacher cache.
        validation: How many validation images were met before; None where their contents are not known.
    """

    known: KnownImages
    taught: KnownImages
    validation: Overlap | None

    def record(self) -> dict[str, Any]:
        """Returns what stands in `training.json`."""
        record: dict[str, Any] = {"unrecorded": list(self.known.unrecorded)}
        if self.validation is not None:
            seen = asdict(self.validation)
            record["validation"] = {name: seen[name] for name in ("learnt", "initial", "taught")}
        return record


def run_images(task: Task, data: Data, out: Path, teacher_cache: Path | None) -> RunImages:
    """Finds out what a run should remember of its images.

    Args:
        task: Its student tells by `name_or_path` which weights it began with, and its teacher by its name.
        data: Of the run.
        out: Folder of the run; what it holds already, of a run that goes on, is kept.
        teacher_cache: Folder of a teacher cache, which stands for a teacher that is not here.
    """
    parts: list[tuple[Any, Any]] = []
    unrecorded: list[str] = []
    for source, role in ((data.train, LEARNT), (data.val, MEASURED)):
        contents = contents_of(source)
        if contents is not None:
            parts.append((contents, role))
        elif role == LEARNT:
            unrecorded.append("this run (its images have no hashes)")
    begun_with = str(getattr(task.student, "name_or_path", ""))
    if begun_with:
        initial = read_known_images(Path(begun_with))
        unrecorded += [begun_with] if initial is None else initial.unrecorded
        if initial is not None:
            parts += [(initial.with_role(LEARNT, INITIAL), INITIAL), (initial.with_role(TAUGHT), TAUGHT)]
    taught = _of_teachers(task.teacher, teacher_cache)
    earlier = KnownImages.read(out)
    if earlier is not None:
        parts.append((earlier.hashes, earlier.roles))
    parts.append((taught.hashes, TAUGHT))
    known = KnownImages.merge(parts, [*unrecorded, *taught.unrecorded])
    measured = contents_of(data.val)
    overlap = None if measured is None else known.overlap(measured)
    return RunImages(known=known, taught=taught, validation=overlap)


def keep_run_images(task: Task, data: Data, out: Path, teacher_cache: str | Path | None) -> dict[str, Any]:
    """Writes what a run should remember of its images into its folder; see `run_images` for the arguments.

    The teacher cache gets what its teacher was trained on, for runs without that teacher. Validation images that
    initial weights or teachers were trained on are told of.

    Returns:
        What stands in `training.json`.
    """
    cache = None if teacher_cache is None else Path(teacher_cache)
    images = run_images(task, data, out, cache)
    images.known.write(out)
    if cache is not None and task.teacher is not None and len(images.taught.hashes):
        images.taught.write(cache)
    _note_validation_images(images.validation)
    return images.record()


def _note_validation_images(seen: Overlap | None) -> None:
    if seen is not None and seen.initial:
        logger.warning(
            "The weights that the run begins with were trained on %d of the %d validation images: their scores may be "
            "too good.",
            seen.initial,
            seen.images,
        )
    if seen is not None and seen.taught:
        logger.warning(
            "A teacher was trained on %d of the %d validation images: their scores may be too good.",
            seen.taught,
            seen.images,
        )


def _of_teachers(teacher: Teacher | TeacherEnsemble | None, cache: Path | None) -> KnownImages:
    if teacher is None:
        recorded = None if cache is None else KnownImages.read(cache)
        if recorded is not None:
            return KnownImages.merge([(recorded.hashes, TAUGHT)])
        return KnownImages.merge([], [] if cache is None else [f"the teacher of {cache}"])
    parts, unrecorded = [], []
    for each in teacher.teachers if isinstance(teacher, TeacherEnsemble) else (teacher,):
        found = read_known_images(Path(each.name)) if Path(each.name).is_dir() else None
        if found is None:
            unrecorded.append(each.name)
        else:
            parts.append((found.with_role(LEARNT, INITIAL, TAUGHT), TAUGHT))
            unrecorded += found.unrecorded
    return KnownImages.merge(parts, unrecorded)

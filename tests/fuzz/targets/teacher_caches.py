"""Teacher caches: `header.json` and `records.bin`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fuzz.changes import of_json, of_one_file
from tests.fuzz.driver import Target, joined, write_files

_HEADER, _RECORDS = "header.json", "records.bin"
_CLASSES = 5


def _caches(folder: Path) -> Any:
    """Opens a folder as the cache of each of three trainings, which record classes, some logits and all logits."""
    from deit.train.teachers.cache import TeacherCache
    from deit.train.teachers.records import HardRecords, SoftRecords

    kinds = {
        "hard": HardRecords(_CLASSES),
        "soft": SoftRecords(_CLASSES, 2, 3.0),
        "logits": SoftRecords(_CLASSES, 9, 1.0),
    }
    for kind, records in kinds.items():
        identity = {"kind": kind, "teacher": "t", "teacher_fingerprint": "f", "mean": [0.5, 0.4], "mixing": "none"}
        yield kind, lambda records=records, identity=identity: TeacherCache(folder, identity, records, batch_size=2)


def _read(data: bytes, folder: Path) -> None:
    import torch

    from deit.core.errors import UserError
    from deit.core.processing.image_processor import DeiTImageProcessor
    from deit.runtime.processes import current_processes
    from deit.train.recipes.recipe import Recipe
    from deit.train.teachers.cache import BatchPlace, refuse_other_cache

    write_files(data, folder, (_HEADER, _RECORDS))
    errors: list[UserError] = []
    with contextlib.suppress(UserError):
        processor, recipe, one = DeiTImageProcessor(), Recipe(batch_size=4), current_processes()
        refuse_other_cache(
            folder, teacher=None, processor=processor, recipe=recipe, num_images=8, num_classes=_CLASSES, processes=one
        )
    for _, opened in _caches(folder):
        try:
            cache = opened()
            for step in range(3):
                cache.read(BatchPlace(step=step, part=0, checksums=(7,)))
            cache.write(BatchPlace(step=3, part=0, checksums=(7,)), torch.zeros(2, _CLASSES))
            cache.release()
        except UserError as error:
            errors.append(error)
    if len(errors) == 3:
        raise errors[0]


def _seeds() -> Mapping[str, bytes]:
    import torch

    from deit.train.teachers.cache import BatchPlace

    found = {}
    for kind in ("hard", "soft", "logits"):
        with tempfile.TemporaryDirectory() as name:
            cache = dict(_caches(Path(name)))[kind]()
            for step in range(2):
                answer = torch.arange(2.0 * _CLASSES).view(2, _CLASSES) + step
                cache.write(BatchPlace(step=step, part=0, checksums=(7,)), answer)
            header = json.dumps(json.loads((Path(name) / _HEADER).read_text())).encode()
            found[kind] = joined({_HEADER: header, _RECORDS: (Path(name) / _RECORDS).read_bytes()})
            cache.release()
    return found


TARGETS = (Target(name="teacher_caches", read=_read, change=of_one_file(json=of_json), seeds=_seeds),)

"""The files of a bulk job: manifest, lists of units and inputs, reports, claims, and a part of its predictions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import chdir, suppress
from functools import cache
from pathlib import Path

from tests.fuzz.changes import of_json, of_one_file
from tests.fuzz.driver import Target, joined, lasting_folder, separated
from tests.fuzz.targets.models import good_model
from tests.fuzz.targets.tables import small_image

_MANIFEST, _UNITS, _INPUTS, _LEFT_OUT, _FAILED, _CLAIM, _PART = (
    "_manifest.json", "_units.jsonl", "_inputs.jsonl", "_left_out.jsonl", "_failed/00000001.json",
    "_claims/00000001.0", "part-00000000.parquet",
)  # fmt: skip
_PLACE = b"/place-of-the-job"
_NAMES = (_MANIFEST, _UNITS, _INPUTS, _LEFT_OUT, _FAILED, _CLAIM, _PART)


def _run(out: Path, *, resume: bool) -> None:
    """Runs or resumes the job from its folder, so that its lists hold relative names."""
    from deit.bulk.identity import BulkOptions
    from deit.bulk.running import BulkRequest, run_bulk

    options = BulkOptions(unit_images=2, batch_size=2)
    given = {"model": "model", "inputs": ["pictures"], "options": options, "device": "cpu", "engine": "torch"}
    run_bulk(BulkRequest(out=out, resume=resume, **given))


@cache
def _job() -> Path:
    """Returns a folder with pictures and a finished job, which stays until the process ends."""
    folder = lasting_folder("job")
    (folder / "pictures").mkdir()
    for i in range(3):  # of one time, which the list of units holds
        (folder / "pictures" / f"{i}.png").write_bytes(small_image(i))
        os.utime(folder / "pictures" / f"{i}.png", ns=(10**18, 10**18))
    (folder / "pictures" / "notes.txt").write_bytes(b"no picture")
    os.utime(folder / "pictures", ns=(10**18, 10**18))
    shutil.copytree(good_model(), folder / "model")
    with chdir(folder):
        _run(folder / "out", resume=False)
    return folder


def _read(data: bytes, folder: Path) -> None:
    from deit.bulk.auditing import audit
    from deit.core.errors import UserError

    out = Path(shutil.copytree(_job() / "out", folder / "out"))
    for name, content in separated(data.replace(_PLACE, str(_job()).encode())).items():
        if name in _NAMES:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(content)
    if os.path.exists(out / _FAILED) or os.path.exists(out / _CLAIM):
        (out / "part-00000001.parquet").unlink(missing_ok=True)
    with suppress(UserError, OSError):
        audit(out, contents=True).describe()
    with chdir(_job()):
        _run(out, resume=True)


def _seeds() -> Mapping[str, bytes]:
    out = _job() / "out"

    def kept(*names: str) -> bytes:
        return joined({name: (out / name).read_bytes() for name in names}).replace(str(_job()).encode(), _PLACE)

    return {
        "manifest": kept(_MANIFEST),
        "units": kept(_UNITS),
        "lists": kept(_INPUTS, _LEFT_OUT),
        "part": kept(_PART),
        "failed": joined({_FAILED: b'{"error": "it cannot be read"}'}),
    }


_CHANGE = of_one_file(json=of_json, jsonl=of_json)
TARGETS = (Target(name="bulk_jobs", read=_read, change=_CHANGE, seeds=_seeds, prepare=_job),)

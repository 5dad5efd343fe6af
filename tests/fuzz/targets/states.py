"""What a run needs to go on: a training state, `metrics.jsonl`, and the list of the run's images."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from unittest import mock

from tests.blank_curves import write_blank
from tests.fuzz.changes import of_json, of_one_file
from tests.fuzz.driver import Target, joined, lasting_folder, separated
from tests.fuzz.targets.models import of_safetensors

_STATE = ("tensors.safetensors", "meta.json", "manifest.json")
_HISTORY, _IMAGES = "metrics.jsonl", "images.npz"


@cache
def _run() -> Path:
    """Returns the folder of a finished run with its states, which stays until the process ends."""
    folder = lasting_folder("run") / "run"
    _fit(folder, resume=False)
    return folder


def _fit(out: Path, *, resume: bool) -> None:
    from deit.train.loop import fit
    from deit.train.tasks.classification import ClassificationTask
    from tests.train import tiny

    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    recipe = tiny.recipe(keep="best", keep_state=True)
    task = ClassificationTask(tiny.student(**sizes), tiny.processor())
    with mock.patch("deit.train.run.history.draw_curves", write_blank):
        fit(task, tiny.data(4, 3), recipe, out=out, device="cpu", resume=resume)


def _state(run: Path) -> Path:
    """Returns the state before the last one, from which a run still has a step to do."""
    return sorted((run / "state").glob("step-*"))[-2]


def _read(data: bytes, folder: Path) -> None:
    files = separated(data)
    run = Path(shutil.copytree(_run(), folder / "run"))
    state = _state(run)
    for newer in set((run / "state").glob("step-*")) - {state}:
        shutil.rmtree(newer)
    for name in _STATE:
        if name in files:
            (state / name).write_bytes(files[name])
    if "manifest.json" not in files:  # one that was changed is refused before the rest is read
        hashes = {name: hashlib.sha256((state / name).read_bytes()).hexdigest() for name in _STATE[:2]}
        (state / "manifest.json").write_text(json.dumps(hashes))
    for name, place in ((_HISTORY, run), (_IMAGES, run / "state")):
        if name in files:
            (place / name).write_bytes(files[name])
    _fit(run, resume=True)


def _seeds() -> Mapping[str, bytes]:
    run = _run()
    state = _state(run)
    meta, history = {"meta.json": (state / "meta.json").read_bytes()}, {_HISTORY: (run / _HISTORY).read_bytes()}
    return {
        "values": joined(meta),
        "whole": joined({"tensors.safetensors": (state / "tensors.safetensors").read_bytes()} | meta | history),
        "manifest": joined({"manifest.json": (state / "manifest.json").read_bytes()}),
        "images": joined({_IMAGES: (run / "state" / _IMAGES).read_bytes()}),
    }


_CHANGE = of_one_file(json=of_json, safetensors=of_safetensors, jsonl=of_json)
TARGETS = (Target(name="states", read=_read, change=_CHANGE, seeds=_seeds, prepare=_run),)

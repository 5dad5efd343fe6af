"""A run goes on after images were deleted or cut, in the order and division that it began with, or says which are."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deit.core.errors import UserError
from deit.data.open_data import open_data
from deit.data.sources import Data, contents_of, place_of
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.recipes.sections import DataOptions, Schedule
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny


def pictures(folder: Path) -> Path:
    """Thirty images of two classes, which are divided in 24 and 6 when they are opened."""
    random = np.random.default_rng(0)
    for i in range(30):
        path = folder / ("light" if i % 2 else "dark") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (tiny.SIDE, tiny.SIDE, 3), np.uint8)).save(path)
    return folder


def run(out: Path, data: Data, options: DataOptions | None = None, **given: Any) -> Any:
    task = ClassificationTask(tiny.student(2), tiny.processor())
    recipe = tiny.recipe(data=options or DataOptions(), schedule=Schedule(epochs=2, warmup_epochs=1))
    return fit(task, data, recipe, out=out, device="cpu", **given)


def stopped(out: Path, data: Data, options: DataOptions | None = None) -> None:
    def stop(event: Any) -> None:
        if event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        run(out, data, options, on_step=stop)


def spoil(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_run_goes_on_without_an_image_as_if_it_had_never_stopped(tmp_path, how, caplog) -> None:
    """The oracle is a run that is not stopped, of which the same image is spoilt after the same step."""
    first = open_data(pictures(tmp_path / "first"))
    place = place_of(first.train, 5)
    whole = open_data(pictures(tmp_path / "whole"))

    def at_three(event: Any) -> None:
        if event.step == 3:
            spoil(Path(place_of(whole.train, 5)), how)

    run(tmp_path / "a", whole, on_step=at_three)
    stopped(tmp_path / "b", first)
    spoil(Path(place), how)
    again = open_data(tmp_path / "first")
    expected, received = (set(contents_of(part).tolist()) for part in (first.val, again.val))
    assert expected != received  # opened anew, the division is another one
    run(tmp_path / "b", again, resume=True)
    assert f"1 of the 30 images of the run is gone or changed: {place}. The run continues without" in caplog.text
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in "ab"]
    assert len(records[1]["data"]["train_images_left_out"]) == 1
    assert place in records[1]["data"]["train_images_left_out"][0]
    assert {(r["data"]["train_images"], r["data"]["val_images"]) for r in records} == {(24, 6)}
    assert records[0]["scores"] == records[1]["scores"]


@pytest.mark.parametrize(("options", "count"), [({"strict": True}, 1), ({"max_bad_images": 1}, 2), ({}, 3)])
def test_more_than_may_be_missing_are_named_and_nothing_is_trained(tmp_path, options, count) -> None:
    chosen = DataOptions(**options)
    data = open_data(pictures(tmp_path / "pictures"))
    stopped(tmp_path / "run", data, chosen)
    places = [place_of(data.train, i) for i in range(count)]
    kept = [Path(place).read_bytes() for place in places]
    for place in places:
        Path(place).unlink()
    with pytest.raises(UserError, match=r"30 images of the run (is|are) gone or changed") as caught:
        run(tmp_path / "run", open_data(tmp_path / "pictures"), chosen, resume=True)
    assert places[0] in str(caught.value)
    assert "Restore them and pass --resume again, or begin a new run with --init" in str(caught.value)
    for place, content in zip(places, kept, strict=True):
        Path(place).write_bytes(content)
    assert run(tmp_path / "run", open_data(tmp_path / "pictures"), chosen, resume=True).steps == 12


def test_a_damaged_list_of_images_costs_no_run_whose_images_are_there(tmp_path, caplog) -> None:
    stopped(tmp_path / "run", open_data(pictures(tmp_path / "pictures")))
    (tmp_path / "run" / "state" / "images.npz").write_bytes(b"PK\x03\x04 nothing")
    assert run(tmp_path / "run", open_data(tmp_path / "pictures"), resume=True).steps == 12
    assert "Ignored: " in caplog.text

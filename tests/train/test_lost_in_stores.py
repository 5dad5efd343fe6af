"""Images of tables and shards that are lost during a run, and a teacher's record of images that come and go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deit.data.open_data import open_data
from deit.data.readers import parquet as parquet_tables
from deit.data.sources import Data, place_of
from deit.runtime.folder_lock import FolderInUseError, folder_lock
from deit.train.loop import fit
from deit.train.recipes.sections import DataOptions, Distillation
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import Teacher
from tests.data.pictures import COLOURS, encoded, write_colours, write_parquet, write_shard
from tests.train import tiny
from tests.train.test_unreadable_images import fading, weights

pytest.importorskip("pyarrow")


def run(out: Path, data: Data, **given: Any) -> dict[str, Any]:
    task = ClassificationTask(tiny.student(), tiny.processor(), label_smoothing=0.0)
    fit(task, data, tiny.recipe(num_workers=0, label_smoothing=0.0), out=out, device="cpu", **given)
    return json.loads((out / "training.json").read_text())["data"]


def after_a_step(change: Any) -> Any:
    """Returns what changes the data once the first step is taken."""

    def on_step(event: Any) -> None:
        if event.step == 1:
            change()

    return on_step


def samples(seeds: range) -> dict[str, bytes]:
    """Returns members of a shard, an image and its class for each seed."""
    found: dict[str, bytes] = {}
    for i in seeds:
        found |= {f"{i:02}.png": encoded(COLOURS[i % 3], i), f"{i:02}.cls": str(i % 3).encode()}
    return found


def test_a_file_that_a_cell_names_and_that_goes_during_a_run_is_left_out(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    cells = []
    for i in range(18):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encoded(COLOURS[i % 3], i))
        cells.append({"bytes": None, "path": f"photos/{i}.png"})
    table = write_parquet(tmp_path / "a.parquet", {"image": cells, "label": [COLOURS[i % 3] for i in range(18)]})
    data = open_data(table)
    place = place_of(data.train, 5)
    lost = tmp_path / "photos" / f"{place.rpartition(' ')[2]}.png"
    record = run(tmp_path / "run", data, on_step=after_a_step(lost.unlink))
    assert record["train_images_left_out"] == [
        f"{place}: it names the file photos/{lost.name}, which cannot be read (No such file or directory)."
    ]


@pytest.mark.parametrize("damage", ["overwritten", "cut off"])
def test_members_of_a_shard_that_are_lost_during_a_run_are_left_out(tmp_path, damage) -> None:
    members = samples(range(18))
    shard = write_shard(tmp_path / "train.tar", members)
    data = open_data([str(shard), str(write_shard(tmp_path / "val.tar", samples(range(90, 93))))])
    content = shard.read_bytes()
    at = content.index(members["16.png"])

    def spoil() -> None:
        with shard.open("r+b") as file:
            if damage == "cut off":
                file.truncate(at + 10)
            else:
                file.seek(at + 100)
                file.write(bytes(100))

    record = run(tmp_path / "run", data, on_step=after_a_step(spoil))
    left_out = record["train_images_left_out"]
    lost = (16, 17) if damage == "cut off" else (16,)
    assert [reason.rpartition(": ")[0] for reason in left_out] == [place_of(data.train, i) for i in lost]
    if damage == "overwritten":
        assert "it has changed since the data was opened" in left_out[0]


@pytest.mark.parametrize("where", ["in memory", "in the cache"])
def test_a_parquet_file_that_goes_during_a_run_costs_nothing(tmp_path, monkeypatch, where) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    if where == "in the cache":
        monkeypatch.setattr(parquet_tables, "IN_MEMORY", 0)
    table = write_colours(tmp_path / "a.parquet", 6)
    run(tmp_path / "whole", open_data(table))

    def lose() -> None:
        table.write_bytes(b"other")
        shutil.rmtree(tmp_path / "cache")

    record = run(tmp_path / "run", open_data(table), on_step=after_a_step(lose))
    assert "train_images_left_out" not in record
    whole, spoilt = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], spoilt[name]) for name in whole)


# --- the record of a teacher ----------------------------------------------------------------------------


def taught(out: Path, data: Data, *, cache: Path, teacher: bool = True) -> None:
    torch.manual_seed(1)
    model = Teacher(tiny.TinyConvnet(), mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), image_size=(8, 8), name="tiny")
    task = DistillationTask(
        tiny.student(), model if teacher else None, tiny.processor(), distillation=Distillation(kind="hard")
    )
    fit(task, data, tiny.recipe(data=DataOptions()), out=out, device="cpu", teacher_cache=cache)


def test_a_mended_image_is_not_taught_by_what_was_said_of_another(tmp_path) -> None:
    """While it could not be read another image stood in its place, and of that the teacher spoke."""
    cache = tmp_path / "cache"
    taught(tmp_path / "recorded", fading(train=(3,)), cache=cache)
    taught(tmp_path / "again", fading(train=(3,)), cache=cache, teacher=False)
    one, two = weights(tmp_path / "recorded"), weights(tmp_path / "again")
    assert all(torch.equal(one[name], two[name]) for name in one)
    for teacher in (True, False):
        with pytest.raises(ValueError, match=r"The views of step \d are not those that the teacher of .* saw: the ima"):
            taught(tmp_path / f"mended {teacher}", tiny.data(), cache=cache, teacher=teacher)
    taught(tmp_path / "new", tiny.data(), cache=tmp_path / "another")


def test_one_run_records_into_a_cache_and_others_may_read_it_meanwhile(tmp_path) -> None:
    cache = tmp_path / "cache"
    taught(tmp_path / "recorded", tiny.data(), cache=cache)
    (lock,) = cache.glob(".lock*")
    with folder_lock(cache, name=lock.name):
        taught(tmp_path / "reading", tiny.data(), cache=cache, teacher=False)
        shutil.copytree(cache, tmp_path / "half")
    records = tmp_path / "half" / "records.bin"
    with records.open("r+b") as file:
        file.truncate(20)
    busy = pytest.raises(FolderInUseError, match=r"Another run that records answers is at work in .*half")
    with folder_lock(tmp_path / "half", name=lock.name), busy:
        taught(tmp_path / "waiting", tiny.data(), cache=tmp_path / "half")
    taught(tmp_path / "then", tiny.data(), cache=tmp_path / "half")

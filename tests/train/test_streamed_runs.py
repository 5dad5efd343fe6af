"""Trainings on shards elsewhere, over a server with faults: the same bits as on the same shards here, killed or not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deit.core.errors import UserError
from deit.core.images.reading import ImageError
from deit.train.loop import fit
from deit.train.open_images import open_images
from deit.train.progress import StepEvent
from deit.train.recipes.sections import Schedule
from tests.blank_curves import blank_curves
from tests.data.pictures import colour_members, write_shard
from tests.data.streams.conftest import small, used_now, web  # noqa: F401  # fixtures
from tests.data.streams.faulty_server import FaultyServer
from tests.train import tiny
from tests.train.test_loop import classification_task

PATTERN = "{train-0,train-1,train-2,val-0}.tar"
LIMIT = 40_000  # bytes of the cache; the shards have more than three times as many


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "web"
    for i, count in enumerate((3, 8, 4)):  # uneven
        write_shard(folder / f"train-{i}.tar", colour_members(count, seed=100 * i))
    write_shard(folder / "val-0.tar", colour_members(2, seed=50))
    return folder


def run(place: str, out: Path, on_step: Callable[[StepEvent], Any] | None = None, **settings: Any) -> bytes:
    """Trains on shards; goes on with the run in the folder if there is one. Returns the weights."""
    recipe = tiny.recipe(state_steps=3, schedule=Schedule(epochs=2, warmup_epochs=1))
    recipe = recipe.with_settings({"data.shuffle_buffer": 12, **settings})
    data = open_images(place, recipe)
    resume = (out / "recipe.yaml").is_file()
    fit(classification_task(), data, recipe, out=out, device="cpu", resume=resume, on_step=on_step)
    return (out / "model.safetensors").read_bytes()


def test_a_run_over_a_faulty_server_ends_with_the_bits_of_a_run_here(tmp_path, shards, web, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DEIT_CACHE_SIZE", str(LIMIT))
    expected = run(str(shards / PATTERN), tmp_path / "here")
    web.faults, web.delay = 0.2, 0.002
    used: list[int] = []

    def look(event: StepEvent) -> None:
        used.append(used_now(tmp_path / "cache/streams"))

    assert run(f"{web.address}/{PATTERN}?key=7", tmp_path / "there", look) == expected
    assert 0 < max(used) <= LIMIT
    assert run(f"{web.address}/{PATTERN}", tmp_path / "workers", num_workers=2) == expected
    record = (tmp_path / "there" / "training.json").read_text() + (tmp_path / "there" / "recipe.yaml").read_text()
    assert "key=7" not in record
    assert json.loads((tmp_path / "there" / "state" / "shards.json").read_text())["shards"].keys() == {
        f"{web.address}/{name}.tar" for name in ("train-0", "train-1", "train-2", "val-0")
    }


def killed(place: str, out: Path, after: int) -> None:
    """Lets a process train, and kills it after so many steps."""
    reads, writes = os.pipe()
    number = os.fork()
    if not number:
        blank_curves()
        run(place, out, lambda event: os.write(writes, b"."))
        os._exit(1)
    os.close(writes)
    for _ in range(after):
        assert os.read(reads, 1) == b"."
    os.kill(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    os.close(reads)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_killed_run_goes_on_to_the_same_bits_without_reading_all_again(tmp_path, shards, web, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DEIT_CACHE_SIZE", str(LIMIT))
    expected = run(str(shards / PATTERN), tmp_path / "here")
    place = f"{web.address}/{PATTERN}"
    web.faults, web.delay = 0.2, 0.002
    for after in (4, 9):  # of 22 steps, 11 an epoch
        killed(place, tmp_path / "killed", after)
    assert run(place, tmp_path / "killed") == expected


def test_a_server_that_is_gone_ends_the_run_with_its_state_and_leaves_no_image_out(
    tmp_path, shards, web: FaultyServer, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setenv("DEIT_CACHE_SIZE", str(LIMIT))
    expected = run(str(shards / PATTERN), tmp_path / "here")
    place, out = f"{web.address}/{PATTERN}", tmp_path / "there"

    def leave(event: StepEvent) -> None:
        if event.step == 13:
            web.planned = ["503"] * 1000

    with pytest.raises(ImageError, match=r"tar cannot be read \(error 503, 8 times in a row\).* is saved .*--resume"):
        run(place, out, leave)
    web.planned = []
    assert run(place, out) == expected
    assert "unreadable" not in (out / "training.json").read_text()


def test_a_run_does_not_go_on_with_other_shards_or_another_order(tmp_path, shards, web):  # noqa: F811
    place, out = f"{web.address}/{PATTERN}", tmp_path / "run"

    def stop(event: StepEvent) -> None:
        if event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(place, out, stop)
    write_shard(shards / "train-1.tar", colour_members(9, seed=100))
    with pytest.raises(
        UserError, match=r"The shards have changed since the run began: 1 shard is of another length: t"
    ):
        run(place, out)
    write_shard(shards / "train-1.tar", colour_members(8, seed=100))
    with pytest.raises(UserError, match=r"other settings: data.shuffle_buffer"):
        run(place, out, **{"data.shuffle_buffer": 0})
    assert run(place, out)

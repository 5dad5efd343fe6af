"""Images that nobody looks at before they are used: `check=False`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deit.core.images.reading import ImageError
from deit.data.open_data import open_data, open_unlabelled
from deit.data.sources import contents_of, place_of
from deit.data.storage import contents
from tests.cli.conftest import SHORT, VARIANT, deit as run_deit, is_refused, succeeds
from tests.data.pictures import COLOURS, encoded, fill, write_colours, write_shard, write_truncated_jpeg


def folder(root: Path) -> Path:
    return fill(root / "folder", 4)


def parquet(root: Path) -> Path:
    return write_colours(root / "a.parquet", 4)


def table(root: Path) -> Path:
    fill(root, 4)
    lines = [f"{colour}/{i}.png,{colour}" for colour in COLOURS for i in range(4)]
    (root / "a.csv").write_text("\n".join(["path,label", *lines]))
    return root / "a.csv"


def shard(root: Path) -> Path:
    members: dict[str, bytes] = {}
    for colour in COLOURS:
        for i in range(4):
            members |= {f"{colour}{i}.cls": colour.encode(), f"{colour}{i}.png": encoded(colour, i)}
    return write_shard(root / "a.tar", members)


KINDS = {"folder": folder, "parquet": parquet, "table": table, "shard": shard}


@pytest.fixture(params=KINDS)
def path(request, tmp_path):
    return KINDS[request.param](tmp_path)


@pytest.fixture
def nobody_looks(monkeypatch):
    def look(*_: object, **__: object) -> None:
        raise AssertionError("An image was looked at.")

    monkeypatch.setattr(contents, "check_image", look)
    monkeypatch.setattr(contents, "_sums", look)


@pytest.mark.parametrize("opener", [open_data, open_unlabelled])
def test_no_image_is_looked_at_and_all_else_is_as_ever(path, opener, monkeypatch):
    checked = opener(path)
    with monkeypatch.context() as patch:
        patch.setattr(contents, "check_image", None)
        patch.setattr(contents, "_sums", None)
        data = opener(path, check=False)
    for part in ("train", "val"):
        given, expected = getattr(data, part), getattr(checked, part)
        assert contents_of(given) is None
        assert given.labels.tolist() == expected.labels.tolist()
        assert [place_of(given, i) for i in range(len(given.labels))] == [
            place_of(expected, i) for i in range(len(expected.labels))
        ]
        assert np.array_equal(np.asarray(given.image(0)), np.asarray(expected.image(0)))
        assert given.fingerprint() == getattr(opener(path, check=False), part).fingerprint()


def test_an_image_more_is_another_data_set(tmp_path, nobody_looks):
    before = open_data(folder(tmp_path), check=False).train.fingerprint()
    fill(tmp_path / "folder", 5)
    assert open_data(tmp_path / "folder", check=False).train.fingerprint() != before


def test_a_broken_image_is_found_when_it_is_used(tmp_path, nobody_looks):
    root = folder(tmp_path)
    write_truncated_jpeg(root / "blue" / "0.jpg")
    data = open_data(root, check=False)
    broken = 0
    for part in (data.train, data.val):
        for i in range(len(part.labels)):
            if place_of(part, i).endswith(".jpg"):
                broken += 1
                with pytest.raises(ImageError, match=r"0\.jpg cannot be read as an image"):
                    part.image(i)
    assert broken == 1


def test_a_run_without_a_look_trains_resumes_and_is_measured(tmp_path, nobody_looks):
    photos, run = folder(tmp_path), tmp_path / "run"
    command = ("train", photos, "--student", VARIANT, *SHORT, "--set", "num_workers=0", "--out", run)
    succeeds(*command, "--set", "data.check_images=false")
    record = json.loads((run / "training.json").read_text())
    assert record["images"]["unrecorded"] == ["this run (its images have no hashes)"]
    succeeds(*command, "--set", "data.check_images=false", "--resume")
    is_refused(run_deit(*command, "--resume"), "other settings: data.check_images")


def test_the_images_held_out_by_a_run_without_a_look_are_found_again(tmp_path):
    photos, run = folder(tmp_path), tmp_path / "run"
    succeeds("train", photos, "--student", VARIANT, *SHORT, "--set", "data.check_images=false", "--out", run)
    result = succeeds("evaluate", run, photos, "--held-out", "--json")
    assert json.loads(result.stdout)["images"] == 3

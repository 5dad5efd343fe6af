"""Shards elsewhere against the same files here: the same samples, splits, labels and bits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from deit.core.errors import UnreachableError, UserError
from deit.data.loader import StepOrder
from deit.data.open_data import open_data, open_labelled, open_unlabelled
from deit.data.shard_order import buffer_of, nearby_order, pieces_of, shards_of
from deit.data.sources import Joined, Source, Subset
from deit.data.streams.shard_list import check_list, keep_list
from tests.data.pictures import COLOURS, colour_members, encoded, write_parquet, write_shard
from tests.data.streams.conftest import used_now

TARS, TABLES = "{train-0,train-1,val-0}.tar", "table-{train,val}.parquet"


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "web"
    for i in range(2):
        write_shard(folder / f"train-{i}.tar", colour_members(5 + i, seed=100 * i))
    write_shard(folder / "val-0.tar", colour_members(2, seed=50))
    for name, count, seed in (("train", 12, 0), ("val", 3, 60)):
        images = [encoded(colour, seed + i) for colour in COLOURS for i in range(count)]
        labels = [colour for colour in COLOURS for _ in range(count)]
        write_parquet(folder / f"table-{name}.parquet", {"image": images, "label": labels}, row_group_size=5)
    return folder


def assert_same(ours: Source, theirs: Source) -> None:
    assert ours.classes == theirs.classes
    assert np.array_equal(ours.labels, theirs.labels)
    assert ours.fingerprint() == theirs.fingerprint()
    for i in range(len(ours.labels)):
        assert np.array_equal(np.asarray(ours.image(i)), np.asarray(theirs.image(i)))


@pytest.mark.parametrize("pattern", [TARS, TABLES])
@pytest.mark.parametrize("size", ["", "32768", "0"])
def test_a_faulty_server_gives_the_same_images_as_files_here(tmp_path, shards, web, monkeypatch, pattern, size):
    monkeypatch.setenv("DEIT_CACHE_SIZE", size)
    web.faults, web.delay = 0.25, 0.001
    here = open_data(str(shards / pattern))
    there = open_data(f"{web.address}/{pattern}?key=7")
    assert_same(here.train, there.train)
    assert_same(here.val, there.val)
    assert "key" not in str(there.train.place(0))
    if size:
        assert used_now(tmp_path / "cache" / "streams") <= int(size)


@pytest.mark.parametrize("pattern", [TARS, TABLES])
def test_the_second_start_reads_no_images(shards, web, pattern):
    open_data(f"{web.address}/{pattern}?signed=monday")
    first = web.sent
    again = open_data(f"{web.address}/{pattern}?signed=tuesday")
    assert web.sent < (1.1 if pattern == TARS else 1.6) * first  # a table here is as long as a footer that is read
    assert_same(again.train, open_data(str(shards / pattern)).train)


def test_a_server_without_parts_or_versions(tmp_path, shards, web, monkeypatch):
    web.knows_ranges = web.etag = False
    here, there = open_data(str(shards / TARS)), open_data(f"{web.address}/{TARS}")
    assert_same(here.train, there.train)
    monkeypatch.setenv("DEIT_CACHE_SIZE", "0")
    with pytest.raises(UserError, match=r"sends only whole files. Reading them needs a cache"):
        open_data(f"{web.address}/{TARS}")
    monkeypatch.setenv("DEIT_CACHE_SIZE", "10000")
    with pytest.raises(UserError, match=r"more than the cache of 10000. Pass --cache-size"):
        open_data(f"{web.address}/{TARS}")


def test_what_changes_on_a_server_without_versions_is_seen_by_the_next_start(shards, web):
    web.etag = False
    before = open_data(f"{web.address}/{TARS}").train
    write_shard(shards / "train-1.tar", colour_members(6, seed=107))  # of the same length
    after = open_data(f"{web.address}/{TARS}").train
    assert before.fingerprint() != after.fingerprint()
    assert_same(after, open_data(str(shards / TARS)).train)


def test_all_ways_to_open_data_take_addresses(tmp_path, shards, web):
    web_data, here = f"{web.address}/{TARS}", str(shards / TARS)
    assert_same(open_labelled(web_data), open_labelled(here))
    assert_same(open_unlabelled(web_data).train, open_unlabelled(here).train)
    assert_same(open_data(f"file://{shards}/{TARS}").train, open_data(here).train)
    mixed = [f"{web.address}/train-0.tar", str(shards / "train-1.tar"), str(shards / "val-0.tar")]
    assert_same(open_data(mixed).train, open_data(here).train)
    with pytest.raises(UserError, match="are here and others elsewhere"):
        open_data([f"{web.address}/table-val.parquet", str(shards / "table-val.parquet")])
    with pytest.raises(
        UserError, match=r"/a.csv cannot be opened: only .tar and .parquet files are read by their addr"
    ):
        open_data(f"{web.address}/a.csv?key=7")


def test_a_list_of_what_to_leave_out_fits_both(tmp_path, shards, web):
    listed = tmp_path / "fix.csv"
    listed.write_text("file,action\ntrain-0.tar: blue-1.png,drop\n")
    here = open_data(str(shards / TARS), exclude=listed)
    there = open_data(f"{web.address}/{TARS}", exclude=listed)
    assert_same(here.train, there.train)
    assert len(there.train.labels) == 32


def test_damaged_shards_are_told_as_those_here(tmp_path, shards, web, caplog):
    whole = (shards / "train-1.tar").read_bytes()
    (shards / "train-1.tar").write_bytes(whole[:20_000])
    here, there = open_data(str(shards / TARS)), open_data(f"{web.address}/{TARS}")
    assert_same(here.train, there.train)
    reason = {file.reason for file in here.skipped}
    assert reason == {file.reason for file in there.skipped}
    assert reason == {file.reason for file in open_data(f"{web.address}/{TARS}").skipped}  # from the kept index
    table = bytearray((shards / "table-train.parquet").read_bytes())
    table[200:260] = bytes(60)
    (shards / "table-train.parquet").write_bytes(bytes(table))
    here, there = open_data(str(shards / TABLES)), open_data(f"{web.address}/{TABLES}")
    assert np.array_equal(here.train.contents, there.train.contents)
    assert len(there.skipped) == len(here.skipped) > 0


def test_a_server_that_goes_away_loses_no_image(shards, web, monkeypatch):
    monkeypatch.setenv("DEIT_CACHE_SIZE", "20000")
    train = open_data(f"{web.address}/{TARS}").train
    web.planned = ["500"] * 500
    numbers = range(len(train.labels))
    with pytest.raises(UnreachableError):
        [train.image(i) for i in numbers]


def test_an_object_store_is_read_like_a_web_server(shards):
    import fsspec

    store = fsspec.filesystem("memory")
    for file in shards.iterdir():
        store.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    try:
        assert_same(open_data("memory://bucket/*.tar").train, open_data(str(shards / TARS)).train)
        assert_same(open_data(f"memory://bucket/{TABLES}").val, open_data(str(shards / TABLES)).val)
        with pytest.raises(FileNotFoundError, match=r"There is nothing at memory://bucket/x\*.tar"):
            open_data("memory://bucket/x*.tar")
        with pytest.raises(FileNotFoundError, match=r"There is no memory://bucket/none.tar"):
            open_data("memory://bucket/none.tar")
    finally:
        store.rm("/bucket", recursive=True)


# --- the order ----------------------------------------------------------------------------------------


def test_the_order_is_a_permutation_of_near_images():
    pieces = np.repeat(np.arange(50), 40)
    order = nearby_order(pieces, 200, np.random.default_rng(3))
    assert sorted(order.tolist()) == list(range(2000))
    assert np.array_equal(order, nearby_order(pieces, 200, np.random.default_rng(3)))
    assert not np.array_equal(order, nearby_order(pieces, 200, np.random.default_rng(4)))
    at = np.empty(2000, np.int64)
    at[order] = np.arange(2000)
    for piece in range(50):  # all of a piece is used within the buffer and the piece
        assert np.ptp(at[pieces == piece]) < 200 + 40
    used = [len(set(pieces[order[i : i + 40]])) for i in range(0, 2000, 40)]
    assert min(used[2:-2]) > 2  # and pieces are mixed


def test_ranks_share_an_epoch_of_shards_without_repeats():
    pieces = np.repeat(np.arange(7), [3, 50, 8, 1, 20, 9, 9])  # 100 images
    options = {"pieces": pieces, "buffer": 16}

    def shown(world_size: int, first: int) -> list[list[int]]:
        orders = [StepOrder(100, 6, 7, first, 32, rank=r, world_size=world_size, **options) for r in range(world_size)]
        ranks = [[[view[2] for view in step] for step in order] for order in orders]
        return [sorted(image for rank in step for image in rank) for step in zip(*ranks, strict=True)]

    one = shown(1, 0)
    for epoch in (one[:16], one[16:]):
        images = [image for step in epoch for image in step]
        assert len(images) == len(set(images)) == 96
    assert shown(3, 0) == shown(2, 0) == one
    assert shown(3, 20) == one[20:]


def test_the_buffer_is_for_shards_and_by_default_for_those_elsewhere(shards, web, tmp_path, monkeypatch):
    here, there = open_data(str(shards / TARS)).train, open_data(f"{web.address}/{TARS}").train
    assert np.array_equal(pieces_of(here), pieces_of(there))
    assert len(set(pieces_of(there).tolist())) > 5
    assert (buffer_of(here, 0), buffer_of(there, 0)) == (0, 0)  # all of it has less than 4 GiB
    assert (buffer_of(here, 7), buffer_of(there, 7), buffer_of(there, 33)) == (7, 7, 0)
    monkeypatch.setattr("deit.data.shard_order.BUFFER_BYTES", 40_000)
    size = sum(file.size for file in shards_of(there))
    assert buffer_of(there, 0) == 40_000 * len(there.labels) // size
    assert buffer_of(here, 0) == 0
    part = Joined([Subset(there, np.array([5, 3, 9])), there])
    assert np.array_equal(pieces_of(part)[:3], np.unique(pieces_of(there)[[5, 3, 9]], return_inverse=True)[1])
    with pytest.raises(UserError, match=r"data.shuffle_buffer is for tar shards and Parquet files"):
        buffer_of(Joined([folder_of_images(tmp_path), there]), 7)


def folder_of_images(tmp_path: Path) -> Source:
    from tests.data.pictures import fill

    return open_data(str(fill(tmp_path / "photos", 5))).train


# --- the list of shards -------------------------------------------------------------------------------


def test_a_list_of_shards_that_changed_is_named(tmp_path, shards, web, caplog):
    path = tmp_path / "shards.json"

    def files(pattern: str = TARS) -> list:
        data = open_data(f"{web.address}/{pattern}?key=7")
        return [*shards_of(data.train), *shards_of(data.val)]

    keep_list(path, files())
    assert "key" not in path.read_text()
    check_list(path, files())
    check_list(path, shards_of(open_data(str(shards / TARS)).train))  # of shards here their images are compared
    assert not caplog.text
    shutil.copytree(shards, shards / "moved")
    check_list(path, files(f"moved/{TARS}"))
    with pytest.raises(UserError, match=r"changed since the run began: 1 shard is gone: train-1.tar. Restore"):
        check_list(path, files("{train-0,val-0}.tar"))
    os.rename(shards / "train-1.tar", shards / "train-7.tar")
    with pytest.raises(UserError, match=r"1 shard is gone: train-1.tar; 1 shard is new: train-7.tar"):
        check_list(path, files("{train-0,train-7,val-0}.tar"))
    write_shard(shards / "train-1.tar", colour_members(7, seed=100))
    with pytest.raises(UserError, match=r"1 shard is of another length: train-1.tar"):
        check_list(path, files())
    write_shard(shards / "train-1.tar", colour_members(6, seed=101))
    check_list(path, files())
    assert "another version (ETag or time) than when the run began: train-1.tar" in caplog.text

"""The cache on disk: bounded, shared, and right after damage and death."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from deit.core.errors import UserError
from deit.data.streams import disk_cache
from deit.data.streams.disk_cache import DiskCache, parse_size
from tests.data.streams.conftest import used_now

SIZE = 1000


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


@dataclass(frozen=True)
class Made:
    """An entry that writes down how often, and from where on, it was filled."""

    number: int
    fills: list[tuple[int, int]] = field(default_factory=list, compare=False)
    change: int = 0
    shard: str = "s"
    origin: str = "a shard"
    pause: float = 0.0

    @property
    def name(self) -> str:
        return f"entry{self.number}"

    def begin(self) -> tuple[int, Any]:
        return SIZE, None

    def fill(self, part: IO[bytes], begun: Any) -> None:
        here = part.tell()
        self.fills.append((self.number, here))
        for start in range(here, SIZE, 100):
            part.write(content(self.number + self.change)[start : start + 100])
            part.flush()
            time.sleep(self.pause)


def names(folder: Path) -> set[str]:
    return {file.name for file in (folder / "entries").iterdir()}


def test_sizes_are_read():
    assert [parse_size(text) for text in ("0", "512MiB", "20GB", "1.5T", "100m")] == [
        0, 2**29, 20 * 2**30, 3 * 2**39, 100 * 2**20,
    ]  # fmt: skip
    for text in ("", "many", "-1", "5 apples"):
        with pytest.raises(UserError, match="must be like 20GB, or 0 for none"):
            parse_size(text)


def test_a_size_too_small_to_work_with_is_refused(monkeypatch):
    monkeypatch.setattr(disk_cache, "LEAST_SIZE", 2**26)
    with pytest.raises(UserError, match="needs 64MB or more, or 0"):
        parse_size("10MB")


def test_entries_are_kept_up_to_the_limit_and_the_one_used_longest_ago_goes(tmp_path):
    cache, fills = DiskCache(tmp_path, 3 * SIZE), []
    for number in (0, 1, 2):
        assert cache.read(Made(number, fills), 10, 20) == content(number)[10:30]
    DiskCache(tmp_path, 3 * SIZE).read(Made(0, fills), 0, 1)  # another process uses it again
    for number in (3, 0, 4):
        assert cache.read(Made(number, fills), 0, SIZE) == content(number)
        assert used_now(tmp_path) <= 3 * SIZE
    assert [number for number, _ in fills] == [0, 1, 2, 3, 4]
    assert names(tmp_path) == {"entry3", "entry0", "entry4"}


@pytest.mark.parametrize("damage", ["cut", "other bytes", "emptied", "no sum"])
def test_a_damaged_entry_is_fetched_again(tmp_path, caplog, damage):
    fills: list[tuple[int, int]] = []
    DiskCache(tmp_path, 9 * SIZE).read(Made(1, fills), 0, 1)
    path = tmp_path / "entries" / "entry1"
    if damage == "cut":
        os.truncate(path, 500)
    elif damage == "emptied":
        os.truncate(path, 0)
    elif damage == "other bytes":
        path.write_bytes(bytes(SIZE))
    else:
        (tmp_path / "sums" / "s").unlink()
    assert DiskCache(tmp_path, 9 * SIZE).read(Made(1, fills), 0, SIZE) == content(1)
    assert len(fills) == 2
    assert "is damaged. It is fetched again" in caplog.text


def test_a_part_that_was_left_is_gone_on_with_and_counts(tmp_path):
    fills: list[tuple[int, int]] = []
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / f"entry1.{SIZE}.part").write_bytes(content(1)[:300])
    (tmp_path / "entries" / f"entry7.{2 * SIZE}.part").write_bytes(b"x")  # counts with all that it will be
    cache = DiskCache(tmp_path, 3 * SIZE)
    assert cache.read(Made(1, fills), 0, SIZE) == content(1)
    assert fills == [(1, 300)]
    assert f"entry7.{2 * SIZE}.part" in names(tmp_path)
    cache.read(Made(2, fills), 0, 1)
    assert names(tmp_path) == {"entry1", "entry2"}


def test_other_content_under_the_same_version_is_told(tmp_path):
    cache = DiskCache(tmp_path, SIZE)
    cache.read(Made(1), 0, 1)
    cache.read(Made(2), 0, 1)  # evicts the first
    with pytest.raises(UserError, match=r"a shard has another content than when it was first read.*Restore it"):
        cache.read(Made(1, change=5), 0, 1)
    assert cache.read(Made(1), 0, SIZE) == content(1)


def test_what_does_not_fit_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"has {SIZE} bytes, more than the cache of 999. Pass --cache-size {SIZE}"):
        DiskCache(tmp_path, SIZE - 1).read(Made(1), 0, 1)
    monkeypatch.setattr(disk_cache, "LEAST_FREE_BYTES", 2**60)
    monkeypatch.setattr(disk_cache, "_PATIENCE", 0.0)
    with pytest.raises(UserError, match="there is no room for 1000 bytes more"):
        DiskCache(tmp_path, SIZE).read(Made(1), 0, 1)


def read_all(folder: Path, seed: int, found: Any) -> None:
    cache = DiskCache(folder, 4 * SIZE)
    digest, most = hashlib.sha256(), 0
    for number in np.random.default_rng(seed).integers(0, 8, 60).tolist():
        assert cache.read(Made(number), 0, SIZE) == content(number)
        most = max(most, used_now(folder))
    found.put((digest.hexdigest(), most))


def test_processes_share_it_within_the_limit(tmp_path):
    fork = multiprocessing.get_context("fork")
    found = fork.Queue()
    workers = [fork.Process(target=read_all, args=(tmp_path, seed, found)) for seed in range(3)]
    for worker in workers:
        worker.start()
    results = [found.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert max(most for _, most in results) <= 4 * SIZE


def read_forever(folder: Path) -> None:
    cache = DiskCache(folder, 3 * SIZE)
    for number in range(10**6):
        cache.read(Made(number % 5, pause=0.001), 0, SIZE)


def test_it_survives_a_kill_at_any_time(tmp_path):
    fork = multiprocessing.get_context("fork")
    for trial in range(6):
        worker = fork.Process(target=read_forever, args=(tmp_path,))
        worker.start()
        time.sleep(0.03 + 0.013 * trial)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        cache = DiskCache(tmp_path, 3 * SIZE)
        for number in range(5):
            assert cache.read(Made(number), 0, SIZE) == content(number)
        assert used_now(tmp_path) <= 3 * SIZE


def test_ahead_fetches_what_is_missing(tmp_path):
    cache, fills = DiskCache(tmp_path, 9 * SIZE), []
    cache.read(Made(1, fills), 0, 1)
    cache.fetch_ahead([Made(1, fills), Made(2, fills), Made(3, fills)])
    until = time.monotonic() + 10
    while not {"entry2", "entry3"} <= names(tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    assert cache.read(Made(2, fills), 0, SIZE) == content(2)
    assert sorted(number for number, _ in fills) == [1, 2, 3]

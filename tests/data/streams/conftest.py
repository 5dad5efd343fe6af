"""A server, small parts, no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import deit.data.readers.webdataset
from deit.data.streams import disk_cache, retrying, shard_files
from tests.data.streams.faulty_server import FaultyServer, serving

PART = 8192  # bytes; a shard of the tests has some parts


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEIT_CACHE_SIZE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(disk_cache, "LEAST_SIZE", 1)
    monkeypatch.setattr(shard_files, "PART_BYTES", PART)
    monkeypatch.setattr(deit.data.readers.webdataset, "PART_BYTES", PART)


def used_now(folder: Path) -> int:
    """Returns the bytes in a cache while others read and evict: files that vanish meanwhile do not count."""
    total = 0
    for file in (folder / "entries").glob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


@pytest.fixture
def web(tmp_path) -> Iterator[FaultyServer]:
    (tmp_path / "web").mkdir(exist_ok=True)
    with serving(folder=tmp_path / "web") as server:
        yield server

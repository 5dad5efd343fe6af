"""Locates the cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder of downloaded shards, unpacked tables, hashes of images and measured speeds.

    It is the environment variable DEIT_CACHE; by default `deit` in XDG_CACHE_HOME or in ~/.cache.
    """
    chosen = os.environ.get("DEIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit"

"""Returns the folder of the cache: shards, unpacked tables, hashes of images, measured speeds."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns where shards, unpacked tables, hashes of images and measured speeds are kept.

    The environment variable DEIT_CACHE; without it `deit` in XDG_CACHE_HOME or in ~/.cache.
    """
    chosen = os.environ.get("DEIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit"

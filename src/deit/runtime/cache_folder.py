"""Locates the cache folder, and keeps in it what was measured on this machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deit.core.errors import UserError, read_json
from deit.core.files import write_json_atomically

_MOST_BYTES = 2**16


def cache_folder() -> Path:
    """Returns the folder of downloaded shards, unpacked tables, hashes of images and measured speeds.

    It is the environment variable DEIT_CACHE; by default `deit` in XDG_CACHE_HOME or in ~/.cache.
    """
    chosen = os.environ.get("DEIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit"


def recall(kind: str, key: Mapping[str, Any], *, name: str = "") -> dict[str, Any] | None:
    """Returns what an earlier process kept under a key; None without it, and for a file that is damaged or foreign.

    The caller checks the values: anybody may have written them.

    Args:
        kind: Folder in the cache folder.
        key: What the values depend on, as JSON.
        name: Beginning of the name of the file.
    """
    file = _file_of(kind, key, name)
    if file is None:
        return None
    try:
        values = read_json(file, "what was measured earlier", _MOST_BYTES)
    except (OSError, UserError):
        return None
    return values if values.get("key") == json.loads(json.dumps(key)) else None


def keep(kind: str, key: Mapping[str, Any], values: Mapping[str, Any], *, name: str = "") -> None:
    """Keeps values for later processes; see `recall`. Where the cache cannot be written, they measure again."""
    file = _file_of(kind, key, name)
    if file is None:
        return
    with suppress(OSError, UserError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(file, {"key": dict(key), **values})


def digest_of(key: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that stand for a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _file_of(kind: str, key: Mapping[str, Any], name: str) -> Path | None:
    try:
        return cache_folder() / kind / f"{name}{digest_of(key)}.json"
    except RuntimeError:  # there is no home folder
        return None

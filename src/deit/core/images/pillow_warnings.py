"""Silences Pillow's warnings about damaged files, in any number of threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_added: Any = None


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Ignores the warnings of Pillow and pillow-heif inside the block.

    `warnings.catch_warnings` replaces the filters of the whole process, so threads would overwrite each other's
    filters. This adds one filter when the first thread enters and removes it when the last one leaves.
    """
    global _inside, _added  # process-wide, as the filters are
    filters: Any
    with _lock:
        _inside += 1
        if _inside == 1:
            warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
            _added = warnings.filters[0]
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            filters = warnings.filters
            if not _inside and _added in filters:
                filters.remove(_added)

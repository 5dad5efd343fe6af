"""Keeps what was read of a shard elsewhere, such as where its images are, so that it is read once."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deit.core.files import replaced_file
from deit.core.writing import WritingError
from deit.data.streams.shard_files import ShardFile, StreamedFile
from deit.runtime.cache_folder import cache_folder

logger = logging.getLogger(__name__)


def once(file: ShardFile, kind: str, make: Callable[[], Any]) -> Any:
    """Returns what `make` returns for a file, or what it returned for the same file in an earlier process.

    Files here are read each time. An index that is damaged is made anew; one that cannot be written is not kept.

    Args:
        file: The file; its address, length and version identify it.
        kind: What is kept, with the version of its form: "tar1".
        make: Returns JSON values.
    """
    if not isinstance(file, StreamedFile) or not file.has_cache or file.stamp() is None:
        return make()
    path = cache_folder() / "streams" / "index" / f"{file.identity}.{kind}.json.gz"
    kept = _read(path)
    if kept is not None:
        return kept
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as temporary:
            temporary.write_bytes(gzip.compress(json.dumps(made).encode(), compresslevel=1))
    except (OSError, WritingError) as error:
        logger.debug("The index of %s cannot be kept in %s (%s).", file, path.parent, error)
    return made


def _read(path: Path) -> Any | None:
    try:
        return json.loads(gzip.decompress(path.read_bytes()))  # gzip keeps a checksum
    except (OSError, EOFError, ValueError, zlib.error):
        return None

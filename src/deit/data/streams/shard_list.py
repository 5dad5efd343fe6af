"""Records the shards elsewhere that a run reads, and finds what has changed when it goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deit.core.errors import UserError, read_json
from deit.core.files import write_json_atomically
from deit.core.printable import counted, printable, some_of
from deit.data.streams.shard_files import ShardFile, StreamedFile

logger = logging.getLogger(__name__)

LIST_NAME = "shards.json"
_KIND = "a list of a run's shards"
_MOST_BYTES = 2**27  # a million shards

Listed = dict[str, list[Any]]  # address -> size and version


def shard_list(files: Sequence[ShardFile]) -> Listed:
    """Returns addresses, without keys, of the files elsewhere -> their sizes and versions."""
    found = {file.key: [file.size, file.known.version] for file in files if isinstance(file, StreamedFile)}
    return dict(sorted(found.items()))


def keep_list(path: Path, files: Sequence[ShardFile]) -> None:
    """Writes the list of a new run; nothing if no file is elsewhere."""
    if found := shard_list(files):
        write_json_atomically(path, {"shards": found})


def check_list(path: Path, files: Sequence[ShardFile]) -> None:
    """Compares the shards with those of the run in a folder. Shards that were all moved are known by their names.

    Args:
        path: The list of the run; without one there is nothing to compare.
        files: The shards now; of files here nothing is compared, because their images are.

    Raises:
        UserError: Shards were added, are gone, or have another length.
        DamagedFileError: The list is damaged.
    """
    now = shard_list(files)
    if not now or not path.is_file():
        return
    kept = read_json(path, _KIND, _MOST_BYTES).get("shards")
    before, after = _by_name(kept if isinstance(kept, dict) else {}), _by_name(now)
    changes = {
        "gone": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
        "of another length": [name for name in before if name in after and before[name][0] != after[name][0]],
    }
    told = [
        f"{counted(len(names), 'shard')} {'is' if len(names) == 1 else 'are'} {what}: {printable(some_of(names, 3))}"
        for what, names in changes.items()
        if names
    ]
    if told:
        raise UserError(
            f"The shards have changed since the run began: {'; '.join(told)}. Restore them, or begin a new run."
        )
    newer = [name for name in before if before[name][1] != after[name][1]]
    if newer:
        logger.warning(
            "Shards have another version (ETag or time) than when the run began: %s. Their images are compared.",
            printable(some_of(newer, 3)),
        )


def _by_name(listed: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Returns the list with names from where the addresses begin to differ."""
    folders = [address.split("/")[:-1] for address in listed]
    common = 0
    while folders and all(len(parts) > common and parts[common] == folders[0][common] for parts in folders):
        common += 1
    return {"/".join(address.split("/")[common:]): values for address, values in listed.items()}

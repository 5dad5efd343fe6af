"""Locks a folder, so that one run at a time works in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deit.core.errors import UserError
from deit.core.writing import writing

LOCK_NAME = ".lock"

logger = logging.getLogger(__name__)


class FolderInUseError(UserError):
    """Another process is at work in a folder."""


@contextmanager
def folder_lock(folder: Path, *, name: str = LOCK_NAME, work: str = "Another run") -> Iterator[None]:
    """Keeps other processes and threads out of a folder for a block.

    The lock belongs to the operating system and ends with the process, however that ends: an old lock file means
    nothing. The empty file stays, since removing it would let two processes lock two files of one name.

    Args:
        folder: That exists.
        name: Of the lock file in it.
        work: Who has the lock if it cannot be had, for the message.

    Raises:
        FolderInUseError: It is locked.
        WritingError: The lock file cannot be made.
    """
    lock = FileLock(folder / name, thread_local=False)
    try:
        with writing(folder / name):
            lock.acquire(timeout=0)
    except NotImplementedError:  # some network file systems
        logger.warning("The file system of %s has no locks: see to it that one run at a time is at work there.", folder)
    except Timeout:
        raise FolderInUseError(
            f"{work} is at work in {folder}. Wait until it has ended (if it was killed, some seconds), or pass another "
            "folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_in_use(folder: Path) -> bool:
    """Whether a run is at work in a folder."""
    if not (folder / LOCK_NAME).is_file():
        return False
    try:
        with folder_lock(folder):
            return False
    except FolderInUseError:
        return True

"""Writes files and folders atomically, and removes temporary ones that killed processes left."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deit.core.writing import writing


def at_home(path: str) -> str:
    """Expands a leading ~ to the home folder, unless a file of that very name exists.

    Shells do not expand --out=~/run, quoted words, or settings in files.
    """
    return path if not path.startswith("~") or os.path.lexists(path) else os.path.expanduser(path)


_READING_UMASK = threading.Lock()  # one thread at a time: to read it is to change it for a moment
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as `tempfile` names them below


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file atomically: readers see the old content or the new one."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file that replaces `path` on success. On an error, changes nothing.

    Args:
        path: What shall be written.

    Yields:
        An empty file in the same folder.

    Raises:
        WritingError: It cannot be written: the disk is full, ...
        FileNotFoundError: Its folder does not exist.
    """
    intact = "The file of that name is as it was." if path.exists() else "Nothing of it is left behind."
    with writing(path, intact), _temporary_beside(path, directory=False) as temporary:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    sync_folder(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:
    """Writes indented JSON atomically: readers see the old content or the new one."""
    write_text_atomically(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def replace_folder_content(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files appear in `folder` on success. On an error, changes nothing.

    A new folder appears in one rename. Into an existing folder, each file is renamed by itself; other files stay.

    Args:
        folder: Where the files shall be.

    Yields:
        The temporary folder, on the same file system.

    Raises:
        WritingError: It cannot be written: the disk is full, ...
    """
    intact = "What is in it is as it was." if folder.exists() else "Nothing of it is left behind."
    with writing(folder, intact):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with writing(folder, intact), _temporary_beside(folder, directory=True) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync_file(file)
        sync_folder(temporary)
        if folder.is_dir():
            for file in sorted(temporary.iterdir()):
                os.replace(file, folder / file.name)
            sync_folder(folder)
        else:
            os.rename(temporary, folder)
    sync_folder(folder.parent)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Removes temporary files and folders of killed processes.

    Removes only files of this module that no running process uses: each process holds a lock of the operating system,
    which ends with it. On file systems without locks, removes nothing.

    Args:
        folder: Folder to search; it may be missing.
        name: Final name of the file or folder; "*" for all.
    """
    escaped = name.replace("[", "[[]")
    inner = folder.glob(f"..{escaped}.*.tmp.*.tmp")  # a model directory that was written into a temporary folder
    for path in {*folder.glob(f".{escaped}.*.tmp"), *inner}:
        if not _LEFTOVER.fullmatch(path.name) or path.is_symlink():
            continue
        with suppress(OSError):  # gone already, or not ours to remove
            handle = os.open(path, os.O_RDONLY)
            try:
                if _lock(handle, wait=False):
                    _remove(path)
            finally:
                os.close(handle)


@contextmanager
def _temporary_beside(path: Path, *, directory: bool) -> Iterator[Path]:
    remove_leftovers(path.parent, path.name)
    temporary, handle = _new_temporary(path, directory=directory)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _new_temporary(path: Path, *, directory: bool) -> tuple[Path, int]:
    """Creates an empty file or folder and locks it. Returns it with the file descriptor that holds the lock."""
    prefix, suffix = f".{path.name}.", ".tmp"
    while True:
        if directory:
            temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=path.parent))
            handle = os.open(temporary, os.O_RDONLY)
            os.fchmod(handle, 0o777 & ~_umask())
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
            os.fchmod(handle, 0o666 & ~_umask())
            temporary = Path(name)
        with suppress(OSError):  # without locks nobody removes leftovers either
            _lock(handle, wait=True)
        if temporary.exists():
            return temporary, handle
        os.close(handle)  # another process took it for a leftover, in the moment before it was locked


def _lock(handle: int, *, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _umask() -> int:
    with _READING_UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flushes the content of a file to the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Flushes the entries of a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

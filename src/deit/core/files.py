"""Files and folders that are written whole or not at all, and what a killed process left of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deit.core.writing import writing


def at_home(path: str) -> str:
    """Returns a path whose leading ~ is the home folder, as a shell has it; what exists under its own name stays.

    Shells do so only with a ~ that begins a word, not in --out=~/run, quotes, or a file of settings.
    """
    return path if not path.startswith("~") or os.path.lexists(path) else os.path.expanduser(path)


_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as `tempfile` names them below


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old content or the new one, never a part."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Gives a temporary file to write into; on success it takes the place of `path`, on an error nothing is changed.

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
    """Writes indented JSON so that a reader sees the old content or the new one, never a part."""
    write_text_atomically(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def replace_folder_content(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder to write into; on success its files appear in `folder`.

    A folder that does not exist yet appears in one rename. Into one that exists, each file is moved by a
    rename of its own; files of other names stay. On an error nothing is changed.

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
    """Removes temporary files and folders of processes that were killed while they wrote.

    Only what the functions of this module made, and only if no living process is at it: each holds a lock of the
    operating system, which ends with the process. Where the file system has no such locks everything stays.

    Args:
        folder: In which to look; it need not exist.
        name: What the file or folder was going to be; any when "*".
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
    """Makes an empty file or folder and locks it; returns it with the open file that holds the lock."""
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
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_file(path: Path) -> None:
    """Waits until the content of a file is on the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

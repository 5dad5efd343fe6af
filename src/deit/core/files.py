"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    """
    with _temporary_beside(path, directory=False) as temporary:
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
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_beside(folder, directory=True) as temporary:
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


@contextmanager
def _temporary_beside(path: Path, *, directory: bool) -> Iterator[Path]:
    if directory:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
    else:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        temporary = Path(name)
    try:
        yield temporary
    finally:
        if directory:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


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

"""Converts errors of writing, of any library, to one message: disk full, no permission, read-only."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit.core.errors import UserError

# Only writing fails in these ways.
_OF_WRITING = {
    errno.ENOSPC: ("the disk is full", "Make room"),
    errno.EDQUOT: ("the quota of the disk is used up", "Make room"),
    errno.EFBIG: ("the file would be larger than is allowed here", "Choose another disk, or raise the limit"),
    errno.EROFS: ("the file system is read-only", "Choose another place"),
}
# Reading fails in these ways too: they count when they are about the place that is written.
_OF_BOTH = {
    errno.EACCES: ("permission denied", "Choose a place that may be written"),
    errno.EPERM: ("the operation is not permitted", "Choose a place that may be written"),
    errno.EIO: ("the disk reports an error", "Check the disk, or choose another"),
    errno.ENXIO: ("the device is gone", "Check the disk, or choose another"),
    errno.ESTALE: ("the network file system lost the file", "Check the mount"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "Choose another place"),
}
# Numbers in the texts of libraries that keep them to themselves: Rust (safetensors), HDF5, Arrow.
_NUMBER = re.compile(r"(?:os error |errno[ =:]+|\[Errno )(\d+)", re.IGNORECASE)
_TEXTS = {
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "read-only file system": errno.EROFS,
    "file write failed": errno.ENOSPC,  # torch.save says no more
    "unexpected pos": errno.ENOSPC,  # likewise, when it closes an archive that was cut off
}


class WritingError(UserError, OSError):
    """A file or folder cannot be written: disk full, no permission, read-only, device error.

    Args:
        path: What could not be written.
        number: The system's number of the error.
        intact: What is left as it was, in a sentence.
    """

    def __init__(self, path: Path, number: int, intact: str = "") -> None:
        reason, advice = (_OF_WRITING | _OF_BOTH)[number]
        super().__init__(" ".join(f"{path} cannot be written: {reason}. {intact} {advice} and try again.".split()))
        self.errno = number
        self.path = path


@contextmanager
def writing(path: Path, intact: str = "") -> Iterator[None]:
    """Converts errors of writing to `WritingError`. Other errors pass.

    Args:
        path: What is written in the block, as its user knows it.
        intact: What is left as it was if that fails, in a sentence.

    Raises:
        WritingError: It cannot be written.
        FileNotFoundError: Its folder does not exist.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            raise FileNotFoundError(f"There is no folder {path.parent} for {path.name}. Make it first.") from error
        number = why_unwritten(error, path)
        named = isinstance(error, WritingError) and not any(parent.suffix == ".tmp" for parent in error.path.parents)
        if number is None or named:
            raise
        told = WritingError(path, number, intact)
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error


def why_unwritten(error: BaseException, path: Path | None = None) -> int | None:
    """Returns the system's number of an error of writing, or None for any other error.

    Args:
        error: Of any library; what it was raised from is looked at as well.
        path: What was written: only with it errors count that reading has too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WritingError):
            return cause.errno
        if isinstance(cause, UserError):  # a file that is read
            return None
        number = _number(cause)
        if number in _OF_WRITING:
            return number
        if number in _OF_BOTH and path is not None and _is_about(cause, path):
            return number
        cause = cause.__cause__ or cause.__context__
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if not isinstance(error, (OSError, RuntimeError)) and type(error).__module__.partition(".")[0] == "builtins":
        return None
    text = str(error)[:2000]
    found = _NUMBER.search(text)
    if found:
        return int(found[1])
    return next((number for words, number in _TEXTS.items() if words in text.lower()), None)


def _is_about(error: BaseException, path: Path) -> bool:
    """Whether an error names the path itself, a path beside or below it, or none."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str):
        return not isinstance(name, bytes)
    folder = os.path.abspath(path.parent)
    return os.path.commonpath([folder, os.path.abspath(name)]) == folder

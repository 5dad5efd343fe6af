"""A bounded cache of parts of shards on disk, which the processes of a machine share.

An entry is a file. It is written as NAME.SIZE.part and renamed when it is whole, so that a killed process leaves
nothing that looks whole, and the next one goes on with the part. Locks of files (`flock`) keep two processes from
fetching the same entry; the system releases them when a process dies. There is no list of entries: the sizes and times
of the files are the list, so nothing can contradict it. The entry that was used longest ago is evicted first.

The SHA-256 of each entry is recorded when it is first read, in a file for each shard that outlives the entries. An
entry is compared with it when a process uses it for the first time, and when it was fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from filelock import FileLock, Timeout

from deit.core.errors import UnreachableError, UserError
from deit.core.printable import printable
from deit.runtime.cache_folder import cache_folder

logger = logging.getLogger(__name__)

SIZE_SWITCH = "DEIT_CACHE_SIZE"  # environment variable
# The shuffle buffer of a run touches parts of up to 20,000 images at a time: 10 GiB hold them at 500 KB an image.
DEFAULT_SIZE = 10 * 2**30
LEAST_SIZE = 2**26  # as many processes write parts of 8 MiB at the same time
LEAST_FREE_BYTES = 2**28  # left on the disk for others
_MOST_AHEAD = 8  # entries that a process fetches at the same time
_LOCKS = 256  # files; parts that share one wait for each other
_SUM_BYTES = 32  # of SHA-256
_PATIENCE = 60.0  # seconds to wait for room that other processes are filling
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_PART = re.compile(r".+\.(\d+)\.part")


def parse_size(text: str) -> int:
    """Returns the bytes of a text such as "20GB", "512MiB" or "0". K, M, G and T are powers of 1024.

    Raises:
        UserError: It is no size, or one between 0 and `LEAST_SIZE`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"The size of the cache must be like 20GB, or 0 for none. Received: {printable(text, 100)!r}.")
    size = int(float(found.group(1)) * 1024 ** " KMGT".index(found.group(2).upper() or " "))
    if 0 < size < LEAST_SIZE:
        raise UserError(f"The cache needs {LEAST_SIZE >> 20}MB or more, or 0 for none. Received: {text!r}.")
    return size


class Entry(Protocol):
    """What a part of a shard is, and how it is fetched."""

    @property
    def name(self) -> str:
        """Name of the file in the cache."""
        ...

    @property
    def shard(self) -> str:
        """Name of the file of sums of its shard."""
        ...

    @property
    def number(self) -> int:
        """Place of its sum in that file."""
        ...

    @property
    def origin(self) -> str:
        """Name for messages."""
        ...

    def begin(self) -> tuple[int, Any]:
        """Returns its length, and what `fill` needs. Called by one process at a time."""
        ...

    def fill(self, part: IO[bytes], begun: Any) -> None:
        """Appends what is missing to a part; raises `UnreachableError` where it cannot be fetched."""
        ...


@dataclass
class _Checked:
    """A file that this process has compared with its sum: which one, and when it was last marked as used."""

    file: tuple[int, int, int]
    used: float


class DiskCache:
    """Parts of shards in a folder, up to a size.

    Args:
        folder: The folder; made if missing.
        limit: Most bytes of all entries together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._checked: dict[str, _Checked] = {}
        self._ahead: set[str] = set()

    @classmethod
    def open(cls) -> DiskCache | None:
        """Returns the cache that the environment asks for; None for none."""
        limit = parse_size(os.environ.get(SIZE_SWITCH) or str(DEFAULT_SIZE))
        return cls(cache_folder() / "streams", limit) if limit else None

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_folder"], state["_limit"])  # type: ignore[misc]

    def read(self, entry: Entry, start: int, size: int) -> bytes:
        """Returns some bytes of an entry; fewer where it ends. Fetches it if it is missing or damaged.

        Raises:
            UnreachableError: It cannot be fetched, or cannot be kept.
            UserError: It is larger than the cache, or its content is not what it was.
        """
        path = self._path_of(entry)
        try:
            while True:
                with contextlib.suppress(FileNotFoundError):
                    handle = os.open(path, os.O_RDONLY)
                    try:
                        if self._is_good(handle, path, entry):
                            return os.pread(handle, size, start)
                    finally:
                        os.close(handle)
                self._make(entry, Path(path))
        except OSError as error:
            raise UnreachableError(
                f"{entry.origin} cannot be kept in {self._folder} ({error.strerror or error}). Free some space, "
                f"choose another folder with the environment variable DEIT_CACHE, or none with --cache-size 0."
            ) from error

    def fetch_ahead(self, entries: Iterable[Entry]) -> None:
        """Begins to fetch entries that are missing, in threads, and returns at once.

        An error is told by the `read` that needs the entry.
        """
        for entry in entries:
            if len(self._ahead) >= _MOST_AHEAD:
                return
            if entry.name not in self._ahead and not os.path.exists(self._path_of(entry)):
                self._ahead.add(entry.name)
                threading.Thread(target=self._fetch_ahead, args=(entry,), daemon=True).start()

    def _fetch_ahead(self, entry: Entry) -> None:
        try:
            self._make(entry, Path(self._path_of(entry)))
        except (UserError, OSError) as error:
            logger.debug("%s cannot be fetched ahead (%s).", entry.origin, error)
        finally:
            self._ahead.discard(entry.name)

    def _path_of(self, entry: Entry) -> str:
        return f"{self._folder}/entries/{entry.name}"  # a Path takes longer than reading a small image

    # --- one entry ------------------------------------------------------------------------------------

    def _is_good(self, handle: int, path: str, entry: Entry) -> bool:
        status = os.fstat(handle)
        state, now = (status.st_ino, status.st_mtime_ns, status.st_size), time.monotonic()
        known = self._checked.get(path)
        if known is None or known.file != state:
            if _sum(os.dup(handle)) != self._recorded(entry):
                return False
            self._checked[path] = known = _Checked(state, 0.0)
        if now - known.used > 1:
            with contextlib.suppress(OSError):  # it was evicted in this moment, which the open file survives
                os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
            known.used = now
        return True

    def _make(self, entry: Entry, path: Path) -> None:
        """Fetches an entry, unless another process did while this one waited."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_of(entry.name):
            recorded = self._recorded(entry)
            if path.exists():
                if _sum(path) == recorded:
                    return
                logger.warning("A part of %s in the cache is damaged. It is fetched again.", entry.origin)
                path.unlink()
            size, begun = entry.begin()
            part = path.with_name(f"{path.name}.{size}.part")
            self._make_room(part, size, entry.origin)
            with part.open("r+b") as file:
                if file.seek(0, os.SEEK_END) > size:
                    file.truncate(0)
                    file.seek(0)
                entry.fill(file, begun)
            found = _sum(part)
            if recorded is not None and found != recorded:
                part.unlink()
                raise UserError(
                    f"{entry.origin} has another content than when it was first read, though its length and version "
                    f"are the same. Restore it, or remove {self._sums_of(entry)} to use the new content."
                )
            self._record(entry, found)
            with self._room():  # one that looks at all files in this moment might see neither name
                os.replace(part, path)

    def _lock_of(self, name: str) -> FileLock:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") % _LOCKS
        folder = self._folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{number}.lock")

    # --- sums -----------------------------------------------------------------------------------------

    def _sums_of(self, entry: Entry) -> Path:
        return self._folder / "sums" / entry.shard

    def _recorded(self, entry: Entry) -> bytes | None:
        try:
            with self._sums_of(entry).open("rb", buffering=0) as file:
                file.seek(entry.number * _SUM_BYTES)
                found = file.read(_SUM_BYTES)
        except FileNotFoundError:
            return None
        return found if len(found) == _SUM_BYTES and found.strip(b"\0") else None

    def _record(self, entry: Entry, value: bytes) -> None:
        path = self._sums_of(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b", buffering=0) as file:
            file.seek(entry.number * _SUM_BYTES)
            file.write(value)

    # --- room -----------------------------------------------------------------------------------------

    def _make_room(self, part: Path, size: int, origin: str) -> None:
        """Evicts entries until a part fits, and makes its empty file, which counts with its whole length.

        Raises:
            UserError: It does not fit into an empty cache.
            OSError: There is no room on the disk.
        """
        if size > self._limit:
            raise UserError(
                f"A part of {origin} has {size} bytes, more than the cache of {self._limit}. Pass --cache-size {size} "
                "or more."
            )
        until = time.monotonic() + _PATIENCE
        while True:
            with self._room():
                if self._evict(part, size):
                    part.touch()
                    return
            if time.monotonic() > until:
                raise OSError(f"there is no room for {size} bytes more; {LEAST_FREE_BYTES} are left free for others")
            time.sleep(0.1)

    def _room(self) -> FileLock:
        """Returns the lock that is held where entries come and go."""
        return FileLock(self._folder / "room.lock")

    def _evict(self, part: Path, size: int) -> bool:
        """Removes what was used longest ago until there is room for a part of a size."""
        found: list[tuple[int, int, Path]] = []
        with os.scandir(self._folder / "entries") as entries:
            for each in entries:
                if each.name == part.name:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = each.stat()
                    claimed = _PART.fullmatch(each.name)
                    found.append((status.st_atime_ns, int(claimed[1]) if claimed else status.st_size, Path(each.path)))
        used = sum(length for _, length, _ in found)
        here = part.stat().st_size if part.exists() else 0
        free = shutil.disk_usage(self._folder).free - LEAST_FREE_BYTES
        need = max(used + size - self._limit, size - here - free)
        for _, length, path in sorted(found):
            if need <= 0:
                break
            if self._remove(path):
                need -= length
        return need <= 0

    def _remove(self, path: Path) -> bool:
        """Removes an entry, or a part that no process is filling."""
        claimed = _PART.fullmatch(path.name)
        if claimed is None:
            path.unlink(missing_ok=True)
            return True
        lock = self._lock_of(path.name.removesuffix(f".{claimed[1]}.part"))
        try:
            with lock.acquire(blocking=False):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True


def _sum(file: Path | int) -> bytes:
    """Returns the SHA-256 of a file, by its path or its descriptor, which is closed."""
    with open(file, "rb", buffering=0) as opened:
        opened.seek(0)
        return hashlib.file_digest(opened, "sha256").digest()

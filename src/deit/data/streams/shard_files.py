"""Files of shards, here or elsewhere, of which any part can be read at any time."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, TypeVar

from deit.core.errors import UnreachableError, UserError
from deit.core.printable import printable
from deit.data.storage.contents import file_stamp
from deit.data.streams.addresses import WEB, check_address, is_address, key_of, name_of, scheme_of, shown
from deit.data.streams.disk_cache import DiskCache
from deit.data.streams.remote import Described, RemoteFile
from deit.data.streams.retrying import retried
from deit.data.streams.stores import StoredFile, listed
from deit.data.streams.web import WebFile

# A part that is fetched and kept at once. Object stores advise 8 to 16 MiB: at 100 MB/s the wait for an answer, 30 ms,
# is then a third of the time. Also what is shuffled as one piece, so another number is another order of the images.
PART_BYTES = 2**23
_TOGETHER = 16  # servers that are asked at the same time

Progress: TypeAlias = Callable[[int, int], None]
T = TypeVar("T")


class ShardFile(Protocol):
    """A file of a data set; `str` returns its name for messages."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    @property
    def key(self) -> str:
        """Name in caches: an absolute path, or an address without keys."""
        ...

    @property
    def folder(self) -> Path | None:
        """Folder of the file, where it may name other files; None elsewhere."""
        ...

    def stamp(self) -> bytes | None:
        """Returns 16 bytes that change when the content does, or None; see `file_stamp`."""
        ...

    def read(self, start: int, size: int) -> bytes:
        """Returns some bytes; fewer where the file ends."""
        ...

    def open(self) -> io.RawIOBase:
        """Opens the file for reading in any order."""
        ...


class LocalFile:
    """A file on a disk.

    Args:
        path: Its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.key = os.path.abspath(path)
        self._stamp = file_stamp(self.key)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> Path:
        """Folder of the file."""
        return self.path.parent

    def stamp(self) -> bytes | None:
        """Returns the stamp of the file when it was opened."""
        return self._stamp

    def read(self, start: int, size: int) -> bytes:
        """Returns some bytes."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            return bytes(file.read(size))

    def open(self) -> io.RawIOBase:
        """Opens the file."""
        return self.path.open("rb", buffering=0)


class StreamedFile:
    """A file elsewhere, whose parts are kept in the cache.

    Args:
        remote: The file.
        known: From its `describe`.
        cache: Keeps the parts; None for none.
    """

    folder = None

    def __init__(self, remote: RemoteFile, known: Described, cache: DiskCache | None) -> None:
        self.remote, self.known, self._cache = remote, known, cache
        self.size, self.key = known.size, key_of(remote.address)
        # What has no version may change unseen, so its parts serve this opening alone.
        version = known.version or f"unknown {os.urandom(16).hex()}"
        text = f"{self.key}\0{known.size}\0{version}\0".encode("utf-8", "surrogateescape") + known.head
        self.identity = hashlib.sha256(text).hexdigest()[:32]
        self._part_bytes = PART_BYTES if known.has_parts else max(known.size, 1)
        self.parts_name = f"{self.identity}-{self._part_bytes}"
        if cache is None and not known.has_parts:
            raise UserError(f"The server of {self} sends only whole files. Reading them needs a cache: --cache-size.")

    def __str__(self) -> str:
        return shown(self.remote.address)

    def stamp(self) -> bytes | None:
        """Returns a hash of address, length and version; None if the server tells no version."""
        return bytes.fromhex(self.identity) if self.known.version else None

    def read(self, start: int, size: int) -> bytes:
        """Returns some bytes, through the cache."""
        stop = min(start + size, self.size)
        if self._cache is None:
            return self.fetch(start, stop)
        pieces = []
        while start < stop:
            number, offset = divmod(start, self._part_bytes)
            pieces.append(self._cache.read(_Part(self, number), offset, min(stop - start, self._part_bytes - offset)))
            start += len(pieces[-1])
            if not pieces[-1]:
                raise UnreachableError(f"{self} ends before its length of {self.size} bytes.")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def kept(self, entry: Any, start: int, size: int) -> bytes:
        """Returns some bytes of an entry that was made of this file, such as unpacked rows; see `DiskCache.read`."""
        return b"" if self._cache is None else self._cache.read(entry, start, size)

    @property
    def has_cache(self) -> bool:
        """Whether parts are kept."""
        return self._cache is not None

    def fetch_ahead(self, spans: Iterable[tuple[int, int]]) -> None:
        """Begins to fetch the parts that hold some bytes, given as (start, size)."""
        if self._cache is not None:
            numbers = {at // self._part_bytes for start, size in spans for at in (start, start + max(size - 1, 0))}
            self._cache.fetch_ahead(_Part(self, number) for number in sorted(numbers))

    def keep_ahead(self, entries: Iterable[Any]) -> None:
        """Begins to make entries of this file, see `kept`."""
        if self._cache is not None:
            self._cache.fetch_ahead(entries)

    def part(self, number: int) -> range:
        """Returns the bytes of a part."""
        return range(number * self._part_bytes, min((number + 1) * self._part_bytes, self.size))

    def fetch(self, start: int, stop: int) -> bytes:
        """Returns some bytes from the server, past the cache."""
        sink = io.BytesIO()
        self.fetch_into(sink, start, stop)
        return sink.getvalue()

    def fetch_into(self, sink: IO[bytes], start: int, stop: int) -> None:
        """Appends what is missing in `sink`, which holds the bytes from `start` on, up to `stop`.

        Raises:
            UnreachableError: The server fails again and again, or has the file no more.
        """

        def attempt() -> None:
            if sink.tell() < stop - start:
                self.remote.append(start + sink.tell(), stop, sink, self.known)

        try:
            retried(attempt, self.remote.address, sink.tell)
        except (FileNotFoundError, PermissionError) as error:
            raise UnreachableError(str(error)) from error

    def open(self) -> io.RawIOBase:
        """Opens the file."""
        return Reader(self.read, self.size)


@dataclass(frozen=True)
class _Part:
    """A part of a file in the cache; see `Entry`."""

    file: StreamedFile
    number: int

    @property
    def name(self) -> str:
        return f"{self.file.parts_name}-{self.number}"

    @property
    def shard(self) -> str:
        return self.file.parts_name

    @property
    def origin(self) -> str:
        return str(self.file)

    def begin(self) -> tuple[int, range]:
        here = self.file.part(self.number)
        return len(here), here

    def fill(self, part: IO[bytes], begun: range) -> None:
        self.file.fetch_into(part, begun.start, begun.stop)


class Reader(io.RawIOBase):
    """A file object on a function that reads.

    Args:
        read: Takes start and length.
        size: Length of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Reads at the position."""
        size = max(min(len(buffer), self._size - self._at), 0)
        content = self._read(self._at, size) if size else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def shard_files(names: Sequence[str], progress: Progress | None = None) -> list[ShardFile]:
    """Opens files by their paths and addresses; reads nothing but the first bytes of those elsewhere.

    Args:
        names: Paths and addresses.
        progress: Called with (files found, files in all), for files elsewhere.

    Raises:
        FileNotFoundError: There is no such file.
        PermissionError: A server refuses one.
        UnreachableError: A server cannot be reached.
        UserError: An address has another scheme, or leads to no file.
    """
    for name in filter(is_address, names):
        check_address(name)
    cache = DiskCache.open() if any(map(is_address, names)) else None

    def found(name: str) -> ShardFile:
        if not is_address(name):
            return LocalFile(Path(name))
        remote: RemoteFile = WebFile(name) if scheme_of(name) in WEB else StoredFile(name)
        known = retried(remote.describe, name)
        _check_head(name, known.head)
        return StreamedFile(remote, known, cache)

    files: list[ShardFile] = []
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for file in pool.map(found, names):
            files.append(file)
            if progress is not None and isinstance(file, StreamedFile):
                progress(len(files), len(names))
    return files


def _check_head(address: str, head: bytes) -> None:
    """Refuses a file that begins like another kind than its name says."""
    kind = Path(name_of(address)).suffix.lower()
    begins = printable(repr(head[:24]), 120)
    if kind == ".parquet" and not head.startswith(b"PAR1"):
        raise UserError(f"{shown(address)} is not a Parquet file: it begins with {begins}. Check the address.")
    if kind != ".tar" or (len(head) == tarfile.BLOCKSIZE and not head.strip(b"\0")):  # an archive without members
        return
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise UserError(
            f"{shown(address)} is not a tar archive: it begins with {begins}. Check the address. A compressed shard "
            "must be unpacked first, because it cannot be read by number."
        ) from error


def addresses_of(pattern: str) -> list[str]:
    """Returns the addresses that match a pattern with *, ? or [; an address without them unchanged.

    Raises:
        FileNotFoundError: There are none.
        UserError: A web server has no list of files.
    """
    path = key_of(pattern)
    if scheme_of(pattern) in WEB:
        if "*" in path:
            raise UserError(f"{shown(pattern)} has a *, but web servers list no files. Write a range: {{000..099}}.")
        return [pattern]
    if not any(sign in path for sign in "*?["):
        return [pattern]
    check_address(pattern)
    return retried(lambda: listed(pattern), pattern)


def each_of(act: Callable[[ShardFile], T], files: Sequence[ShardFile], progress: Progress | None) -> list[T]:
    """Returns what a function returns for each file; asks several servers at the same time.

    Args:
        act: The function.
        files: The files.
        progress: Called with (files done, files in all).
    """
    results: list[T] = []
    with ThreadPoolExecutor(_TOGETHER if any(isinstance(file, StreamedFile) for file in files) else 1) as pool:
        for result in pool.map(act, files):
            results.append(result)
            if progress is not None:
                progress(len(results), len(files))
    return results

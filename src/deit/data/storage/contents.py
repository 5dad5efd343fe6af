"""Decodes, checks and hashes all images in one pass, and caches the results for later passes.

Equal bytes have equal hashes, whether they are a file, a cell of a Parquet file or a member of a shard. The hash is
BLAKE2b cut to 8 bytes: among ten million images, two different ones share a hash with a probability of 3 in a million.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL

import deit
from deit.core.files import replaced_file
from deit.core.images.reading import ImageError, ValueRange, ValueRangeError, check_image
from deit.runtime.cache_folder import cache_folder

logger = logging.getLogger(__name__)

Hashes: TypeAlias = npt.NDArray[np.uint64]

SWITCH = "DEIT_CONTENTS_CACHE"  # environment variable; "off" for no cache

_RULE = 2  # part of a cache's first line; increase it if the check changes within a version
_NO_STAMP = bytes(16)
# A file may change again within this span without another time stamp, because file system clocks are coarse.
_TICK, _WHOLE_SECONDS = 100_000_000, 2_000_000_000  # nanoseconds; the second for time stamps of whole seconds
_ENTRY = np.dtype([("stamp", "<u8", (2,)), ("size", "<i8"), ("crc", "<u4"), ("hash", "<u8")])
_SPARE = 10_000  # entries of other images that a cache file keeps


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """Results of checking N images.

    Attributes:
        reasons: Number of an unusable image -> reason.
        checks: (N, 2) int64, length and CRC-32.
        hashes: (N,) uint64.
        unknown: Numbers of the images in `reasons` whose range of values is unknown, see `sample_values`.
    """

    reasons: dict[int, str]
    unknown: tuple[int, ...] = ()
    checks: npt.NDArray[np.int64]
    hashes: Hashes


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Access to the bytes of images.

    Attributes:
        count: Number of images N.
        read: Returns the content of an image file, by number; raises ImageError or OSError.
        stamp: Returns 16 bytes that change whenever the content does, without reading it, or None; see `file_stamp`.
        place: Key of the cache of these images, such as the path of a folder; empty for no cache.
        together: Images per task of a thread. With 32, the overhead of a task is small even for small images.
        value_range: Range of gray images with more than 8 bits, see `load_image`.
    """

    count: int
    read: Callable[[int], bytes]
    stamp: Callable[[int], bytes | None] = field(default=lambda _: None)
    place: str = ""
    together: int = 32
    value_range: ValueRange | None = None


def content_hash(data: bytes) -> int:
    """Returns the hash of the bytes of an image, below 2**64."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def examine(images: Bytes, progress: Callable[[int, int], None] | None = None) -> Contents:
    """Reads each image once, in threads: decodes it as cheaply as its format allows and hashes its bytes.

    Does not read images again that are in the cache with the same path, size and times. Broken images are not cached,
    so they are read each time.

    Args:
        images: Access to the images.
        progress: Called with (images checked, images in all).
    """
    cache = _Cache.open(images.place and f"{images.place}\0{images.value_range or ''}")
    found = np.zeros(images.count, _ENTRY)
    reasons: dict[int, str] = {}
    unknown: list[int] = []
    with ThreadPoolExecutor() as pool:
        if cache is not None:
            stamps = b"".join(stamp or _NO_STAMP for stamp in pool.map(images.stamp, range(images.count)))
            found["stamp"] = np.frombuffer(stamps, "<u8").reshape(-1, 2)
            cache.fill(found)
        unread = np.flatnonzero(found["hash"] == 0)  # a hash of 0, one in 2**64, is read again each time

        def check(start: int) -> int:
            stop = min(start + images.together, len(unread))
            for i in unread[start:stop].tolist():
                try:
                    data = images.read(i)
                    found["size"][i], found["crc"][i], found["hash"][i] = _sums(data)
                    check_image(data, value_range=images.value_range)
                except (ImageError, OSError) as error:
                    if isinstance(error, ValueRangeError):
                        unknown.append(i)
                    reasons[i] = str(error).removeprefix("the given bytes ")
            return stop

        known = images.count - len(unread)
        if progress is not None and known:
            progress(known, images.count)
        bound = 2048  # images whose tasks wait
        for first in range(0, len(unread), bound):
            for done in pool.map(check, range(first, min(first + bound, len(unread)), images.together)):
                if progress is not None:
                    progress(known + done, images.count)
    if cache is not None and len(unread):
        cache.save(np.delete(found, list(reasons)))
    checks = np.stack([found["size"], found["crc"].astype(np.int64)], axis=1)
    return Contents(
        reasons=dict(sorted(reasons.items())),
        checks=checks,
        hashes=found["hash"].astype(np.uint64),
        unknown=tuple(sorted(unknown)),
    )


def unexamined(count: int) -> Contents:
    """Returns results for unchecked images: no errors and no hashes."""
    return Contents(reasons={}, checks=np.zeros((count, 2), np.int64), hashes=np.zeros(count, np.uint64))


def refuse_unknown_ranges(found: Contents, place: Callable[[int], str]) -> None:
    """Refuses images whose value range is unknown. Leaving them out would train on the other images only.

    Args:
        found: Result of `examine`.
        place: Returns the name of an image for the message, by its number.

    Raises:
        ValueRangeError: There is such an image.
    """
    if found.unknown:
        first = found.unknown[0]
        raise ValueRangeError(f"{place(first)} {found.reasons[first]} ({len(found.unknown)} such images.)")


def _sums(data: bytes) -> tuple[int, int, int]:
    return len(data), zlib.crc32(data), content_hash(data)


def file_stamp(path: str | os.PathLike[str]) -> bytes | None:
    """Returns 16 bytes that identify the current state of a file by path, size and times.

    Returns None if there is no file, or if it was changed so recently that another change might not alter its times.
    Includes the time of the last status change, which programs cannot set.

    Args:
        path: Absolute path.
    """
    now = time.time_ns()
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    times = (status.st_mtime_ns, status.st_ctime_ns)
    fractions = any(when % 1_000_000_000 for when in times)
    if now - max(times) < (_TICK if fractions else _WHOLE_SECONDS):
        return None
    text = f"{os.fspath(path)}\0{status.st_size}\0{times}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def part_stamp(stamp: bytes | None, part: str) -> bytes | None:
    """Returns 16 bytes that identify a part of a file, derived from the file's stamp; None without a stamp."""
    return None if stamp is None else hashlib.blake2b(stamp + part.encode(), digest_size=16).digest()


# --- the cache ----------------------------------------------------------------------------------------


class _Cache:
    """Stamps and hashes of earlier passes, without names, in one file for each place.

    The file starts with a line that names its format and the versions that checked the images, and a checksum of the
    rest. Any mismatch discards the file. Saving replaces the whole file, so the last of several processes wins, which
    costs the others only another pass. Files that cannot be read or written are ignored without an error.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = self._read()

    @classmethod
    def open(cls, place: str) -> _Cache | None:
        """Opens the cache of a place; returns None if it has none or caching is off."""
        chosen = os.environ.get(SWITCH, "")
        if not place or chosen.lower() == "off":
            return None
        try:
            folder = Path(chosen).expanduser() if chosen else cache_folder() / "contents"
        except RuntimeError:  # the home folder is unknown
            return None
        name = hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return cls(folder / name)

    def _read(self) -> npt.NDArray[Any]:
        try:
            data = self.path.read_bytes()
        except OSError:
            return np.zeros(0, _ENTRY)
        start = len(_first_line()) + 16
        body = data[start:]
        if data[:start] != _first_line() + _checksum(body) or len(body) % _ENTRY.itemsize:
            return np.zeros(0, _ENTRY)
        return np.frombuffer(body, _ENTRY)

    def fill(self, found: npt.NDArray[Any]) -> None:
        """Fills in the entries of images whose stamps are in the cache."""
        known = self._entries
        if not len(known):
            return
        places = np.minimum(np.searchsorted(known["stamp"][:, 0], found["stamp"][:, 0]), len(known) - 1)
        same = (known["stamp"][places] == found["stamp"]).all(axis=1)
        found[same] = known[places[same]]

    def save(self, found: npt.NDArray[Any]) -> None:
        """Saves the entries of these images, and keeps those of others unless they are many more."""
        mine = found[(found["stamp"] != 0).any(axis=1) & (found["hash"] != 0)]
        others = self._read()  # again: another process may have written
        entries = np.concatenate([mine, others]) if len(others) <= len(mine) + _SPARE else mine
        _, first = np.unique(entries["stamp"][:, 0], return_index=True)  # sorted; keeps the first of equal stamps
        body = entries[first].tobytes()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(self.path) as temporary:
                temporary.write_bytes(_first_line() + _checksum(body) + body)
        except OSError as error:
            logger.debug("The hashes of the images cannot be saved in %s (%s).", self.path.parent, error)


def _first_line() -> bytes:
    return f"deit contents {_RULE} deit {deit.__version__} Pillow {PIL.__version__}\n".encode()


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()

"""What is in the bytes of images: one pass that decodes, checks and hashes each, and a cache that spares the next pass.

A hash tells copies of one image wherever they lie and whatever they are called: a file, a cell of a Parquet file and a
member of a shard of the same bytes have the same one. It is BLAKE2b cut to 8 bytes: among ten million images two
different ones share a hash with a probability of 3 in a million.
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

_RULE = 2  # part of a cache's first line; raised when what counts as whole changes within a version
_NO_STAMP = bytes(16)
# How long after its last change a file may change again without another time: clocks of file systems tick.
_TICK, _WHOLE_SECONDS = 100_000_000, 2_000_000_000  # nanoseconds; the second where times have no fractions
_ENTRY = np.dtype([("stamp", "<u8", (2,)), ("size", "<i8"), ("crc", "<u4"), ("hash", "<u8")])
_SPARE = 10_000  # entries of other images that a cache file may keep


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What was found in the bytes of N images.

    Attributes:
        reasons: Number of an image -> why it cannot be used.
        checks: (N, 2) int64, length and CRC-32.
        hashes: (N,) uint64.
        unknown: Numbers of the images among the former whose range of values is not known, see `sample_values`.
    """

    reasons: dict[int, str]
    unknown: tuple[int, ...] = ()
    checks: npt.NDArray[np.int64]
    hashes: Hashes


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Where the bytes of images come from.

    Attributes:
        count: N.
        read: Returns the content of an image file, by number; raises ImageError or OSError.
        stamp: Returns 16 bytes that change whenever the content does, without reading it, or None; see `file_stamp`.
        place: What the cache of these images is called by, such as the path of a folder; empty for no cache.
        together: Images in a task of a thread: 32 are enough that the task itself costs little beside small images.
        value_range: Of gray images with more than 8 bits, see `load_image`.
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
    """Reads each image once, in threads: decodes it as cheaply as its format allows, and hashes its bytes.

    An image of the cache was whole when its file had the same path, size and times; it is not read again. Broken images
    are not cached: they are looked at each time.

    Args:
        images: Where they are.
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
    """Returns what is known of images that nobody looked at: nothing is wrong, and there are no hashes."""
    return Contents(reasons={}, checks=np.zeros((count, 2), np.int64), hashes=np.zeros(count, np.uint64))


def refuse_unknown_ranges(found: Contents, place: Callable[[int], str]) -> None:
    """Stops where values of images mean what nobody said: leaving those out would train on all others alone.

    Args:
        found: What `examine` returned.
        place: Names an image in a message, by its number.

    Raises:
        ValueRangeError: There is such an image.
    """
    if found.unknown:
        first = found.unknown[0]
        raise ValueRangeError(f"{place(first)} {found.reasons[first]} ({len(found.unknown)} such images.)")


def _sums(data: bytes) -> tuple[int, int, int]:
    return len(data), zlib.crc32(data), content_hash(data)


def file_stamp(path: str | os.PathLike[str]) -> bytes | None:
    """Returns 16 bytes that stand for a file as it is now: its path, size, and times of change.

    None where there is no file, and where it was changed so lately that its next change may leave the times as they
    are. The time of the last change of the file's status is among them: unlike the other it cannot be set.

    Args:
        path: Absolute.
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
    """Returns 16 bytes that stand for a part of a file, made of the file's own; None where it has none."""
    return None if stamp is None else hashlib.blake2b(stamp + part.encode(), digest_size=16).digest()


# --- the cache ----------------------------------------------------------------------------------------


class _Cache:
    """What earlier passes found, in one file for each place: stamps and hashes, no names.

    The file begins with a line that names its format and the versions that judged the images, and a checksum of the
    rest; whatever is not exactly so is made anew. It is replaced whole, so that of two processes the last one wins,
    which costs the other a pass and nothing else. Where it cannot be read or written there is no cache, and no error.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = self._read()

    @classmethod
    def open(cls, place: str) -> _Cache | None:
        """Opens the cache of a place, or returns None where there shall be none."""
        chosen = os.environ.get(SWITCH, "")
        if not place or chosen.lower() == "off":
            return None
        try:
            folder = Path(chosen).expanduser() if chosen else cache_folder() / "contents"
        except RuntimeError:  # nobody's home folder is known
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
        """Writes what is known into the entries of images whose stamp is."""
        known = self._entries
        if not len(known):
            return
        places = np.minimum(np.searchsorted(known["stamp"][:, 0], found["stamp"][:, 0]), len(known) - 1)
        same = (known["stamp"][places] == found["stamp"]).all(axis=1)
        found[same] = known[places[same]]

    def save(self, found: npt.NDArray[Any]) -> None:
        """Keeps the entries of some images, and of others as long as those are not many more."""
        mine = found[(found["stamp"] != 0).any(axis=1) & (found["hash"] != 0)]
        others = self._read()  # again: another process may have written
        entries = np.concatenate([mine, others]) if len(others) <= len(mine) + _SPARE else mine
        _, first = np.unique(entries["stamp"][:, 0], return_index=True)  # sorted; of equal ones the first
        body = entries[first].tobytes()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(self.path) as temporary:
                temporary.write_bytes(_first_line() + _checksum(body) + body)
        except OSError as error:
            logger.debug("The hashes of the images cannot be kept in %s (%s).", self.path.parent, error)


def _first_line() -> bytes:
    return f"deit contents {_RULE} deit {deit.__version__} Pillow {PIL.__version__}\n".encode()


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()

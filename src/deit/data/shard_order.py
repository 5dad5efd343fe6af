"""Shuffles images of shards so that those near to each other in a shard are used at about the same time.

A full permutation would read each image of a stream by itself, or need all of it on the disk. Here an epoch takes the
pieces of all shards (8 MiB of a tar archive, a group of rows of a Parquet file) in random order, and each image moves
back by a random number of places, less than the buffer. So at most the pieces of two buffers are in use at any time.
The order is a function of seed, epoch, and the places of the images in their shards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.data.sources import Derived, Joined, Source, Subset
from deit.data.streams.shard_files import ShardFile, StreamedFile

logger = logging.getLogger(__name__)

# Bytes of images that the buffer holds by default. Two of them fit into the cache's default size, with room for the
# validation images. Data sets that are smaller are shuffled whole, like those on this machine.
BUFFER_BYTES = 2**32

Numbers = npt.NDArray[np.int64]


def shards_of(source: Source) -> list[ShardFile]:
    """Returns the files of shards that the images of a source are in; none for other kinds of data."""
    found = [file for base, _ in _bases(source, np.arange(len(source.labels))) for file in _files(base)]
    return list({file.key: file for file in found}.values())


def pieces_of(source: Source) -> Numbers | None:
    """Returns the (N,) numbers of the pieces of shards that the images are in; None for other kinds of data."""
    parts, first = [], 0
    for base, numbers in _bases(source, np.arange(len(source.labels))):
        pieces = getattr(base, "pieces", None)
        if pieces is None:
            return None
        _, own = np.unique(pieces[numbers], return_inverse=True)
        parts.append(own + first)
        first += int(own.max(initial=-1)) + 1
    return np.concatenate(parts) if parts else None


def buffer_of(source: Source, asked: int) -> int:
    """Returns the number of images in the shuffle buffer; 0 shuffles all images.

    Args:
        source: Training images.
        asked: By the recipe; 0 chooses: as many images as have `BUFFER_BYTES` if shards are elsewhere, else all.

    Raises:
        UserError: A number is asked for, and the images are not in shards.
    """
    count = len(source.labels)
    if asked:
        if pieces_of(source) is None:
            raise UserError("data.shuffle_buffer is for tar shards and Parquet files. Leave it at 0 for other data.")
        return asked if asked < count else 0
    streamed = [
        (base, numbers)
        for base, numbers in _bases(source, np.arange(count))
        if any(isinstance(file, StreamedFile) for file in _files(base))
    ]
    if not streamed or pieces_of(source) is None:
        return 0
    size = sum(file.size for base in {id(base): base for base, _ in streamed}.values() for file in _files(base))
    images = sum(len(base.labels) for base in {id(base): base for base, _ in streamed}.values())
    buffer = max(BUFFER_BYTES * images // max(size, 1), 1)
    return buffer if buffer < count else 0


def nearby_order(pieces: Numbers, buffer: int, random: np.random.Generator) -> Numbers:
    """Returns a permutation: pieces in random order, then each image moved back by fewer places than the buffer.

    Args:
        pieces: (N,) number of the piece of each image, from 0 on.
        buffer: Number of images that can be waited for.
        random: Source of the order.
    """
    place = random.permutation(int(pieces.max()) + 1)[pieces]
    sequence = np.argsort(place, kind="stable")
    moved = np.arange(len(pieces)) + random.uniform(0, buffer, len(pieces))
    return sequence[np.argsort(moved, kind="stable")]


def fetch_ahead(source: Source, numbers: Numbers) -> None:
    """Starts to fetch the pieces of some images that are elsewhere and not in the cache; returns at once."""
    for base, own in _bases(source, numbers):
        fetch = getattr(base, "fetch_ahead", None)
        if fetch is not None:
            fetch(own)


def _files(base: Any) -> list[ShardFile]:
    return list(getattr(base, "shards", ()))


def _bases(source: Source, numbers: Numbers) -> Iterator[tuple[Any, Numbers]]:
    """Yields the sources that some others are made of, with the numbers of the images in them, in order."""
    if isinstance(source, Joined):
        ends = np.cumsum([len(each.labels) for each in source.sources])
        which = np.searchsorted(ends, numbers, side="right")
        starts = np.flatnonzero(np.diff(which, prepend=-1))
        for start, stop in pairwise([*starts, len(numbers)]):
            number = int(which[start])
            first = int(ends[number - 1]) if number else 0
            yield from _bases(source.sources[number], numbers[start:stop] - first)
    elif isinstance(source, Derived):
        yield from _bases(source.source, source.indices[numbers] if isinstance(source, Subset) else numbers)
    else:
        yield source, numbers

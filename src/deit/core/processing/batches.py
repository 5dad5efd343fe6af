"""Reads and preprocesses images in threads, batch after batch, ahead of the model that takes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.image_inputs import image_of, is_array, name_of
from deit.core.images.reading import DECODING, ImageError, load_image
from deit.core.processing.image_processor import DeiTImageProcessor

Item = TypeVar("Item")
Result = TypeVar("Result")

DECODING_THREADS = 16


def usable_cores() -> int:
    """Returns how many cores this process may use; the processes that torchrun starts share a machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def prepared_batches(
    items: Iterable[Item],
    prepare: Callable[[Item], Result],
    batch_size: int,
    *,
    ahead: bool = True,
    threads: int = DECODING_THREADS,
) -> Iterator[list[tuple[Item, Callable[[], Result]]]]:
    """Divides items into batches and prepares each item, in threads where that is safe.

    While the caller works on a batch of a sequence, threads prepare the next one. An iterator is asked for a batch only
    after the caller has taken the one before. Threads prepare paths, bytes, numbers and arrays. Reading anything else
    changes it (PIL images, open files), so the caller's thread does that.

    Args:
        items: The items.
        prepare: Called once for each item.
        batch_size: Items in a batch; the last one may be smaller.
        ahead: Whether to prepare the following batches of a sequence.
        threads: At most so many, and at most one for each core; 0 leaves everything to the caller's thread.

    Yields:
        For each batch pairs of an item and a function that waits for its result, or raises its error. Call it before
        taking the next batch: at the end what has not begun is canceled.

    Raises:
        UserError: `batch_size` is smaller than 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1. Received: {batch_size}.")
    threads = min(threads, usable_cores())
    is_whole = isinstance(items, Sequence) or is_array(items)
    following = -(-threads // batch_size) if ahead and is_whole else 0
    if is_whole and len(items) == 1:  # type: ignore[arg-type]
        threads = 0
    pool = ThreadPoolExecutor(max(threads, 1))
    remaining = iter(items)
    started: deque[list[tuple[Item, Callable[[], Result]]]] = deque()

    def start(item: Item) -> Callable[[], Result]:
        in_thread = threads and (isinstance(item, (str, bytes, int, os.PathLike)) or is_array(item))
        return pool.submit(prepare, item).result if in_thread else partial(prepare, item)

    try:
        while True:
            while len(started) <= following and (batch := list(islice(remaining, batch_size))):
                started.append([(item, start(item)) for item in batch])
            if not started:
                return
            yield started.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelBatch(Generic[Item]):
    """A batch of images.

    Attributes:
        items: All of them, as they were given.
        errors: For each one the reason why it cannot be read, or an empty string.
        pixels: (n, 3, H, W) float32 of the readable ones, in order; None when there are none.
    """

    items: list[Item]
    errors: list[str]
    pixels: npt.NDArray[np.float32] | None

    @property
    def readable(self) -> list[Item]:
        """The items that `pixels` holds."""
        return [item for item, error in zip(self.items, self.errors, strict=True) if not error]


def pixel_batches(
    items: Iterable[Item],
    processor: DeiTImageProcessor,
    batch_size: int,
    *,
    read: Callable[[Item], Any] | None = None,
    name: Callable[[Item], str] = name_of,
    strict: bool = False,
    ahead: bool = True,
) -> Iterator[PixelBatch[Item]]:
    """Reads images and preprocesses them; an unreadable image does not keep the others back.

    All threads together decode at most as many pixels as one image of the largest size has, see `DECODING`.

    Args:
        items: Images as `image_of` takes them, or whatever `read` takes.
        processor: The preprocessing; its `value_range` says what gray of more than 8 bits means.
        batch_size: Images in a batch.
        read: Returns the PIL image or array of an item; it is called from several threads. None reads files, and takes
            arrays as they are: (H, W), (H, W, C) or (C, H, W).
        name: Returns what to call an item in an error.
        strict: Raise at the first unreadable image.
        ahead: See `prepared_batches`.

    Raises:
        FileNotFoundError: A path does not exist, and `strict` is on.
        ImageError: An image cannot be read, and `strict` is on.
        UserError: `batch_size` is smaller than 1, or an item is no image at all.
    """
    open_image = read or partial(_opened, value_range=processor.value_range)

    def prepare(item: Item) -> Any:
        if not processor.do_pad:
            return read_pixels(item, processor, open_image)
        with DECODING.kept():
            return open_image(item)  # padding depends on the other images of the batch

    for batch in prepared_batches(items, prepare, batch_size, ahead=ahead):
        parts, errors = [], []
        for item, result in batch:
            try:
                parts.append(result())
                errors.append("")
            except (UserError, OSError) as error:
                if strict or not (isinstance(error, (ImageError, OSError)) or is_array(item)):
                    raise
                errors.append(_reason(name(item), error))
        pixels = None
        if parts:
            pixels = _processed(parts, processor) if processor.do_pad else np.concatenate(parts)
        yield PixelBatch(items=[item for item, _ in batch], errors=errors, pixels=pixels)


def begun(items: Iterator[Item]) -> Iterator[Item]:
    """Makes the first item in a thread of its own, while the caller does something else; returns all items.

    An error of the first item is raised where it is asked for.
    """
    pool = ThreadPoolExecutor(1)
    first = pool.submit(next, items, None)
    pool.shutdown(wait=False)

    def following() -> Iterator[Item]:
        if (item := first.result()) is not None:
            yield item
            yield from items

    return following()


def read_pixels(item: Item, processor: DeiTImageProcessor, read: Callable[[Item], Any]) -> npt.NDArray[np.float32]:
    """Reads one image and preprocesses it, within the share of memory that all threads have (`DECODING`).

    Args:
        item: What `read` takes.
        processor: The preprocessing. One that pads does so for this image alone.
        read: Returns the PIL image or array of an item.

    Returns:
        (1, 3, H, W) float32.

    Raises:
        ImageError: The image cannot be read.
    """
    with DECODING.kept():
        return _processed(read(item), processor)


def _processed(images: Any, processor: DeiTImageProcessor) -> npt.NDArray[np.float32]:
    return np.asarray(processor(images, return_tensors="np").pixel_values, np.float32)


def _opened(given: Any, value_range: Any) -> Any:
    image = image_of(given)
    return image if is_array(image) else load_image(image, value_range=value_range)


def _reason(name: str, error: UserError | OSError) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{name} is not there."
    if isinstance(error, OSError):
        return f"{name} cannot be read ({error.strerror})."
    return f"{name} cannot be used: {error}"

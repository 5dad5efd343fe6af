"""Runs a model on images: reads them, makes batches, asks the model. Everything that predicts comes through here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deit.core.images.image_inputs import name_of
from deit.core.processing.batches import PixelBatch, pixel_batches
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.inference.contract import Array

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers(Generic[Item]):
    """The answers of a model to a batch of images.

    Attributes:
        batch: The images.
        outputs: Name -> (n, ...) of the readable images in order; empty when there are none.
        seconds: Time in the model.
    """

    batch: PixelBatch[Item]
    outputs: Mapping[str, Array]
    seconds: float


def answers(
    model: Callable[[Array], Mapping[str, Array]],
    processor: DeiTImageProcessor,
    images: Iterable[Item],
    batch_size: int,
    *,
    read: Callable[[Item], Any] | None = None,
    name: Callable[[Item], str] = name_of,
    strict: bool = False,
    ahead: bool = True,
) -> Iterator[Answers[Item]]:
    """Asks a model about images, one batch after the other; threads prepare the next ones meanwhile.

    Args:
        model: From pixels (n, 3, H, W) to outputs (n, ...), such as an `Engine`.
        processor: See `pixel_batches`, as all others.
        images: The images.
        batch_size: Images that go through the model together.
        read: Returns the image of an item.
        name: Returns what to call an item in an error.
        strict: Raise at the first unreadable image.
        ahead: Whether threads prepare the next batch while the model works.

    Raises:
        FileNotFoundError: See `pixel_batches`.
        UserError: See `pixel_batches`.
    """
    return answers_to(
        model, pixel_batches(images, processor, batch_size, read=read, name=name, strict=strict, ahead=ahead)
    )


def answers_to(
    model: Callable[[Array], Mapping[str, Array]], batches: Iterable[PixelBatch[Item]]
) -> Iterator[Answers[Item]]:
    """Asks a model about batches that are read already; see `answers`."""
    for batch in batches:
        started = time.perf_counter()
        outputs = {} if batch.pixels is None else model(batch.pixels)
        yield Answers(batch=batch, outputs=outputs, seconds=time.perf_counter() - started)

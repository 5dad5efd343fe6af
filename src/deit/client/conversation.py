"""What is asked and answered about the images of one request, whatever carries it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NoReturn

from deit.client.answers import FAULTS_OF_IMAGES, read_results
from deit.client.batches import sent_name
from deit.client.encoding import Sent
from deit.client.errors import RefusedError
from deit.client.results import ServedPredictions, renamed, unreadable
from deit.core.errors import ImageError

Conversation = Generator[list[Sent], dict[str, Any], list[ServedPredictions]]


def conversation(images: list[Sent], url: str) -> Conversation:
    """Yields the images to send next, and is given the values of the answer, or the refusal thrown in.

    Repeats a request in halves that is refused because of its images, so that one does not keep back the others.

    Returns:
        The result of each image, in order.
    """
    told = iter((yield from _asked([image for image in images if not image.error], url)))
    return [unreadable(image.name, image.error) if image.error else next(told) for image in images]


def _asked(images: list[Sent], url: str) -> Conversation:
    if not images:
        return []
    try:
        values = yield images
    except RefusedError as refusal:
        if refusal.status not in FAULTS_OF_IMAGES:
            raise
        if len(images) == 1:
            return [unreadable(images[0].name, renamed(refusal.message, images[0].name, sent_name(0)))]
        half = len(images) // 2
        first = yield from _asked(images[:half], url)
        second = yield from _asked(images[half:], url)
        return [*first, *second]
    return read_results(values, images, url)


def raise_error_of(image: Sent, result: ServedPredictions) -> NoReturn:
    """Raises the error of a result: that of reading the image here, or that of the server.

    Raises:
        FileNotFoundError: The path does not exist.
        ImageError: The image cannot be read.
    """
    if image.cause is not None:
        raise image.cause
    raise ImageError(result.error)

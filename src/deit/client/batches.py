"""Divides images into requests, by their number and their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deit.client.encoding import Sent

Parts = list[tuple[str, tuple[str, bytes, str]]]


class Gathering:
    """Gathers images until they are enough for a request.

    Args:
        most_images: Images in a request.
        most_bytes: Bytes of their files together. A larger image travels alone.
    """

    def __init__(self, most_images: int, most_bytes: int) -> None:
        self._most_images = most_images
        self._most_bytes = most_bytes
        self._images: list[Sent] = []
        self._bytes = 0

    def add(self, image: Sent) -> list[Sent]:
        """Adds an image. Returns those of a request that is complete, else none."""
        full = bool(self._images) and self._bytes + len(image.content) > self._most_bytes
        ready = self.rest() if full else []
        self._images.append(image)
        self._bytes += len(image.content)
        return ready or (self.rest() if len(self._images) == self._most_images else [])

    def rest(self) -> list[Sent]:
        """Returns the images that are left."""
        images, self._images, self._bytes = self._images, [], 0
        return images


def gathered(images: Iterable[Sent], most_images: int, most_bytes: int) -> Iterator[list[Sent]]:
    """Yields the images of each request, in order."""
    gathering = Gathering(most_images, most_bytes)
    for image in images:
        if ready := gathering.add(image):
            yield ready
    if ready := gathering.rest():
        yield ready


def sent_name(number: int) -> str:
    """Returns the name that an image of a request travels under: its answer must come back under the same."""
    return f"image-{number}"


def multipart(images: list[Sent]) -> Parts:
    """Returns the parts of a multipart body. Their names are numbers, so the server learns no path."""
    return [
        ("images", (sent_name(number), image.content, "application/octet-stream"))
        for number, image in enumerate(images)
    ]

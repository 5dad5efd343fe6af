"""Limits how many pixels the threads of a process decode at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DecodingShare:
    """Lets threads decode small images in parallel and large ones one after another.

    Without this limit, sixteen threads could hold sixteen images of maximum size. A single image always passes.

    Args:
        limit: Maximum number of pixels that are decoded at the same time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()
        self._own = threading.local()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for an image. Frees the room at the end of the block, or of `kept`.

        Args:
            pixels: Number of pixels of the image.
        """
        own: int = getattr(self._own, "pixels", 0)
        with self._changed:
            if not own:  # a thread that already holds room must not wait, or threads could block each other
                self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels
        self._own.pixels = own + pixels
        try:
            yield
        finally:
            if not getattr(self._own, "keeps", False):
                self._give_back(pixels)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps the room of all images decoded in the block until its end, for work on decoded images."""
        if getattr(self._own, "keeps", False):
            yield
            return
        before: int = getattr(self._own, "pixels", 0)
        self._own.keeps = True
        try:
            yield
        finally:
            self._own.keeps = False
            self._give_back(getattr(self._own, "pixels", 0) - before)

    def _give_back(self, pixels: int) -> None:
        self._own.pixels = getattr(self._own, "pixels", 0) - pixels
        with self._changed:
            self._used -= pixels
            self._changed.notify_all()

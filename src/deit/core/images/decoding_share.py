"""Limits the pixels that the threads of a process decode at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DecodingShare:
    """Lets threads decode small images in parallel, and large ones one after the other.

    Without it sixteen threads hold sixteen images of the largest size allowed. One image alone always passes.

    Args:
        limit: Pixels of all images that are decoded at one time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()
        self._own = threading.local()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for an image. Frees it at the end of the block, or of `kept`.

        Args:
            pixels: Of the image.
        """
        own: int = getattr(self._own, "pixels", 0)
        with self._changed:
            if not own:  # whoever holds some already must not wait for others, who may wait for it
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
        """Keeps the room of images decoded in the block until its end, for work on the decoded image."""
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

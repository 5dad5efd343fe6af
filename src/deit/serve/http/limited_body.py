"""Receives the body of a request within limits of size, time and memory, and notices a client that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from deit.serve.refusals import Refusal
from deit.serve.settings import ServeSettings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_DISCARD_SECONDS = 5.0


class ByteRoom:
    """The bytes that all requests in the server may hold together.

    Args:
        limit: Of all.
        status: Of the refusal when there is no room.
    """

    def __init__(self, limit: int, status: int) -> None:
        self._limit, self._status, self.used = limit, status, 0

    def take(self, count: int) -> None:
        """Takes room.

        Raises:
            Refusal: There is too little.
        """
        if self.used + count > self._limit:
            raise Refusal(
                self._status, "memory_full", f"The requests in the server hold {self.used} bytes. Try again later.", 1.0
            )
        self.used += count

    def give(self, count: int) -> None:
        """Gives room back."""
        self.used -= count


class LimitedBody:
    """The body of one request.

    Args:
        receive: Of the server (ASGI).
        settings: Limits.
        room: Of all requests.
        length: Its `Content-Length`; None if the client does not say.

    Attributes:
        received: Bytes so far.
    """

    def __init__(self, receive: Receive, settings: ServeSettings, room: ByteRoom, length: int | None) -> None:
        self._receive, self._settings, self._room = receive, settings, room
        self._until = asyncio.get_running_loop().time() + settings.body_seconds
        self._complete, self._gone = asyncio.Event(), asyncio.Event()
        self._taken = 0
        self._length = length
        self.received = 0

    def admit(self) -> None:
        """Takes room for the body, before any of it is read.

        Raises:
            Refusal: It is too large, or there is no room.
        """
        if self._length is not None:
            self._check_size(self._length)
            self._take(self._length)

    async def receive(self) -> MutableMapping[str, Any]:
        """Returns the next part, as `receive` of ASGI.

        Raises:
            Refusal: The body is too large or too slow, or there is no room for it.
        """
        if self._complete.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self._settings.body_seconds
            raise Refusal(
                408, "body_too_slow", f"The body did not arrive within {seconds:g} s.", closes=True
            ) from error
        if message["type"] == "http.disconnect":
            self._complete.set()
            self._gone.set()
            return message
        self.received += len(message.get("body", b""))
        self._check_size(self.received)
        if self.received > self._taken:
            self._take(self.received - self._taken)
        if not message.get("more_body", False):
            self._complete.set()
        return message

    async def until_gone(self) -> None:
        """Returns when the client has closed the connection after it has sent the body."""
        await self._complete.wait()
        if not self._gone.is_set():
            await self._receive()  # after a whole body, there is nothing else to come
            self._gone.set()

    async def discard(self) -> bool:
        """Reads what is left of the body, within limits, so that the client reads the answer; returns whether it ended.

        A connection that is closed while the client still sends is reset, and the answer with it.
        """
        left = self._settings.max_request_bytes
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self._complete.is_set() and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        self._complete.set()
        except TimeoutError:
            return False
        return self._complete.is_set()

    def close(self) -> None:
        """Gives the room back."""
        self._room.give(self._taken)
        self._taken = 0

    def _take(self, count: int) -> None:
        self._room.take(count)
        self._taken += count

    def _check_size(self, size: int) -> None:
        if size > self._settings.max_request_bytes:
            raise Refusal(
                413,
                "request_too_large",
                f"The body may have {self._settings.max_request_bytes} bytes. Received: {size} or more.",
            )

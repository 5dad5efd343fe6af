"""Limits connections before there is a request: their number, the size and the time of headers, readers that stop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deit.serve.refusals import Refusal
from deit.serve.settings import ServeSettings


def protocol_class(settings: ServeSettings) -> type[HttpToolsProtocol]:
    """Returns the protocol of uvicorn with limits: what uvicorn leaves unlimited, and would answer with 503."""

    class LimitedProtocol(_LimitedProtocol):
        limits = settings

    return LimitedProtocol


class _LimitedProtocol(HttpToolsProtocol):
    limits: ServeSettings
    _head_bytes = 0
    _in_head = True  # a new connection owes a request
    _offered = b""  # the head of a request that offers another protocol, without the offer
    _refused = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            text = f"The server has {self.limits.max_connections} connections already. Try again later."
            self._refuse(Refusal(self.limits.full_status, "too_many_connections", text, 1.0))
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:  # also counts a header that the parser has not seen the end of
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        while data and not self._refused:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as offer:  # the parser takes no body then, which many clients send
                data = self._offered + data[offer.args[0] :]
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
        if self._in_head and self._head_bytes > self.limits.max_header_bytes:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._offered = b""
        self._in_head = True
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._refuse_head()
        elif self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offered = self._head_without_offer()
        elif not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused and not self._offered:
            super().on_message_complete()

    def _head_without_offer(self) -> bytes:
        """Returns the head of a request that offers HTTP/2 or WebSocket, which a server may decline (RFC 9110, 7.8)."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # A client that reads no answers would keep them here for ever.
        self.loop.call_later(self.limits.idle_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal(400, "bad_http", "This is not HTTP/1.1, or damaged, or has an unknown method."))

    def _leaves_damaged_body(self) -> bool:
        """Ends a request in the middle of its body, so that the application writes no second answer."""
        if not self.cycle.more_body or self.cycle.response_started:
            return False
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return True

    def _expect_head(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._refuse(Refusal(408, "headers_too_slow", f"No headers within {self.limits.header_seconds:g} s."))

    def _refuse_head(self) -> None:
        text = f"Request line and headers may have {self.limits.max_header_bytes} bytes."
        self._refuse(Refusal(431, "headers_too_large", text))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers without the application, and ends the connection; answers that are on their way come first."""
        self._refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not (self.cycle.response_complete or self.cycle.more_body):
            self.cycle.keep_alive = False
            return
        # A body that is damaged before its answer has begun is answered here, unless others are due before it.
        if self.cycle is None or self.cycle.response_complete or (not self.pipeline and self._leaves_damaged_body()):
            body = json.dumps(refusal.to_dict()).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                **{name.lower(): value for name, value in refusal.headers().items()},
                "connection": "close",
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[refusal.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()

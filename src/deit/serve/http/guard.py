"""Stands before all routes: who may ask, limits, what happens to errors, clients that are gone, and the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from deit.core.printable import printable
from deit.serve.http.authorization import Token, check_token, has_token, refuse_in_query, refuse_other_sites
from deit.serve.http.limited_body import ByteRoom, LimitedBody, Receive
from deit.serve.http.request_log import log_request
from deit.serve.refusals import Refusal
from deit.serve.state import DRAINING, SERVING, State

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

GONE = 499  # in the log: the client closed the connection before the answer
_HEALTH = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
# The same for every server of this release: no token, which a browser cannot send with an address that a person types.
_FIXED = ("/", "/docs", "/openapi.json")
_PAGE = "/page/"  # likewise
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(kw_only=True)
class Exchange:
    """One request and its answer.

    Attributes:
        id: Sent back as `X-Request-Id`.
        headers: Of the request, names in lower case.
        facts: What the log says of it.
        status: Of the answer; 0 before it begins.
        reason: Of a refusal.
        sent: Bytes of the answer.
    """

    id: str
    headers: Mapping[bytes, bytes]
    facts: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    reason: str = ""
    sent: int = 0


class Guard:
    """ASGI middleware around all routes.

    Args:
        app: What it guards.
        state: Of the server.
        token: That requests must carry; None for none.
        paths: Endpoint -> address, so that measurements know no addresses of clients' invention.
    """

    def __init__(self, app: App, state: State, token: Token | None, paths: Mapping[Any, str]) -> None:
        self._app, self._state, self._token, self._paths = app, state, token, paths
        self._room = ByteRoom(state.settings.max_queue_bytes, state.settings.full_status)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handles one request, as ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _exchange(scope)
        has_it = has_token(self._token, exchange.headers)
        scope.setdefault("state", {}).update(facts=exchange.facts, has_token=has_it)
        length = exchange.headers.get(b"content-length")
        body = LimitedBody(receive, self._state.settings, self._room, int(length) if length else None)
        self._state.in_flight += 1
        try:
            await self._handle(scope, body, self._noting(exchange, send), exchange)
        finally:
            self._state.in_flight -= 1
            body.close()
            self._tell(scope, body, exchange)

    async def _handle(self, scope: MutableMapping[str, Any], body: LimitedBody, send: Send, exchange: Exchange) -> None:
        try:
            self._check(scope, exchange.headers)
            body.admit()
            await self._until_answered(scope, body, send, exchange)
        except Refusal as refusal:
            await self._refuse(refusal, scope, body, send, exchange)
        except ClientDisconnect:
            exchange.status = GONE
        except Exception as error:  # a bug must not end the server, nor be shown to a client
            logger.error("Request %s failed.", exchange.id, exc_info=error)
            text = f"The server failed. Its log says why: reference {exchange.id}."
            await self._refuse(Refusal(500, "server_error", text), scope, body, send, exchange)

    def _check(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> None:
        path, query = scope["path"], scope["query_string"]
        if path in _HEALTH:
            return
        if path in _FIXED or path.startswith(_PAGE):
            refuse_in_query(self._token, query)
        else:
            check_token(self._token, headers, query)
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            refuse_other_sites(headers)
        phase = self._state.phase
        if phase != SERVING:
            raise Refusal(503, phase, f"The server is {phase}. Try again later.", 1.0, closes=phase == DRAINING)

    async def _until_answered(
        self, scope: MutableMapping[str, Any], body: LimitedBody, send: Send, exchange: Exchange
    ) -> None:
        """Runs the route, and cancels it when the client is gone."""
        answer = asyncio.ensure_future(self._app(scope, body.receive, send))
        gone = asyncio.ensure_future(body.until_gone())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                exchange.status = exchange.status or GONE
                answer.cancel()
                await asyncio.wait((answer,))
            if not answer.cancelled():
                answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()

    async def _refuse(
        self, refusal: Refusal, scope: Mapping[str, Any], body: LimitedBody, send: Send, exchange: Exchange
    ) -> None:
        exchange.reason = refusal.reason
        self._state.measures.refused(str(exchange.facts.get("model", "")), refusal.reason)
        if exchange.status:  # the answer has begun, or nobody is there
            return
        headers = refusal.headers()
        if b"expect" in exchange.headers or not await body.discard():
            headers["Connection"] = "close"
        content = error_body(scope["path"], refusal)
        await JSONResponse(content, refusal.status, headers=headers)(scope, body.receive, send)  # type: ignore[arg-type]

    def _noting(self, exchange: Exchange, send: Send) -> Send:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [
                    *message.get("headers", []),
                    (b"x-request-id", exchange.id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                names = {name.lower() for name, _ in headers}
                if b"cache-control" not in names:
                    headers.append((b"cache-control", b"no-store"))
                if self._state.phase == DRAINING and b"connection" not in names:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                exchange.sent += len(message.get("body", b""))
            await send(message)

        return noting

    def _tell(self, scope: Mapping[str, Any], body: LimitedBody, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.started
        path = self._paths.get(scope.get("endpoint"), "other")
        self._state.measures.answered(path, exchange.status, seconds)
        log_request(
            {
                "id": exchange.id,
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": printable(scope["path"], 200),  # without the query
                "status": exchange.status,
                **({"reason": exchange.reason} if exchange.reason else {}),
                "bytes_in": body.received,
                "bytes_out": exchange.sent,
                "ms": round(1000 * seconds, 2),
                **exchange.facts,
            }
        )


def error_body(path: str, refusal: Refusal) -> dict[str, Any]:
    """Returns the JSON of a refusal: in the Open Inference Protocol, an error is a text."""
    return {"error": f"{refusal.reason}: {refusal.message}"} if path.startswith("/v2") else refusal.to_dict()


def _exchange(scope: Mapping[str, Any]) -> Exchange:
    headers = {name.lower(): value for name, value in scope["headers"]}
    given = headers.get(b"x-request-id", b"")
    is_good = _GIVEN_ID.fullmatch(given)
    return Exchange(id=given.decode() if is_good else uuid.uuid4().hex[:16], headers=headers)

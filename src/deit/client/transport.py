"""Sends one request and reads its answer, all within the deadline; turns the errors of connections into our own."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from deit.client.answers import Reply, add_part
from deit.client.budget import Budget, deadline_header
from deit.client.errors import DamagedAnswerError, NoAnswerError, UnreachableError
from deit.client.target import Target
from deit.core.errors import UserError

# Less than the 5 s after which uvicorn closes an idle connection: a request on its way then would be lost.
IDLE_SECONDS = 3.0

_CLOSED = "disconnected"  # httpx's word for a connection that ends before any answer

Result = TypeVar("Result")
Started = Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a server.

    Attributes:
        method: Of HTTP.
        path: Of the address, after that of the server.
        params: What follows the path.
        files: Parts of a multipart body.
    """

    method: str
    path: str
    params: Any = None
    files: Any = None


def open_http(target: Target, connections: int | None = None) -> httpx2.AsyncClient:
    """Returns what holds the connections to a server.

    Args:
        target: The server.
        connections: At most so many; None for any number.
    """
    limits = httpx2.Limits(max_connections=connections, keepalive_expiry=IDLE_SECONDS)
    return httpx2.AsyncClient(headers=target.headers(), limits=limits)


async def exchange(http: httpx2.AsyncClient, target: Target, budget: Budget, question: Question) -> Reply:
    """Returns the answer to a question.

    The deadline bounds all of it: looking for the host, connecting, sending, headers, body, however slowly they come.

    Raises:
        DeadlineError: There is no whole answer within the budget.
        NoAnswerError: See `sending`, as `UnreachableError`.
        DamagedAnswerError: See `sending` and `receiving`.
    """
    left = budget.attempt()
    try:
        async with asyncio.timeout(left):
            return await _answered(http, target, budget, question, left)
    except TimeoutError as error:
        raise budget.passed() from error


async def _answered(http: httpx2.AsyncClient, target: Target, budget: Budget, question: Question, left: float) -> Reply:
    url = target.url + question.path
    request = http.build_request(
        question.method, url, params=question.params, files=question.files, headers=deadline_header(left), timeout=left
    )
    with sending(url, budget):
        response = await http.send(request, stream=True)
    try:
        content = bytearray()
        with receiving(url, budget):
            async for part in response.aiter_bytes():
                add_part(content, part, url)
    finally:
        await response.aclose()
    return target.reply(url, response, bytes(content))


@contextmanager
def sending(url: str, budget: Budget) -> Iterator[None]:
    """Converts errors until the first byte of an answer.

    Raises:
        NoAnswerError: The connection was refused or closed; trying again is safe.
        UnreachableError: Trying again would not help.
        DamagedAnswerError: What answers does not speak HTTP.
        DeadlineError: There was no answer in time.
    """
    try:
        yield
    except httpx2.TimeoutException as error:
        raise budget.passed() from error
    except httpx2.ConnectError as error:
        raise _unconnected(url, error) from error
    except (httpx2.ReadError, httpx2.WriteError) as error:
        raise NoAnswerError(f"{url} closed the connection before it answered ({_reason(error)}).") from error
    except httpx2.RemoteProtocolError as error:
        if _CLOSED in str(error):
            raise NoAnswerError(f"{url} closed the connection before it answered.") from error
        raise DamagedAnswerError(
            f"{url} does not answer as HTTP ({_reason(error)}). Is it the address of a `deit serve`?"
        ) from error
    except httpx2.TransportError as error:
        raise UnreachableError(f"{url} cannot be reached ({_reason(error)}).") from error


@contextmanager
def receiving(url: str, budget: Budget) -> Iterator[None]:
    """Converts errors within an answer. None of them is tried again.

    Raises:
        DamagedAnswerError: The answer ends early, or cannot be unpacked.
        DeadlineError: It did not end in time.
    """
    try:
        yield
    except httpx2.TimeoutException as error:
        raise budget.passed() from error
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise DamagedAnswerError(f"The answer of {url} is damaged or ends early ({_reason(error)}).") from error


def _unconnected(url: str, error: Exception) -> UnreachableError:
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return UnreachableError(f"{url}: the host is unknown ({_reason(error)}). Check the address.")
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return UnreachableError(f"{url}: the certificate is not valid ({_reason(error)}).")
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return UnreachableError(f"{url} does not speak HTTPS ({_reason(error)}). Does it answer to http://?")
    return NoAnswerError(f"{url} accepts no connection ({_reason(error)}). Is the server running there?")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


class Background:
    """Runs coroutines in a thread, for code that waits for them: what awaits can be ended at any time, a read cannot.

    The thread begins with the first of them, and anew in a process that was forked, which must not share connections.

    Args:
        open_http: Opens what holds the connections.
    """

    def __init__(self, open_http: Callable[[], httpx2.AsyncClient]) -> None:
        self._open_http = open_http
        self._lock = threading.Lock()
        self._process = 0
        self._closed = False

    def run(self, ask: Callable[[httpx2.AsyncClient], Coroutine[Any, Any, Result]]) -> Result:
        """Returns the result of what a function awaits; whoever waits for it can be interrupted.

        Raises:
            UserError: `close` was called.
        """
        self._start()
        future = asyncio.run_coroutine_threadsafe(ask(self._http), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # after Ctrl-C; else it is done

    def close(self) -> None:
        """Closes the connections, and ends what is still on its way."""
        with self._lock:
            self._closed = True
            if self._process == os.getpid():
                self._end()
                self._thread.join(1.0)

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise UserError("The client is closed. Open another one.")
            if self._process == os.getpid():
                return
            self._http = self._open_http()
            started: Started = Future()
            self._thread = threading.Thread(target=_serve, args=(self._http, started), name="deit-client", daemon=True)
            self._thread.start()
            self._loop, ended = started.result()
            self._process = os.getpid()
            self._end = weakref.finalize(self, _end, self._loop, ended, self._process)


def _serve(http: httpx2.AsyncClient, started: Started) -> None:
    try:
        asyncio.run(_hold(http, started))
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


async def _hold(http: httpx2.AsyncClient, started: Started) -> None:
    """Keeps the loop and the connections open; it knows nothing of the `Background`, which may be forgotten."""
    ended = asyncio.Event()
    async with http:
        started.set_result((asyncio.get_running_loop(), ended))
        await ended.wait()


def _end(loop: asyncio.AbstractEventLoop, ended: asyncio.Event, process: int) -> None:
    if os.getpid() == process and not loop.is_closed():
        loop.call_soon_threadsafe(ended.set)

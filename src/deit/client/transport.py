"""Turns the errors of connections into those of a client, and tells which may be tried again."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from deit.client.budget import Budget
from deit.client.errors import DamagedAnswerError, NoAnswerError, UnreachableError

# Less than the 5 s after which uvicorn closes an idle connection: a request on its way then would be lost.
IDLE_SECONDS = 3.0

_CLOSED = "disconnected"  # httpx's word for a connection that ends before any answer


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

"""Tries again what a server or a network failed to do."""

from __future__ import annotations

import http.client
import logging
import random
import ssl
import time
import urllib.error
from collections.abc import Callable
from typing import TypeVar

from deit.core.errors import UnreachableError
from deit.data.streams.addresses import shown, without_secrets

# Failures in a row before a run ends. With the waits below, a server may be away for one to two minutes.
ATTEMPTS = 8
FIRST_WAIT = 0.5  # seconds; doubled after each failure
LONGEST_WAIT = 30.0  # seconds; also of what a server asks for in Retry-After

_TOLD = 3  # failures in a row after which a note says so
# Answers of servers that are overloaded or starting.
PASSING = (408, 425, 429, 500, 502, 503, 504)

logger = logging.getLogger(__name__)

T = TypeVar("T")


class PassingError(Exception):
    """A failure that may not come again.

    Attributes:
        wait: Seconds that the server asks to wait.
    """

    def __init__(self, reason: object, *, wait: float = 0.0) -> None:
        super().__init__(str(reason))
        self.wait = wait


# What urllib and http.client raise where a connection fails.
LOST = (urllib.error.URLError, ssl.SSLError, TimeoutError, ConnectionError, http.client.HTTPException)


def retried(attempt: Callable[[], T], address: str, progress: Callable[[], int] = lambda: 0) -> T:
    """Calls a function until it succeeds.

    Args:
        attempt: Raises `PassingError` for a failure that is worth another attempt.
        address: What it reads, for the message.
        progress: Returns the bytes received so far. The count of failures begins anew whenever it has grown.

    Raises:
        UnreachableError: It failed `ATTEMPTS` times in a row.
    """
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except PassingError as error:
            now = progress()
            failures, before = (1 if now > before else failures + 1), now
            if failures >= ATTEMPTS:
                raise UnreachableError(
                    f"{shown(address)} cannot be read ({without_secrets(error)}, {failures} times in a row). Check the "
                    "connection; what was read is kept."
                ) from error
            if failures == _TOLD:
                logger.warning(
                    "%s fails (%s). It is tried up to %d times.", shown(address), without_secrets(error), ATTEMPTS
                )
            wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
            wait *= random.Random(time.monotonic_ns()).uniform(0.5, 1)  # so that ranks do not ask together
            time.sleep(max(wait, min(error.wait, LONGEST_WAIT)))

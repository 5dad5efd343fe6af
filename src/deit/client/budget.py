"""How long and how often a request is tried: deadline, retries, pauses."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from deit.client.errors import DeadlineError, NoAnswerError, ServerBusyError
from deit.core.errors import UserError, shown

DEADLINE_HEADER = "X-Deadline-Ms"

_FIRST_PAUSE = 0.1  # seconds, on average half of it; doubled each time
_LONGEST_PAUSE = 5.0


class Budget:
    """The time and the attempts of one request.

    Args:
        deadline: Seconds from now.
        retries: Attempts after the first.

    Raises:
        UserError: One of them is no such number.
    """

    def __init__(self, deadline: float, retries: int) -> None:
        check_budget(deadline, retries)
        self._begin = time.monotonic()
        self._deadline = deadline
        self._retries = retries
        self._attempts = 0

    def attempt(self) -> float:
        """Returns the seconds that are left for an attempt.

        Raises:
            DeadlineError: None are left.
        """
        self._attempts += 1
        return self.left()

    def left(self) -> float:
        """Returns the seconds that are left.

        Raises:
            DeadlineError: None are.
        """
        left = self._begin + self._deadline - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> DeadlineError:
        """Returns the error that the deadline has passed."""
        return DeadlineError(
            f"There is no answer after {self._deadline:g} s, the deadline. Raise deadline=, or lower batch_size=."
        )

    def pause(self, error: ServerBusyError | NoAnswerError) -> float:
        """Returns the seconds to wait before the next attempt: what the server asks for, and a random part.

        The random part keeps clients that were refused together from coming back together. It is uniform between 0 and
        a limit that doubles with each attempt ("full jitter", Brooker 2015).

        Raises:
            ServerBusyError: No attempt is left, or the deadline would pass meanwhile.
            NoAnswerError: Likewise.
        """
        asked = getattr(error, "retry_after", None)
        limit = min(_FIRST_PAUSE * 2 ** (self._attempts - 1), _LONGEST_PAUSE)
        pause = (asked or 0.0) + random.uniform(0, limit)
        spent = time.monotonic() - self._begin
        if self._attempts > self._retries:
            why = f"Gave up after {self._attempts} attempt(s) in {spent:.1f} s."
        elif spent + pause >= self._deadline:
            wish = "" if asked is None else f"The server asks to wait {asked:g} s. "
            why = f"{wish}The deadline of {self._deadline:g} s leaves {max(self._deadline - spent, 0):.1f} s."
        else:
            return pause
        error.args = (f"{error} {why}",)
        raise error


def check_budget(deadline: float, retries: int) -> None:
    """Checks what a budget is made of.

    Raises:
        UserError: The deadline is not a number of seconds above 0, or there are fewer than 0 retries.
    """
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not 0 < deadline < math.inf:
        raise UserError(f"deadline must be seconds, above 0. Received: {shown(deadline)}.")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise UserError(f"retries must be a whole number from 0. Received: {shown(retries)}.")


def deadline_header(seconds: float) -> dict[str, str]:
    """Returns the header that tells the server how many milliseconds are left."""
    return {DEADLINE_HEADER: str(max(int(1000 * seconds), 1))}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds of a Retry-After header, which is a number or a date (RFC 9110, 10.2.3).

    A date is taken by the clock of the server, if the answer has one: the clocks may differ.

    Returns:
        Seconds from now, at least 0; None if there is no such header, or it says nothing.
    """
    given = headers.get("Retry-After", "").strip()
    if given.isascii() and given.replace(".", "", 1).isdigit():
        return float(given)
    then = _date(given)
    if then is None:
        return None
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return max((then - now).total_seconds(), 0.0)


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)

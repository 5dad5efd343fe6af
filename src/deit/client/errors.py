"""Defines what can go wrong between a client and a server."""

from __future__ import annotations

from deit.core.errors import UserError


class RefusedError(UserError):
    """The server refuses the request.

    Attributes:
        status: HTTP status, such as 413.
        reason: The server's word for it, such as "too_many_images"; empty if it gives none.
        message: What the server says.
        retry_after: Seconds after which it wants to be asked again; None if it does not say.
    """

    def __init__(
        self, text: str, *, status: int, reason: str = "", message: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class ServerBusyError(RefusedError):
    """The server cannot take the request now (429, or 503 while it starts or ends); later it may."""


class DamagedAnswerError(UserError):
    """The answer is incomplete, or not that of a `deit serve`."""


class DeadlineError(TimeoutError):
    """There is no answer within the deadline."""


class UnreachableError(ConnectionError):
    """No connection can be made, and trying again would not help: an unknown host, a certificate that is not valid."""


class NoAnswerError(UnreachableError):
    """The connection was refused, or closed before an answer came."""

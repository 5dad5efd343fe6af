"""Defines the one exception for everything that the server does not answer."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):  # noqa: N818  # an answer to the client, not a mistake of the program
    """A request, or an image of it, gets no result.

    Args:
        status: HTTP status: 4xx for what the client can change, 429 when the server is full, 503 while it starts or
            ends, 504 after the deadline, 500 for a bug.
        reason: One word for programs, such as "queue_full"; docs/serving.md lists all.
        message: One sentence for people: what is wrong, what was received, what to do. It quotes no secret.
        retry_after: Seconds after which the request may succeed, sent as `Retry-After`; None for never.
        closes: Whether the connection ends with the answer, since the rest of the request was not read.
        allow: Methods that the address takes, sent as `Allow`; empty unless the request has another.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after: float | None = None,
        *,
        closes: bool = False,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.closes = closes
        self.allow = allow

    def to_dict(self) -> dict[str, Any]:
        """Returns the body of the answer, as JSON values."""
        return {"error": {"reason": self.reason, "message": self.message, "status": self.status}}

    def headers(self) -> dict[str, str]:
        """Returns the headers of the answer."""
        found = {} if self.retry_after is None else {"Retry-After": str(max(int(-(-self.retry_after // 1)), 1))}
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.allow:
            found["Allow"] = self.allow
        return {**found, "Connection": "close"} if self.closes else found

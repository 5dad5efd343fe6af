"""What a client asks about images, and where a server is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from deit.core.errors import UserError, shown
from deit.core.scores.conformal import Coverage

CLASSIFY_PATH = "/v1/classify"
MODELS_PATH = "/v1/models"
READY_PATH = "/readyz"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked about each image, see `Client.classify`."""

    model: str | None = None
    version: str | None = None
    top_k: int = 5
    coverage: Coverage | None = None
    abstain: bool = False
    heads: bool = False
    embedding: bool = False
    explain: str | None = None

    def query(self) -> dict[str, str]:
        """Returns them as parameters of a web address, without those that ask for nothing."""
        asked = {"top_k": str(self.top_k)}
        for name in ("model", "version", "explain"):
            if (value := getattr(self, name)) is not None:
                asked[name] = value
        if self.coverage is not None:
            asked |= {"coverage": f"{self.coverage.percent:.12g}", "sets": self.coverage.sets}
            asked |= {"per_class": "true"} if self.coverage.per_class else {}
        return asked | {name: "true" for name in ("abstain", "heads", "embedding") if getattr(self, name)}


def count(value: Any, name: str) -> int:
    """Returns a whole number from 1.

    Raises:
        UserError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number from 1. Received: {shown(value)}.")
    return value


def server_address(url: str) -> str:
    """Returns the address of a server without a slash at its end.

    Raises:
        UserError: It is no web address, or holds what does not belong there.
    """
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        has_port = parts is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, has_port = None, False
    if parts is None or not has_port or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"url must be the address of a server, such as http://127.0.0.1:8080. Received: {shown(url)}.")
    if parts.username is not None or parts.password is not None:
        raise UserError("url holds a name or a password. Pass the token of the server as token=.")
    if parts.query or parts.fragment:
        raise UserError(f"url must end before '?' and '#'. Received: {shown(url)}.")
    path = parts.path.rstrip("/")
    for inside in (CLASSIFY_PATH, MODELS_PATH):
        if path.endswith(inside):
            raise UserError(f"url must be the address of the server, without {inside}. Received: {shown(url)}.")
    return f"{parts.scheme}://{parts.netloc}{path}"


def token_header(token: str | None) -> dict[str, str]:
    """Returns the header that holds a bearer token; none without a token.

    Raises:
        UserError: A header cannot hold it.
    """
    if token is None:
        return {}
    if not isinstance(token, str) or not token or any(not 33 <= ord(character) <= 126 for character in token):
        raise UserError("token must be letters, digits and signs of ASCII, without spaces. It is not shown here.")
    return {"Authorization": f"Bearer {token}"}

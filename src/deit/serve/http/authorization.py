"""Decides who may ask: a bearer token, and pages of other sites."""

from __future__ import annotations

import hashlib
import hmac
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from deit.core.errors import UserError, read_bytes
from deit.serve.refusals import Refusal

VARIABLE = "DEIT_TOKEN"
_FEWEST_CHARACTERS = 16
_FILE_BYTES = 4096
# Names under which tokens are sent in addresses, where proxies and browsers write them down.
_QUERY_NAMES = frozenset({"token", "access_token", "auth_token", "api_key", "apikey", "authorization", "bearer"})


class Token:
    """A secret that requests must carry. Only its hash is kept.

    Args:
        text: The secret.
    """

    def __init__(self, text: str) -> None:
        self._hash = _hash(text)

    def is_same(self, text: str) -> bool:
        """Whether a text is the secret, in a time that tells nothing."""
        return hmac.compare_digest(_hash(text), self._hash)


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> Token | None:
    """Reads the token from a file, or from `DEIT_TOKEN`; None if neither is there.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: Both are there, or the token is empty, too short, or holds a space.
    """
    text = environment.get(VARIABLE)
    if file is not None and text is not None:
        raise UserError(f"The token is given twice: by --token-file and by {VARIABLE}. Leave out one of them.")
    if file is not None:
        text = read_bytes(file, "a token file", _FILE_BYTES).decode("utf-8", "replace").strip()
    if text is None:
        return None
    source = VARIABLE if file is None else str(file)
    if len(text) < _FEWEST_CHARACTERS:
        raise UserError(
            f"The token in {source} must have at least {_FEWEST_CHARACTERS} characters. It has {len(text)}."
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise UserError(f"The token in {source} must be one line of ASCII letters, digits and signs, without a space.")
    return Token(text)


def check_token(token: Token | None, headers: Mapping[bytes, bytes], query: bytes) -> None:
    """Checks the token of a request; without a token of the server, only that none is in the address.

    Args:
        token: Of the server.
        headers: Of the request; names in lower case.
        query: Of the address.

    Raises:
        Refusal: The token is missing, wrong, or in the address.
    """
    refuse_in_query(token, query)
    if not has_token(token, headers):
        raise Refusal(401, "unauthorized", "Send the token of the server: Authorization: Bearer TOKEN.")


def has_token(token: Token | None, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request carries the token of the server, or the server has none; see `check_token`."""
    if token is None:
        return True
    kind, _, text = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return kind.lower() == "bearer" and token.is_same(text.strip())


def refuse_in_query(token: Token | None, query: bytes) -> None:
    """Refuses a token in the address, which proxies, browsers and logs keep.

    Raises:
        Refusal: There is one.
    """
    if not query:
        return
    for name, value in urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower() in _QUERY_NAMES or (token is not None and token.is_same(value)):
            raise Refusal(
                400,
                "token_in_query",
                "A token in the address is not taken, since logs keep addresses. Send it as a header: Authorization: "
                "Bearer TOKEN. Take it for known to others, and replace it.",
            )


def refuse_other_sites(headers: Mapping[bytes, bytes]) -> None:
    """Refuses what a page of another site lets a browser send: without it, any page could use a server at localhost.

    Raises:
        Refusal: The browser says that the request comes from another site.
    """
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        raise Refusal(403, "other_site", "Pages of other sites may not ask this server.")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()

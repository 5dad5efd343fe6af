"""Defines what is known of a file elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Protocol

HEAD_BYTES = 512  # that are read first: the first header of a tar archive
CHANGED = "{} has changed while it was read. Start again."


@dataclass(frozen=True, kw_only=True)
class Described:
    """A file as its server describes it.

    Attributes:
        size: Its length in bytes.
        version: Text that changes when the content does, such as an ETag; empty if the server tells none.
        head: Its first `HEAD_BYTES` bytes.
        has_parts: False if the server sends only whole files.
    """

    size: int
    version: str
    head: bytes
    has_parts: bool


class RemoteFile(Protocol):
    """A file on a server."""

    @property
    def address(self) -> str:
        """Where it is, as the user passed it."""
        ...

    def describe(self) -> Described:
        """Asks the server for the file.

        Raises:
            PassingError: The server failed; ask again.
            FileNotFoundError: There is no such file.
            PermissionError: The server refuses it.
            UserError: It is something else than a file.
        """
        ...

    def append(self, start: int, stop: int, sink: IO[bytes], known: Described) -> None:
        """Appends some bytes of the file; raises `PassingError` after what came if not all did."""
        ...

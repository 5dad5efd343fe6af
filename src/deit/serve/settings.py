"""Defines every limit and number of the server, with its default and the reason for it."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deit.core.errors import DamagedFileError, UserError, parsing, read_bytes, shown
from deit.core.images.reading import MOST_PIXELS

_MIB = 2**20
_SETTINGS_BYTES = _MIB  # of a file; a full one has 2 KB
_MAY_BE_ZERO = {"max_wait_ms", "degrade", "port", "decode_threads"}
FULL_STATUSES = (429, 503)


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits and numbers of a server. Times are seconds, sizes bytes, unless the name says otherwise.

    Attributes:
        host: Address to listen on. The default is this machine alone.
        port: Port to listen on; 0 for a free one.
        workers: Processes that answer, each with its own model. One process uses all cores for one batch already, so
            more pay only where decoding is the bottleneck.
        max_batch: Images that go through the model together at most.
        max_wait_ms: Milliseconds that the first image of a batch waits for others.
        max_queue: Images of a model that wait at most. It bounds the waiting time of what is accepted, so more is not
            better: at 6 batches, a request waits for 6 others.
        max_queue_bytes: Bytes of all requests that are in the server at once.
        full_status: Status of a request that finds the server full: 429, or 503 for a proxy that only knows that.
        max_request_bytes: Bytes of the body of a request.
        max_image_bytes: Bytes of an image file.
        max_pixels: Pixels of an image, width x height.
        max_images: Images of a request; `max_queue` where that is less.
        max_header_bytes: Bytes of the request line and the headers.
        max_connections: Open connections.
        header_seconds: Time to send request line and headers, and to begin with them on a new connection.
        body_seconds: Time to send the body.
        idle_seconds: Time that a connection stays open between two requests. Longer than load balancers keep theirs
            (60 s in nginx and AWS): a server that closes first loses the request that is on its way.
        request_seconds: Time for a request in all; the deadline of requests that name none.
        drain_seconds: Time after SIGTERM for requests that were accepted.
        decode_threads: Threads that decode images; 0 for one for each core.
        ready_seconds: Time for the image that /readyz sends through the model.
        stuck_seconds: Time in one call of the model after which the server is no longer ready.
        degrade: Tokens that each block merges when the server is overloaded (docs/token-merging.md); 0 for never.
        degrade_at: Share of `max_queue` that must wait before tokens are merged.
        explain_queue: Requests for explanations that wait or are computed at most.
        allow_unload: Whether a request may unload a model, which then answers nobody.
        examples: Folder of images that the page at `/` offers; empty for none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    max_batch: int = 16
    max_wait_ms: float = 5.0
    max_queue: int = 96
    max_queue_bytes: int = 256 * _MIB
    full_status: int = 429
    max_request_bytes: int = 64 * _MIB
    max_image_bytes: int = 32 * _MIB
    max_pixels: int = MOST_PIXELS
    max_images: int = 32
    max_header_bytes: int = 32 * 1024
    max_connections: int = 1000
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    request_seconds: float = 60.0
    drain_seconds: float = 30.0
    decode_threads: int = 0
    ready_seconds: float = 5.0
    stuck_seconds: float = 30.0
    degrade: int = 0
    degrade_at: float = 0.5
    explain_queue: int = 4
    allow_unload: bool = False
    examples: str = ""

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            UserError: A value is out of its range, or two contradict each other.
        """
        for field in fields(self):
            _check_kind(field.name, getattr(self, field.name), field.default)
        self._check_ranges()

    @property
    def images_per_request(self) -> int:
        """Images of a request at most: a larger one would always find the queue full."""
        return min(self.max_images, self.max_queue)

    def _check_ranges(self) -> None:
        if self.port > 65535:
            raise UserError(f"port must lie between 0 and 65535. Received: {self.port}.")
        if self.full_status not in FULL_STATUSES:
            raise UserError(f"full_status must be 429 or 503. Received: {self.full_status}.")
        if self.max_pixels > MOST_PIXELS:
            raise UserError(f"max_pixels must be at most {MOST_PIXELS}. Received: {self.max_pixels}.")
        if self.max_request_bytes > self.max_queue_bytes:
            raise UserError(
                f"max_request_bytes ({self.max_request_bytes}) must be at most max_queue_bytes "
                f"({self.max_queue_bytes})."
            )
        if not 0 < self.degrade_at <= 1:
            raise UserError(f"degrade_at must be more than 0 and at most 1. Received: {self.degrade_at}.")


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Checks that a value is of the kind of its default, and a number not too small."""
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{name} must be true or false. Received: {shown(value)}.")
    if isinstance(default, str) and not isinstance(value, str):
        raise UserError(f"{name} must be a text. Received: {shown(value)}.")
    if isinstance(default, (bool, str)):
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole and (isinstance(default, int) or not (isinstance(value, float) and math.isfinite(value))):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise UserError(f"{name} must be {kind}. Received: {shown(value)}.")
    range_ = "at least 0" if name in _MAY_BE_ZERO else "at least 1" if isinstance(default, int) else "more than 0"
    if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
        raise UserError(f"{name} must be {range_}. Received: {value}.")


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a YAML file of settings: names of `ServeSettings` and their values.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is not YAML, or a name is unknown.
    """
    import yaml

    content = read_bytes(path, "a file of settings", _SETTINGS_BYTES)
    with parsing(path, "a file of settings"):
        values = yaml.safe_load(content)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path} is not a file of settings: it must hold lines such as max_batch: 16.")
    known = [field.name for field in fields(ServeSettings)]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
            raise UserError(f"{path}: unknown setting {name!r}.{hint}")
    return values

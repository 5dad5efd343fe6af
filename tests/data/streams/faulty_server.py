"""A web server on this machine that behaves as badly as servers do, by a plan that a seed decides."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.loopback import answering


@dataclass
class FaultyServer:
    """Files on a server, how it behaves, and what was asked of it.

    Attributes:
        files: Content by name.
        folder: Serves the files of a folder too.
        faults: Share of the answers that have a fault: an error, a delay, an early end, another part than asked for.
        seed: Of the faults.
        knows_ranges: False always sends the whole file.
        etag: False sends no version.
        asked: Name and range of each request.
        sent: Bytes of contents that were sent.
        planned: Faults of the next answers, before those by chance: "500", "503", "429", "cut", "delay", "other part",
            "twice", "whole", "404", "403", "".
    """

    files: dict[str, bytes] = field(default_factory=dict)
    folder: Path | None = None
    faults: float = 0.0
    seed: int = 0
    knows_ranges: bool = True
    etag: bool = True
    delay: float = 0.01
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    planned: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    address: str = ""

    def content(self, name: str) -> bytes | None:
        if name in self.files:
            return self.files[name]
        path = None if self.folder is None else self.folder / name
        return path.read_bytes() if path is not None and path.is_file() else None

    def next_fault(self) -> str:
        if self.planned:
            return self.planned.pop(0)
        chance = random.Random(f"{self.seed} {len(self.asked)}")
        if chance.random() >= self.faults:
            return ""
        return chance.choice(["500", "503", "429", "cut", "delay", "other part", "twice", "whole"])


class _Handler(BaseHTTPRequestHandler):
    faulty: FaultyServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, name = self.faulty, self.path.partition("?")[0][1:]
        asked = self.headers.get("Range", "") if server.knows_ranges else ""
        server.asked.append((name, asked))
        server.headers.append(dict(self.headers))
        fault, content = server.next_fault(), server.content(name)
        if fault.isdecimal() or content is None:
            self.send_error(int(fault) if fault.isdecimal() else 404)
            return
        first, end = 0, len(content)
        if asked and fault != "whole":
            first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            end = min(last + 1, len(content))
        if fault == "other part":
            first = first // 2
        if fault == "delay":
            time.sleep(server.delay)
        self.send_response(206 if asked and fault != "whole" else 200)
        if server.etag:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        if asked and fault != "whole":
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        if server.knows_ranges:
            self.send_header("Accept-Ranges", "bytes")
        body = content[first:end]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
        server.sent += len(body)
        try:
            self.wfile.write(body * (2 if fault == "twice" else 1))
        except OSError:  # the client has what it wanted
            self.close_connection = True


@contextmanager
def serving(**options: object) -> Iterator[FaultyServer]:
    """Serves in a thread; yields the server with its address."""
    faulty = FaultyServer(**options)  # type: ignore[arg-type]
    with answering(type("Handler", (_Handler,), {"faulty": faulty})) as faulty.address:
        yield faulty

"""A server on loopback that does what a test says: good answers, refusals, and everything that goes wrong on a wire."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.parser import BytesParser
from urllib.parse import parse_qsl, urlsplit

RESET = b"RESET"  # instead of an answer: the connection is reset
CLOSE = b"CLOSE"  # likewise: it is closed
SILENCE = b"SILENCE"  # likewise: nothing comes, until the server ends


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    files: list[tuple[str, bytes]] = field(repr=False)  # names and contents


Script = Callable[[Received], bytes]


def label_of(content: bytes) -> str:
    """What this server sees in an image: each content has its own label."""
    return hashlib.sha256(content).hexdigest()[:12]


def reply(status: int, body: bytes, kind: str = "application/json", **headers: str) -> bytes:
    """An answer; `Retry_After="1"` becomes a header."""
    fields = {"Content_Type": kind, "Content_Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode() + body


def json_reply(status: int, values: object, **headers: str) -> bytes:
    return reply(status, json.dumps(values).encode(), **headers)


def refusal(status: int, reason: str, message: str = "No.", **headers: str) -> bytes:
    return json_reply(status, {"error": {"reason": reason, "message": message, "status": status}}, **headers)


def good_values(received: Received) -> dict[str, object]:
    results = [
        {"image": name, "predictions": [{"label": label_of(content), "score": 0.75}, {"label": "other", "score": 0.25}]}
        for name, content in received.files
    ]
    return {"model": "birds", "version": "1", "results": results, "timing_ms": {"total": 1.5}}


def good(received: Received) -> bytes:
    return json_reply(200, good_values(received))


@dataclass
class Running:
    url: str
    received: list[Received] = field(default_factory=list)
    connections: int = 0


@contextmanager
def scripted(*script: bytes | Script, then: Script = good) -> Iterator[Running]:
    """Runs a server that answers the first requests as the script says, and all others by `then`."""
    listener = socket.create_server(("127.0.0.1", 0))
    running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}")
    left = list(script)
    lock = threading.Lock()
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while (received := _request(stream)) is not None:
                with lock:
                    running.received.append(received)
                    step = left.pop(0) if left else then
                answer = step if isinstance(step, bytes) else step(received)
                if answer == SILENCE:
                    ended.wait()
                    return
                if answer == RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if answer in (RESET, CLOSE):
                    return
                with suppress(ConnectionError):  # the client may have closed at the first bytes
                    connection.sendall(answer)
                if b"Connection: close" in answer or not answer.startswith(b"HTTP/"):
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            running.connections += 1
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)


def _request(stream: object) -> Received | None:
    try:
        first = stream.readline()  # type: ignore[attr-defined]
        if not first:
            return None
        method, target, _ = first.decode().split()
        lines = iter(stream.readline, b"\r\n")  # type: ignore[attr-defined]
        pairs = (line.decode().partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = stream.read(int(headers.get("content-length", "0")))  # type: ignore[attr-defined]
    except (ConnectionError, ValueError):  # the client is gone, or speaks TLS
        return None
    address = urlsplit(target)
    return Received(method, address.path, dict(parse_qsl(address.query)), headers, _files(headers, body))


def _files(headers: dict[str, str], body: bytes) -> list[tuple[str, bytes]]:
    kind = headers.get("content-type", "")
    if not kind.startswith("multipart/"):
        return []
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    return [(part.get_filename() or "", part.get_payload(decode=True)) for part in message.get_payload()]

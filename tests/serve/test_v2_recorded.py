"""Requests of the unmodified tritonclient 2.73 and kserve 0.21, byte for byte as they sent them.

`tests.serve.v2_conformance` records them, and runs the clients themselves.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.serve.live_server import live_server

RECORDED = [
    tuple(base64.b64decode(part) for part in exchange)
    for exchange in json.loads(Path(__file__).with_name("v2_requests.json").read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def server():
    with live_server() as running:
        yield running


class Received:
    """Bytes in place of a connection, for the parser of `http.client`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> Any:
        import io

        return io.BytesIO(self._content)


def parsed(answer: http.client.HTTPResponse) -> tuple[int, str | None, Any, int]:
    """Returns what clients rely on: status, type, JSON with rounded numbers, and how many bytes follow it."""
    content = answer.read()
    length = int(answer.headers.get("Inference-Header-Content-Length", len(content)))
    values = json.loads(content[:length], parse_float=lambda text: round(float(text), 4)) if length else None
    if isinstance(values, dict):
        if "extensions" in values:
            values.pop("version")
        values.pop("error", None)  # words may change
    return answer.status, answer.headers.get("Content-Type"), values, len(content) - length


def test_every_recorded_request_is_answered_as_it_was(server):
    assert len(RECORDED) > 40
    agents = set()
    for request, expected in RECORDED:
        before = http.client.HTTPResponse(Received(expected))
        before.begin()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(request)
            after = http.client.HTTPResponse(connection)
            after.begin()
            line = request.partition(b"\r\n")[0]
            assert parsed(after) == parsed(before), line
        agents.update(line for line in request.split(b"\r\n") if line.lower().startswith(b"user-agent"))
    assert len(agents) >= 3  # the two clients of Triton, and that of KServe

"""What a connection does with requests that offer another protocol, follow each other, or are followed by garbage."""

from __future__ import annotations

import socket

import pytest

from deit.inference.predictor import Predictor
from tests.serve.conftest import MeanEngine, Reply, png, read_all, serving, until

GREEN = png((0, 255, 0))
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = HEALTH.replace(b"Host", b"Connection: close\r\nHost")
HTTP2 = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
SOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"


def post(*headers: bytes, body: bytes = GREEN) -> bytes:
    length = b"" if b"Transfer-Encoding: chunked\r\n" in headers else b"Content-Length: %d\r\n" % len(body)
    head = b"POST /v1/classify?top_k=1 HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
    return head + b"".join(headers) + length + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    parts = [body[i : i + 20] for i in range(0, len(body), 20)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def replies(answers: bytes) -> list[Reply]:
    parts = answers.split(b"HTTP/1.1 ")[1:]
    return [Reply(int(part[:3]), {}, part.partition(b"\r\n\r\n")[2]) for part in parts]


@pytest.mark.parametrize("offer", [HTTP2, SOCKET], ids=["HTTP/2", "WebSocket"])
@pytest.mark.parametrize("way", ["whole", "in pieces", "chunked"])
def test_a_request_that_offers_another_protocol_is_answered_with_this_one(served, offer, way) -> None:
    sent = post(offer, b"Transfer-Encoding: chunked\r\n", body=chunked(GREEN)) if way == "chunked" else post(offer)
    sent += HEALTH.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n") + post() + LAST
    size = 7 if way == "in pieces" else len(sent)
    with served.raw(b"") as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(sent), size):
            connection.sendall(sent[i : i + size])
        first, health, second, last = replies(read_all(connection))
    for reply in (first, second):
        assert (reply.status, reply.json["results"][0]["predictions"][0]["label"]) == (200, "bee")
    assert health.json == last.json == {"alive": True}


def test_connect_is_no_request_of_this_server(served) -> None:
    with served.raw(b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n") as connection:
        assert b" 400 " in read_all(connection)


@pytest.mark.parametrize("garbage", [b"garbage\r\n\r\n", b"GET /healthz HTT"], ids=["no HTTP", "half of a head"])
def test_answers_that_are_on_their_way_come_before_the_end_of_a_connection(garbage) -> None:
    with serving(Predictor(MeanEngine()), header_seconds=0.3) as running:
        running.engine.gate.clear()
        with running.raw(post() * 3 + garbage) as connection:
            until(lambda: running.state.in_flight == 1)
            with running.raw(b"") as silent:
                read_all(silent)  # as long as a head may take
            running.engine.gate.set()
            answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"connection: close") == 1


def test_a_damaged_body_behind_another_request_is_not_answered_in_its_place() -> None:
    with serving(Predictor(MeanEngine())) as running:
        running.engine.gate.clear()
        damaged = post(b"Transfer-Encoding: chunked\r\n", body=b"zz\r\n")
        with running.raw(post() + damaged) as connection:
            assert read_all(connection) == b""
        running.engine.gate.set()
        until(lambda: running.state.in_flight == 0)
        assert running.classify(GREEN).status == 200

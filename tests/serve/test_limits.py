"""Limits of bytes, pixels, time and connections; tokens; what the log says."""

from __future__ import annotations

import io
import json
import logging
import socket
import time
from typing import Any

import pytest
from PIL import Image

from deit.core.errors import UserError
from deit.inference.predictor import Predictor
from deit.serve.http.authorization import Token, read_token
from deit.serve.http.request_log import json_log
from deit.serve.settings import ServeSettings, read_settings
from tests.serve.conftest import MeanEngine, png, read, read_all, serving, until

RED = png((255, 0, 0))
SECRET = "0123456789abcdef-secret"


def test_bodies_over_the_limit_are_refused_before_they_are_read() -> None:
    with serving(Predictor(MeanEngine()), max_request_bytes=1000, max_queue_bytes=1500) as running:
        over = running.classify(b"a" * 2000)
        assert (over.status, over.reason) == (413, "request_too_large")
        connection = running.connect()
        connection.request("POST", "/v1/classify", iter([b"a" * 600] * 3), {"Content-Type": "image/png"})  # chunked
        assert read(connection).reason == "request_too_large"
        connection.close()
        head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: %d\r\n"
        with running.raw(head % 10**12 + b"Expect: 100-continue\r\n\r\n") as huge:
            assert b" 413 " in read_all(huge)
        with running.raw(head % 900 + b"\r\n") as slow:  # holds 900 of 1500 bytes
            until(lambda: running.state.in_flight == 1)
            full = running.classify(b"a" * 800)
            assert (full.status, full.reason, full.headers["retry-after"]) == (429, "memory_full", "1")
            slow.close()
        until(lambda: running.state.in_flight == 0)
        assert running.classify(RED).status == 200


def test_an_image_over_the_limits_of_bytes_or_pixels_is_refused() -> None:
    with serving(Predictor(MeanEngine()), max_pixels=100, max_image_bytes=2000) as running:
        assert running.classify(png((255, 0, 0), (10, 10))).status == 200
        pixels = running.classify(png((255, 0, 0), (11, 10)))
        file = io.BytesIO()
        Image.effect_noise((64, 64), 90).save(file, "PNG")
        size = running.classify(file.getvalue())
    assert pixels.status == 422
    assert "11 x 10" in pixels.json["results"][0]["error"]["message"]
    assert (size.status, size.json["results"][0]["error"]["reason"]) == (413, "image_too_large")


def test_slow_clients_are_sent_away() -> None:
    with serving(Predictor(MeanEngine()), header_seconds=0.3, body_seconds=0.3, idle_seconds=1.0) as running:
        with running.raw(b"") as silent, running.raw(b"GET /healthz HTT") as headers:
            assert b"headers_too_slow" in read_all(silent)
            assert b" 408 " in read_all(headers)
        with running.raw(
            b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nabc"
        ) as body:
            answer = read_all(body)
        assert b" 408 " in answer
        assert b"body_too_slow" in answer
        with running.raw(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n") as idle:
            assert b" 200 " in read_all(idle)  # ends by itself


def test_headers_have_a_limit_in_one_piece_and_in_many() -> None:
    with serving(Predictor(MeanEngine()), max_header_bytes=4096) as running:
        with running.raw(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 5000 + b"\r\n\r\n") as one:
            assert b" 431 " in read_all(one)
        with running.raw(b"GET /healthz?" + b"a" * 5000) as endless:
            assert b"headers_too_large" in read_all(endless)
        assert running.ask("GET", "/healthz").status == 200


def test_more_connections_than_allowed_get_429() -> None:
    with serving(Predictor(MeanEngine()), max_connections=2) as running:
        first, second = running.raw(b""), running.raw(b"")
        until(lambda: len(running.server.server_state.connections) == 2)
        with running.raw(b"") as third:
            assert b" 429 " in read_all(third)
        first.close()
        second.close()
        until(lambda: not running.server.server_state.connections)
        assert running.ask("GET", "/healthz").status == 200


def test_what_is_no_http_is_400_in_json(served) -> None:
    with served.raw(b"\x16\x03\x01\x02\x00 hello\r\n\r\n") as connection:
        answer = read_all(connection)
    assert b" 400 " in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["reason"] == "bad_http"


def test_a_token_is_asked_for_and_never_written_down(capsys) -> None:
    lines = io.StringIO()
    with json_log(lines), serving(Predictor(MeanEngine()), token=Token(SECRET)) as running:
        assert running.ask("GET", "/healthz").status == running.ask("GET", "/readyz").status == 200
        nothing, wrong = running.classify(RED), running.classify(RED, Authorization="Bearer " + SECRET[:-1])
        right = running.classify(RED, Authorization=f"Bearer {SECRET}")
        in_query = running.classify(RED, f"?access_token={SECRET}", Authorization=f"Bearer {SECRET}")
        hidden = running.classify(RED, f"?note={SECRET}", Authorization=f"Bearer {SECRET}")
        until(lambda: lines.getvalue().count("\n") == 7)
    assert (nothing.status, nothing.reason, nothing.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
    assert wrong.status == 401
    assert right.status == 200
    assert {(each.status, each.reason) for each in (in_query, hidden)} == {(400, "token_in_query")}
    assert SECRET not in lines.getvalue() + "".join(str(r.body) for r in (nothing, wrong, in_query, hidden))
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["status"] for line in logged if line["event"] == "request"] == [200, 200, 401, 401, 200, 400, 400]


def test_a_token_in_the_address_is_refused_without_a_token_of_the_server_too(served) -> None:
    assert served.classify(RED, "?api_key=abc").reason == "token_in_query"


@pytest.mark.parametrize(
    ("content", "part"), [("", "at least 16"), ("short", "at least 16"), ("with a space in the middle", "space")]
)
def test_bad_tokens_end_the_start(tmp_path, content, part) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(UserError, match=part):
        read_token(file, {})


def test_a_token_comes_from_a_file_or_the_environment_and_not_from_both(tmp_path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    for found in (read_token(file, {}), read_token(None, {"DEIT_TOKEN": SECRET})):
        assert found is not None
        assert found.is_same(SECRET)
        assert not found.is_same(SECRET + "a")
        assert SECRET not in repr(vars(found))
    assert read_token(None, {}) is None
    with pytest.raises(UserError, match="twice"):
        read_token(file, {"DEIT_TOKEN": SECRET})
    with pytest.raises(FileNotFoundError):
        read_token(tmp_path / "none", {})


def test_pages_of_other_sites_cannot_use_the_server(served) -> None:
    assert served.classify(RED, Sec_Fetch_Site="cross-site").reason == "other_site"
    assert served.classify(RED, Sec_Fetch_Site="same-origin").status == 200


def test_the_log_has_a_line_of_json_for_each_request_without_the_image(served) -> None:
    lines = io.StringIO()

    def of_these_requests() -> list[dict[str, Any]]:  # one of a test before may end now
        found = map(json.loads, lines.getvalue().splitlines())
        return [line for line in found if line["id"] == "mine-1" or line["path"].startswith("/nowhere")]

    with json_log(lines):
        served.classify(RED, "?top_k=1", X_Request_Id="mine-1")
        served.ask("GET", "/nowhere%0Ainjected")
        until(lambda: lines.getvalue().endswith("\n") and len(of_these_requests()) == 2)  # written after the answer
    first, second = of_these_requests()
    assert (first["id"], first["method"], first["path"], first["status"]) == ("mine-1", "POST", "/v1/classify", 200)
    assert (first["model"], first["images"], first["bytes_in"]) == ("model", 1, len(RED))
    assert set(first["timing_ms"]) == {"decode", "queue", "compute", "total"}
    assert (second["status"], second["reason"]) == (404, "not_found")
    assert "top_k" not in lines.getvalue()


def test_a_reader_of_the_log_that_stops_does_not_stop_the_server(served) -> None:
    left, right = socket.socketpair()
    stream = left.makefile("w")
    with json_log(stream):
        logger = logging.getLogger("deit.serve.requests")
        started = time.monotonic()
        for _ in range(12_000):
            logger.info("request", extra={"facts": {"a": "b" * 200}})
        assert time.monotonic() - started < 10
        assert served.classify(RED).status == 200
        right.close()
    left.close()


def test_readiness_is_false_while_a_call_of_the_model_is_stuck_and_true_after_it() -> None:
    with serving(Predictor(MeanEngine()), ready_seconds=0.2, stuck_seconds=0.2) as running:
        assert running.ask("GET", "/readyz").json == {"ready": True}
        running.engine.gate.clear()
        time.sleep(0.6)  # a readiness is remembered for half a second
        slow = running.ask("GET", "/readyz")
        assert (slow.status, slow.json["ready"]) == (503, False)
        time.sleep(0.6)
        assert "has been running" in running.ask("GET", "/readyz").json["reason"]
        assert running.ask("GET", "/healthz").status == 200
        running.engine.gate.set()
        until(lambda: running.ask("GET", "/readyz").status == 200)


def test_why_a_server_is_not_ready_is_told_to_those_with_the_token_alone() -> None:
    known = {"Authorization": f"Bearer {SECRET}"}
    with serving(Predictor(MeanEngine()), token=Token(SECRET), ready_seconds=0.2) as running:
        assert running.ask("GET", "/readyz").json == {"ready": True}
        running.engine.gate.clear()
        until(lambda: running.ask("GET", "/readyz").status == 503)
        assert running.ask("GET", "/readyz").json == {"ready": False}
        assert "no answer within" in running.ask("GET", "/readyz", headers=known).json["reason"]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 1.5}, "whole number"),
        ({"max_queue": True}, "whole number"),
        ({"port": 70_000}, "65535"),
        ({"max_wait_ms": float("nan")}, "number"),
        ({"max_wait_ms": -1.0}, "max_wait_ms"),
        ({"body_seconds": 0.0}, "more than 0"),
        ({"full_status": 500}, "429 or 503"),
        ({"max_request_bytes": 2**40}, "max_queue_bytes"),
        ({"max_pixels": 2**27}, "max_pixels"),
        ({"degrade_at": 1.5}, "degrade_at"),
        ({"allow_unload": "no"}, "allow_unload must be true or false"),
        ({"host": 5}, "host must be a text"),
        ({"examples": ["a"]}, "examples must be a text"),
        ({"decode_threads": -1}, "decode_threads must be at least 0"),
        ({"decode_threads": "4"}, "decode_threads must be a whole number"),
        ({"max_wait_ms": True}, "max_wait_ms must be a number"),
        ({"full_status": None}, "full_status"),
    ],
)
def test_settings_out_of_their_range_are_refused(values, part) -> None:
    with pytest.raises(UserError, match=part):
        ServeSettings(**values)


def test_a_file_of_settings_names_known_ones(tmp_path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("max_batch: 8\nbody_seconds: 5.5\n")
    assert read_settings(file) == {"max_batch": 8, "body_seconds": 5.5}
    file.write_text("max_bach: 8\n")
    with pytest.raises(UserError, match="Did you mean 'max_batch'"):
        read_settings(file)
    file.write_text("- 8\n")
    with pytest.raises(UserError, match="settings"):
        read_settings(file)

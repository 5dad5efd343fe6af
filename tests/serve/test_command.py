"""`deit serve` as a process: its start, its end, and several workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import deit, is_refused
from tests.serve.conftest import png, read, until

GREEN = png((0, 255, 0))


@contextmanager
def command(*arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """Runs `deit serve` on a free port; yields the process, the port and its standard output."""
    folder = Path(os.environ["DEIT_CACHE"])
    out, err = folder / "out", folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        words = [sys.executable, "-m", "deit", "serve", *map(str, arguments), "--port", "0", "--engine", "torch"]
        process = subprocess.Popen(words, stdout=stdout, stderr=stderr)
    try:
        until(lambda: re.search(rb"Listening on .*:\d+\n", err.read_bytes()) or process.poll() is not None, 60)
        found = re.search(rb"Listening on http://127.0.0.1:(\d+)\n", err.read_bytes())
        assert found, err.read_bytes()
        yield process, int(found[1]), out
    finally:
        process.kill()
        process.wait(20)


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "image/png"} if body else {})
        reply = read(connection)
        return reply.status, reply.json
    finally:
        connection.close()


def status(port: int, path: str) -> int:
    try:
        return ask(port, path)[0]
    except OSError:
        return 0


def test_sigterm_under_load_loses_no_accepted_request(deit_directory) -> None:
    statuses: list[object] = []
    ended = threading.Event()

    def load(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        while not ended.is_set():
            try:
                connection.request("POST", "/v1/classify", GREEN, {"Content-Type": "image/png"})
            except OSError:
                return  # no connection: not accepted
            try:
                reply = read(connection)
            except (http.client.RemoteDisconnected, ConnectionError) as error:
                statuses.append(error if connection.sock is None else "closed while idle")
                return
            statuses.append(reply.status if reply.status == 200 else reply.reason)
            if reply.headers.get("connection") == "close":
                return

    with command(deit_directory(), "--max-batch", "4") as (process, port, out):
        assert ask(port, "/readyz") == (200, {"ready": True})
        threads = [threading.Thread(target=load, args=(port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: statuses.count(200) > 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        ended.set()
        for thread in threads:
            thread.join(20)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert set(statuses) <= {200, "draining"}
    answered = [line for line in lines if line["event"] == "request" and line["path"] == "/v1/classify"]
    assert [line["status"] for line in answered].count(200) == statuses.count(200)


def test_a_killed_worker_is_noticed_within_two_seconds_and_replaced(deit_directory) -> None:
    with command(deit_directory(), "--workers", "2") as (process, port, _):
        until(lambda: status(port, "/readyz") == 200, 60)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        before = children.read_text().split()
        assert len(before) == 2
        os.kill(int(before[0]), signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: status(port, "/readyz") == 503, 2.5)
        assert time.monotonic() - killed < 2.0
        assert ask(port, "/v1/classify", GREEN)[0] == 200  # the other one answers
        until(lambda: status(port, "/readyz") == 200, 60)
        assert len(set(children.read_text().split()) - set(before)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        with pytest.raises(OSError, match=r"."):
            ask(port, "/healthz")


def test_bad_starts_end_with_one_line_before_the_port_is_open(deit_directory, tmp_path) -> None:
    folder = deit_directory()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        is_refused(deit("serve", folder, "--port", taken.getsockname()[1]), "Cannot listen on", "--port")
    is_refused(deit("serve", tmp_path / "nothing", "--port", 0), "nothing")
    is_refused(deit("serve", folder, "--port", 0, "--max-batch", 0), "--max-batch must be at least 1")
    is_refused(deit("serve", folder, "--port", 0, "--host", "192.0.2.1"), "Cannot listen on")
    is_refused(deit("serve", folder, "--port", 0, "--degrade", 9), "at most 8")
    (tmp_path / "token").write_text("short\n")
    is_refused(deit("serve", folder, "--port", 0, "--token-file", tmp_path / "token"), "at least 16 characters")
    (tmp_path / "settings.yaml").write_text("max_bach: 3\n")
    is_refused(deit("serve", folder, "--port", 0, "--settings", tmp_path / "settings.yaml"), "max_bach", "max_batch")
    (folder / "preprocessor_config.json").unlink()
    is_refused(deit("serve", folder, "--port", 0), "preprocessor_config.json")

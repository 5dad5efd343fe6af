"""Shards of the web, from a server on this machine that behaves as badly as servers do."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from deit.data import downloads
from deit.data.downloads import fetch_shards
from deit.data.readers.image_stores import StoredImages
from deit.data.readers.webdataset import expand_braces, read_shards
from tests.data.pictures import colour_members, picture, write_shard


@dataclass
class Web:
    """Files on a server, what was asked, and how it behaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)
    stop_after: list[int] = field(default_factory=list)  # bytes of an answer, for the next answers
    knows_ranges: bool = True
    address: str = ""


def handler_for(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            name, asked = self.path.partition("?")[0][1:], self.headers.get("Range")
            web.ranges.append(asked)
            if name not in web.files:
                self.send_error(403 if name == "secret.tar" else 404)
                return
            content, etag = web.files[name], f'"{hash(web.files[name])}"'
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and web.knows_ranges else 0
            if self.headers.get("If-Range") != etag:
                start = 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("ETag", etag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + web.stop_after.pop(0) if web.stop_after else len(content)
            self.wfile.write(content[start:end])

    return Handler


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[Web]:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(served))
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def shard_bytes(tmp_path: Path, seed: int = 0) -> bytes:
    return write_shard(tmp_path / "made.tar", colour_members(1, seed=seed)).read_bytes()


def test_shards_are_fetched_once_into_the_cache(tmp_path, web):
    web.files = {"a-0.tar": shard_bytes(tmp_path), "a-1.tar": shard_bytes(tmp_path, 5)}
    addresses = expand_braces(f"{web.address}/a-{{0..1}}.tar?key=7")
    seen: list[tuple[int, int]] = []
    paths = fetch_shards(addresses, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert [path.read_bytes() for path in paths] == list(web.files.values())
    assert all(path.is_relative_to(tmp_path / "cache") for path in paths)
    web.files.clear()  # as without a network
    assert fetch_shards(addresses) == paths
    assert len(web.ranges) == 2
    ours = StoredImages(read_shards("train", paths))
    assert np.array_equal(np.asarray(ours.image(5)), np.asarray(picture("red", 5)))
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_a_connection_that_ends_early_is_gone_on_with(tmp_path, web):
    web.files["a.tar"] = shard_bytes(tmp_path)
    web.stop_after = [1000, 500]
    (path,) = fetch_shards([f"{web.address}/a.tar"])
    assert path.read_bytes() == web.files["a.tar"]
    assert web.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_what_could_not_be_fetched_is_gone_on_with_by_the_next_run(tmp_path, web):
    web.files["a.tar"] = shard_bytes(tmp_path)
    web.stop_after = [1000, 0, 0, 0]
    with pytest.raises(
        ConnectionError, match=r"a.tar cannot be downloaded .*; 1000 bytes are saved. .* it resumes the download"
    ):
        fetch_shards([f"{web.address}/a.tar?key=7"])
    assert not list((tmp_path / "cache").rglob("*.tar"))
    (path,) = fetch_shards([f"{web.address}/a.tar?key=7"])
    assert web.ranges[-1] == "bytes=1000-"
    assert path.read_bytes() == web.files["a.tar"]


@pytest.mark.parametrize("case", ["another version on the server", "a server without ranges", "a part without version"])
def test_a_part_that_does_not_fit_is_fetched_again_whole(tmp_path, web, case):
    web.files["a.tar"] = shard_bytes(tmp_path)
    web.stop_after = [1000, 0, 0, 0]
    with pytest.raises(ConnectionError):
        fetch_shards([f"{web.address}/a.tar"])
    if case == "another version on the server":
        web.files["a.tar"] = shard_bytes(tmp_path, 8)
    elif case == "a server without ranges":
        web.knows_ranges = False
    else:
        (note,) = (tmp_path / "cache").rglob("*.version")
        note.unlink()
    (path,) = fetch_shards([f"{web.address}/a.tar"])
    assert path.read_bytes() == web.files["a.tar"]


def test_two_that_want_the_same_shard_fetch_it_once(tmp_path, web):
    web.files["a.tar"] = shard_bytes(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch_shards([f"{web.address}/a.tar"]), range(4)))
    assert all(paths == found[0] for paths in found)
    assert found[0][0].read_bytes() == web.files["a.tar"]
    assert len(web.ranges) == 1
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_errors_of_the_web_are_said_in_one_line(tmp_path, web, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"There is no http://.*/none.tar \(error 404\). Check the address"):
        fetch_shards([f"{web.address}/none.tar?key=7"])
    with pytest.raises(PermissionError, match=r"The server refuses http://.*/secret.tar \(error 403\)"):
        fetch_shards([f"{web.address}/secret.tar"])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(
            ConnectionError, match=r"/a.tar cannot be downloaded \(.*Connection refused\); 0 bytes are saved"
        ):
            fetch_shards([f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar?key=7"])
    for address in ("s3://bucket/a.tar", "pipe:cat a.tar", "ftp://host/a.tar"):
        with pytest.raises(ValueError, match="cannot be opened: shards come from http, https or files"):
            fetch_shards([address])
    (tmp_path / "full").write_text("a file, not a folder")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "full"))
    with pytest.raises(OSError, match=r"a.tar cannot be saved in .* environment variable DEIT_CACHE"):
        fetch_shards([f"{web.address}/a.tar"])


# --- answers that are no shard ------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch, tmp_path) -> Iterator[Callable[..., tuple[str, list[bytes]]]]:
    """Serves some bytes for each connection, the last for all others; gives the address, and what was asked."""
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    started: list[tuple[socket.socket, threading.Thread]] = []

    def start(*raw: bytes) -> tuple[str, list[bytes]]:
        listener, left, asked = socket.create_server(("127.0.0.1", 0)), list(raw), []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536))
                    connection.sendall(left.pop(0) if len(left) > 1 else left[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        started.append((listener, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}", asked

    yield start
    for listener, thread in started:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def answer(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


PAGE = b"<!doctype html><html><title>Log\n in \x1b[31m&amp; pay</title><form></form></html>"


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (
            PAGE,
            ["Content-Type: text/html; charset=utf-8"],
            r"a web page \('Log in \\\\x1b\[31m& pay'\), not a tar",
        ),
        (PAGE, ["Content-Type: application/x-tar"], r"is not a tar archive: it begins with b'<!doctype html>"),
        (b'{"error": "quota"}', ["Content-Type: application/json"], "is not a tar archive: it begins with"),
        (b"\x1f\x8b" + bytes(600), ["Content-Encoding: gzip"], "comes packed as 'gzip'"),
        (b"\x1f\x8b\x08" + bytes(600), [], "A compressed shard must be unpacked first"),
        (b"", ["Content-Length: 0"], "is not a tar archive"),
        (b"", [f"Content-Length: {2**62}"], "more than any shard"),
    ],
)
def test_what_is_no_shard_is_refused_and_not_kept(tmp_path, answers, content, headers, message):
    address, asked = answers(answer(content, *headers))
    for _ in range(2):  # the second finds nothing in the cache
        with pytest.raises(ValueError, match=message) as caught:
            fetch_shards([f"{address}/a.tar?key=secret"])
        assert "secret" not in str(caught.value)
    assert len(asked) == 2
    assert [path.stat().st_size for path in (tmp_path / "cache").rglob("*.part")] == [0]
    assert not list((tmp_path / "cache").rglob("*.tar"))


@pytest.mark.parametrize(
    "there", ["file:///etc/hostname", "ftp://host/a.tar", "gopher://host/", "data:text/plain,x", "FILE:/etc/hostname"]
)
def test_a_redirect_to_another_scheme_is_not_followed(answers, there):
    address, _ = answers(answer(b"", f"Location: {there}", status="302 Found"))
    with pytest.raises(ValueError, match="which is refused"):
        fetch_shards([f"{address}/a.tar"])


def test_https_does_not_lead_to_http():
    import urllib.request

    redirects = downloads._Redirects()
    request = urllib.request.Request("https://user:password@host/a.tar?key=1")
    with pytest.raises(ValueError, match="not from https to http") as caught:
        redirects.redirect_request(request, None, 302, "Found", {}, "http://host/a.tar?key=2")
    assert "password" not in str(caught.value)
    assert "key" not in str(caught.value)
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://other/a.tar") is not None
    plain = urllib.request.Request("http://host/a.tar")
    assert redirects.redirect_request(plain, None, 302, "Found", {}, "https://host/a.tar") is not None


def test_a_redirect_within_http_is_followed_and_one_in_a_circle_ends(tmp_path, answers):
    content = shard_bytes(tmp_path)
    first = answer(b"", "Location: /b.tar", status="307 Temporary Redirect")
    address, asked = answers(first, answer(content, f"Content-Length: {len(content)}"))
    (path,) = fetch_shards([f"{address}/a.tar"])
    assert path.read_bytes() == content
    assert b"GET /b.tar" in asked[1]
    address, _ = answers(first)
    with pytest.raises(ValueError, match=r"redirects to /b.tar, .* not in a circle"):
        fetch_shards([f"{address}/a.tar"])


def test_an_answer_of_unknown_length_must_have_the_end_mark(tmp_path, answers):
    content = shard_bytes(tmp_path)
    address, _ = answers(answer(content.rstrip(b"\0")[:1000]), answer(content))
    (path,) = fetch_shards([f"{address}/a.tar"])
    assert path.read_bytes() == content


def test_an_answer_that_is_longer_than_it_says_or_other_than_asked_for_is_not_kept(tmp_path, answers):
    content = shard_bytes(tmp_path)
    cut = answer(content[:1000], f"Content-Length: {len(content)}", 'ETag: "1"')
    other = answer(content[500:], "Content-Range: bytes 500-99/100", status="206 Partial Content")
    nothing = answer(b"", status="204 No Content")
    address, asked = answers(cut, other, nothing, answer(content))
    (path,) = fetch_shards([f"{address}/a.tar"])
    assert path.read_bytes() == content
    assert b"If-Range" in asked[1]


def test_a_part_with_a_weak_etag_is_not_gone_on_with(tmp_path, answers):
    content = shard_bytes(tmp_path)
    cut = answer(content[:1000], f"Content-Length: {len(content)}", 'ETag: W/"1"')
    address, asked = answers(cut, answer(content))
    fetch_shards([f"{address}/a.tar"])
    assert b"Range" not in asked[1]


@pytest.mark.parametrize("change", ["cut", "other bytes", "no record", "touched"])
def test_a_file_of_the_cache_is_checked_before_it_is_used(tmp_path, web, change, caplog):
    web.files["a.tar"] = shard_bytes(tmp_path)
    (path,) = fetch_shards([f"{web.address}/a.tar?key=7"])
    record = path.with_name(f"{path.name}.json")
    assert "key" not in record.read_text()
    if change == "cut":
        os.truncate(path, 1000)
    elif change == "other bytes":
        path.write_bytes(bytes(len(web.files["a.tar"])))
        os.utime(path, ns=(1, 1))
    elif change == "no record":
        record.unlink()
    else:
        os.utime(path, ns=(1, 1))
    assert fetch_shards([f"{web.address}/a.tar?key=7"]) == [path]
    assert path.read_bytes() == web.files["a.tar"]
    assert len(web.ranges) == (1 if change == "touched" else 2)
    assert ("is downloaded again" in caplog.text) == (change != "touched")
    assert json.loads(record.read_text())["bytes"] == len(web.files["a.tar"])


def test_a_disk_without_room_is_told_before_the_shard_is_fetched(tmp_path, web, monkeypatch):
    web.files["a.tar"] = shard_bytes(tmp_path)
    monkeypatch.setattr(downloads, "LEAST_FREE_BYTES", 2**60)
    with pytest.raises(OSError, match=r"cannot be saved in .* are free.*DEIT_CACHE"):
        fetch_shards([f"{web.address}/a.tar"])


def drip(connection: socket.socket, stop: threading.Event, begin: bytes) -> None:
    connection.recv(65536)
    connection.sendall(begin)
    while not stop.wait(0.05):
        try:
            connection.sendall(b"x")
        except OSError:
            return


@pytest.mark.parametrize("where", ["in the head", "in the content"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(tmp_path, monkeypatch, where):
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.2)
    monkeypatch.setattr(downloads, "_ATTEMPTS", 1)
    content = shard_bytes(tmp_path)
    begin = b"HTTP/1.1 200 OK\r\nX-Long: " if where == "in the head" else answer(content, "Content-Length: 100000")
    stop, listener = threading.Event(), socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            drip(connection, stop, begin)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="cannot be downloaded"):
        fetch_shards([f"http://127.0.0.1:{listener.getsockname()[1]}/a.tar"])
    assert time.monotonic() - began < 10
    stop.set()
    server.join()
    listener.close()

"""What servers answer, and how it is told: errors, redirects, pages, slowness, keys."""

from __future__ import annotations

import base64
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deit.core.errors import UnreachableError, UserError
from deit.data.streams import retrying, web as web_files
from deit.data.streams.addresses import check_address, key_of, path_of, shown, without_secrets
from deit.data.streams.retrying import PassingError, retried
from deit.data.streams.shard_files import StreamedFile, addresses_of, shard_files
from tests.data.pictures import colour_members, write_shard


def shard_bytes(tmp_path: Path, seed: int = 0) -> bytes:
    return write_shard(tmp_path / "made.tar", colour_members(1, seed=seed)).read_bytes()


def opened(address: str) -> StreamedFile:
    (file,) = shard_files([address])
    assert isinstance(file, StreamedFile)
    return file


def whole(address: str) -> bytes:
    file = opened(address)
    return file.read(0, file.size)


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "delay", "other part", "twice", "whole"])
def test_each_fault_is_got_over(tmp_path, web, fault):
    web.files["a.tar"] = shard_bytes(tmp_path)
    web.planned = [fault, fault, "", fault]
    assert whole(f"{web.address}/a.tar") == web.files["a.tar"]
    assert not web.planned


def test_a_connection_that_ends_early_is_gone_on_with(tmp_path, web):
    web.files["a.tar"] = shard_bytes(tmp_path)
    web.planned = ["", "cut", "cut"]
    file = opened(f"{web.address}/a.tar")
    assert file.read(0, 8192) == web.files["a.tar"][:8192]
    assert [asked for _, asked in web.asked[1:]] == ["bytes=0-8191", "bytes=4096-8191", "bytes=6144-8191"]


def test_failures_in_a_row_end_it_and_progress_begins_the_count_anew(tmp_path, web, caplog):
    web.files["a.tar"] = shard_bytes(tmp_path)
    web.planned = ["", *["500"] * 7, "cut", *["500"] * 6]
    file = opened(f"{web.address}/a.tar?key=7")
    assert file.read(0, 8192) == web.files["a.tar"][:8192]
    assert "fails (error 500). It is tried up to 8 times" in caplog.text
    web.planned = ["503"] * 8
    with pytest.raises(UnreachableError, match=r"/a.tar cannot be read \(error 503, 8 times in a row\)") as caught:
        file.read(8192, 8192)
    assert "key" not in str(caught.value) + caplog.text
    assert not isinstance(caught.value, OSError)  # else the image would be left out


def test_a_server_that_asks_to_wait_is_waited_for():
    asked: list[float] = []

    def attempt() -> str:
        asked.append(time.monotonic())
        if len(asked) < 2:
            raise PassingError("busy", wait=0.1)
        return "done"

    assert retried(attempt, "https://host/a.tar") == "done"
    assert asked[1] - asked[0] >= 0.1


def test_errors_are_told_in_one_line(tmp_path, web, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"There is no http://.*/none.tar \(error 404\). Check the address"):
        opened(f"{web.address}/none.tar?key=7")
    web.files["a.tar"] = shard_bytes(tmp_path)
    for code, error in (("403", PermissionError), ("401", PermissionError), ("405", UserError), ("416", UserError)):
        web.planned = [code]
        with pytest.raises(error) as caught:
            opened(f"{web.address}/a.tar?key=7")
        assert "a.tar" in str(caught.value)
        assert "key=7" not in str(caught.value)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match=r"/a.tar cannot be read \(.*Connection refused"):
            opened(f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar?key=7")
    with pytest.raises(UnreachableError, match="there is no server of this name"):
        opened("http://no-such-host.invalid/a.tar")
    for address in ("pipe:cat a.tar", "ftp://host/a.tar", "zip://a::file://b.tar"):
        with pytest.raises(UserError, match="cannot be opened: shards come from files, http"):
            shard_files([address])
    with pytest.raises(UserError, match="is not an address"):
        check_address("http://host:port/a.tar")
    with pytest.raises(UserError, match=r"web servers list no files. Write a range: \{000..099\}"):
        addresses_of("https://host/*.tar")
    (tmp_path / "full").write_text("a file, not a folder")
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "full"))
    with pytest.raises(UnreachableError, match=r"a.tar cannot be kept in .* DEIT_CACHE, or none with --cache-size 0"):
        whole(f"{web.address}/a.tar")


def test_what_was_there_and_is_gone_is_unreachable(tmp_path, web):
    web.files["a.tar"] = shard_bytes(tmp_path)
    file = opened(f"{web.address}/a.tar")
    web.planned = ["404"]
    with pytest.raises(UnreachableError, match="There is no"):
        file.read(0, 10)
    web.files["a.tar"] = shard_bytes(tmp_path, 5)
    with pytest.raises(UserError, match="has changed while it was read"):
        file.read(0, 10)


def test_keys_are_not_shown():
    secret = "https://user:password@host:8080/a.tar?X-Amz-Signature=abc#part"
    assert shown(secret) == key_of(secret) == "https://host:8080/a.tar"
    assert without_secrets(f"failed at '{secret}'\nand more") == "failed at 'https://host:8080/a.tar' and more"


def test_a_user_in_the_address_is_sent_to_its_host_alone(tmp_path, web):
    web.files["a.tar"] = shard_bytes(tmp_path)
    assert whole(web.address.replace("//", "//me:p%40ss@") + "/a.tar") == web.files["a.tar"]
    assert web.headers[-1]["Authorization"] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    request = web_files._request("http://me:pass@host/a.tar", 0, 10)
    there = web_files._Redirects().redirect_request(request, None, 302, "Found", {}, "http://other/a.tar")
    assert there is not None
    assert not there.has_header("Authorization")


def test_a_path_may_be_an_address():
    assert path_of("file:///a%20b/c.tar") == "/a b/c.tar"
    assert path_of("FILE://localhost/c.tar") == "/c.tar"
    assert path_of("c.tar") == "c.tar"
    with pytest.raises(UserError, match="is on the machine 'host'"):
        path_of("file://host/c.tar")


# --- answers that are no shard ------------------------------------------------------------------------


@pytest.fixture
def answers() -> Iterator[Callable[..., tuple[str, list[bytes]]]]:
    """Serves some bytes for each connection, the last for all others; gives the address, and what was asked."""
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
        (PAGE, ["Content-Type: text/html; charset=utf-8"], r"a web page \('Log in \\\\x1b\[31m& pay'\), not a shard"),
        (PAGE, ["Content-Type: application/x-tar"], r"is not a tar archive: it begins with b'<!doctype html>"),
        (b'{"error": "quota"}', ["Content-Type: application/json"], "is not a tar archive: it begins with"),
        (b"\x1f\x8b" + bytes(600), ["Content-Encoding: gzip"], "comes packed as 'gzip'"),
        (b"\x1f\x8b\x08" + bytes(600), [], "A compressed shard must be unpacked first"),
        (b"", [], "is not a tar archive"),
    ],
)
def test_what_is_no_shard_is_refused(answers, content, headers, message):
    address, _ = answers(answer(content, f"Content-Length: {len(content)}", *headers))
    with pytest.raises(UserError, match=message) as caught:
        opened(f"{address}/a.tar?key=secret")
    assert "secret" not in str(caught.value)


def test_a_server_that_tells_no_length_is_refused(tmp_path, answers):
    address, _ = answers(answer(shard_bytes(tmp_path)))
    with pytest.raises(UserError, match=r"its server tells no length. Copy it first"):
        opened(f"{address}/a.tar")


@pytest.mark.parametrize(
    "there", ["file:///etc/hostname", "ftp://host/a.tar", "gopher://host/", "data:text/plain,x", "FILE:/etc/hostname"]
)
def test_a_redirect_to_another_scheme_is_not_followed(answers, there):
    address, _ = answers(answer(b"", f"Location: {there}", status="302 Found"))
    with pytest.raises(UserError, match="which is refused"):
        opened(f"{address}/a.tar")


def test_https_does_not_lead_to_http():
    redirects = web_files._Redirects()
    request = urllib.request.Request("https://user:password@host/a.tar?key=1")
    with pytest.raises(UserError, match="not from https to http") as caught:
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
    assert whole(f"{address}/a.tar") == content
    assert b"GET /b.tar" in asked[1]
    address, _ = answers(first)
    with pytest.raises(UserError, match=r"redirects to /b.tar, .* not in a circle"):
        opened(f"{address}/a.tar")


def test_an_answer_without_content_is_asked_for_again(tmp_path, answers):
    content = shard_bytes(tmp_path)
    good = answer(content, f"Content-Length: {len(content)}")
    address, _ = answers(answer(b"", status="204 No Content"), good)
    assert whole(f"{address}/a.tar") == content


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
    monkeypatch.setattr(web_files, "TIMEOUT", 0.2)
    monkeypatch.setattr(retrying, "ATTEMPTS", 1)
    monkeypatch.setattr(web_files, "HEAD_BYTES", 100_000)
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
    with pytest.raises(UnreachableError, match="cannot be read"):
        opened(f"http://127.0.0.1:{listener.getsockname()[1]}/a.tar")
    assert time.monotonic() - began < 10
    stop.set()
    server.join()
    listener.close()

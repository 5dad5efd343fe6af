"""The whole exchange with a server is bound by the deadline, and a client leaves nothing behind."""

from __future__ import annotations

import asyncio
import base64
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

import deit
from deit.core.errors import UserError
from tests.client import scripted_server as server
from tests.client.scripted_server import label_of, scripted
from tests.client.test_client import both, classify, photo


@both
@pytest.mark.parametrize(
    ("first", "then"),
    [(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", b" "),
     (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"), (b"", b"H"), (b"", b"HTTP/1.1 102 Processing\r\n\r\n")],
    ids=["body", "headers", "status", "interim answers"],
)  # fmt: skip
def test_an_answer_that_trickles_ends_with_the_deadline(kind, first, then):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(first)
                for _ in range(40):
                    time.sleep(0.1)
                    try:
                        connection.sendall(then)
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer after 0\.5 s"):
            classify(kind, f"http://127.0.0.1:{listener.getsockname()[1]}", photo(1), deadline=0.5)
        assert time.monotonic() - begin < 1.5
        thread.join()


@both
def test_looking_for_the_host_ends_with_the_deadline(kind, monkeypatch):
    found = threading.Event()

    def look(*arguments, **options):
        found.wait(10)
        return []

    async def ask():
        async with deit.AsyncClient("http://slow.invalid", deadline=0.3) as client:
            with pytest.raises(TimeoutError):
                await client.classify(photo(1))
            assert not found.is_set()
            found.set()  # asyncio waits for its threads

    monkeypatch.setattr(socket, "getaddrinfo", look)
    begin = time.monotonic()
    if kind == "async":
        asyncio.run(ask())
    else:
        with deit.Client("http://slow.invalid", deadline=0.3) as client, pytest.raises(TimeoutError):
            client.classify(photo(1))
        found.set()
    assert time.monotonic() - begin < 3


def test_a_client_works_inside_of_an_event_loop_and_says_that_it_is_closed():
    async def ask(client):
        return client.classify(photo(1))[0].label  # blocks the loop, as in a notebook

    with scripted() as running:
        with deit.Client(running.url) as client:
            assert asyncio.run(ask(client)) == label_of(photo(1))
        with pytest.raises(UserError, match="is closed"):
            client.classify(photo(1))
        client.close()


def test_closing_a_client_ends_what_another_thread_waits_for():
    with scripted(server.SILENCE) as running, deit.Client(running.url) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.classify, photo(1))
        while not running.received:
            time.sleep(0.01)
        client.close()
        with pytest.raises(CancelledError):
            waiting.result(5)


def test_a_client_that_is_forgotten_or_interrupted_leaves_nothing_behind():
    code = (
        "import gc, os, signal, sys, threading, time, deit\n"
        "client = deit.Client(sys.argv[1])\n"
        "print(client.classify(sys.argv[3])[0].score, flush=True)\n"
        "if os.fork() == 0:\n"
        "    print(client.classify(sys.argv[3])[0].score, flush=True); os._exit(0)\n"
        "os.wait()\n"
        "silent = deit.Client(sys.argv[2])\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    silent.classify(sys.argv[3])\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
        "del client; gc.collect()\n"
        "until = time.monotonic() + 5\n"
        "while threading.active_count() > 2 and time.monotonic() < until:\n    time.sleep(0.01)\n"
        "print(threading.active_count(), flush=True)\n"
    )
    image = base64.b64encode(photo(1)).decode()
    with scripted() as running, scripted(server.SILENCE) as silent:
        words = [sys.executable, "-W", "error", "-c", code, running.url, silent.url, image]
        told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (told.stdout.split(), told.stderr) == (["0.75", "0.75", "interrupted", "2"], "")

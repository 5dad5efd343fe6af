"""Notices at once when one of several processes ends without a word, says which, and ends the others soon.

The first process holds a connection to each of the others, over which nothing is sent while all is well. The system
closes the connections of a process when it ends, however it ends. When its whole machine fails, nobody does: then
probes of the system itself (TCP keep-alive) go unanswered. So a process that is only slow, or was stopped for a while,
is never taken for dead, and no clock is compared.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from deit.core.errors import UserError

logger = logging.getLogger(__name__)

LOST_EXIT_CODE = 137  # 128 + SIGKILL, which is what most often happened to the one that is lost
LAUNCHER = "DEIT_LAUNCHER"  # set by `deit --processes`, which sees its processes end and says so itself
STARTERS = {LAUNCHER, "TORCHELASTIC_RUN_ID"}  # likewise, or by torchrun

_GRACE_SECONDS = 4.0  # for a process to end by itself once another is lost
_JOIN_SECONDS = 60.0
_LOOK_SECONDS = 1.0
# Seconds without an answer until the first probe and between probes, and how many must fail: a dead machine is noticed
# after 5 s, and with the grace all have ended after 9.
_PROBES = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}

_LEAVES, _FAILS, _IS_LOST = b"L", b"F", b"X"  # the last is what the first process says of a third one
_WORD = struct.Struct("!ci")  # what, and the rank of whom
_TOKEN_BYTES = 16
_HELLO = struct.Struct(f"!{_TOKEN_BYTES}si")


class LostProcessError(Exception):
    """Another process has ended. That has been told, or the other one tells why."""


class Watch:
    """Watches the other processes, from a thread, until `close`.

    When one ends without a word, the lowest that is left logs an error that names it. Then, and when one says that it
    fails, this process has a few seconds to end by itself, which a process does that waits for the other; after that it
    is ended with `LOST_EXIT_CODE`, whatever it does.

    Args:
        rank: Number of this process.
        names: Of all processes, for messages, by rank.
        connections: To the others, by rank; but for the first process, one to the first.
        speaks: Whether this process tells the loss of that of the rank it gets.

    Attributes:
        noticed: Set once another process is known to have ended or to fail.
    """

    def __init__(
        self, rank: int, names: list[str], connections: dict[int, socket.socket], speaks: Callable[[int], bool]
    ) -> None:
        self._rank, self._names, self._connections, self._speaks = rank, names, connections, speaks
        self.noticed, self._gone, self._over = threading.Event(), threading.Event(), threading.Event()
        self._leaves = False
        self._parent = os.getppid() if STARTERS & os.environ.keys() else 0
        _stay_out_of_forks()
        _open.update(connections.values())
        self._bell, self._rope = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="watch of other processes", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while not self._over.is_set():
                self._look_for_the_starter()
                for key, _ in selector.select(_LOOK_SECONDS):
                    if key.data is None:
                        return
                    what, rank = _hear(key.fileobj, key.data)
                    if what is None:
                        self._gone.set()
                    if what is None or what == _LEAVES:
                        selector.unregister(key.fileobj)
                    if what != _LEAVES and not self._leaves and not self.noticed.is_set():
                        self._end_soon(_IS_LOST if what is None else what, rank)

    def _look_for_the_starter(self) -> None:
        """Stops this process, as SIGTERM does, once what started it was killed: nobody would know of the processes."""
        if self._parent and os.getppid() != self._parent:
            self._parent = 0
            os.kill(os.getpid(), signal.SIGTERM)

    def _end_soon(self, what: bytes, lost: int) -> None:
        self.noticed.set()
        if self._rank == 0:
            self._tell(what, lost)
        if what == _IS_LOST:
            self._gone.set()
            if self._speaks(lost):
                logger.error(
                    "Process %d of %d (%s) ended without a word, as when it is killed, memory runs out or its machine "
                    "fails; the others end too. A training goes on from its newest state with --resume.",
                    lost, len(self._names), self._names[lost],
                )  # fmt: skip
        threading.Thread(target=self._end_late, daemon=True).start()

    def _end_late(self) -> None:
        if self._over.wait(_GRACE_SECONDS):
            return
        import multiprocessing  # by now PyTorch has

        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(LOST_EXIT_CODE)

    def _tell(self, what: bytes, rank: int) -> None:
        for other, connection in self._connections.items():
            if other != rank:
                _say(connection, what, rank)

    def explains(self, error: Exception) -> bool:
        """Whether an error arose because another process has ended; waits a moment for that to be noticed.

        If the other process tells an error of its own, waits until it has, so that the first exit code is its own.
        """
        if not (_is_of_connection(error) and self.noticed.wait(_GRACE_SECONDS / 2)):
            return False
        self._gone.wait(_GRACE_SECONDS / 2)
        return True

    def leave(self, *, fails: bool) -> None:
        """Tells the others that this process leaves; if it `fails` they must end, too."""
        self._leaves = True
        if not self.noticed.is_set():
            self._tell(_FAILS if fails else _LEAVES, self._rank)

    def close(self) -> None:
        """Ends the watch. The connections stay open until the process ends: by that the others know when it has."""
        self._over.set()
        self._rope.send(b"!")
        self._thread.join()
        self._bell.close()
        self._rope.close()


_open: set[socket.socket] = set()  # connections; they end with the process


@functools.cache
def _stay_out_of_forks() -> None:
    """Lets processes that prepare images close the connections: they may outlive this one by seconds."""

    def close_all() -> None:
        for connection in _open:
            connection.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close_all)


def begin_watch(rank: int, local_rank: int, exchange: Callable[[Any], list[Any]]) -> Watch:
    """Connects the processes and begins to watch. All of them must call it.

    Args:
        rank: Number of this process.
        local_rank: Its number on its machine.
        exchange: Gives what each process passes to all, by rank.

    Raises:
        UserError: The first process cannot be reached, or one does not come.
    """
    server = None if rank else _server()
    port, token = (server.getsockname()[1], secrets.token_bytes(_TOKEN_BYTES)) if server else (0, b"")
    places = exchange((socket.gethostname(), os.getpid(), port, token))
    names = [f"process {number} on {host}" for host, number, _, _ in places]
    _, _, port, token = places[0]
    if server is not None:
        with server:
            connections = _welcome(server, len(places), token)
    else:
        connections = {0: _join(port, token, rank)}
    for connection in connections.values():
        _probe(connection)

    def speaks(lost: int) -> bool:
        if LAUNCHER in os.environ:
            return False
        return rank == 0 or (lost == 0 and (rank == 1 or local_rank == 0))  # one on each machine, if the first is lost

    return Watch(rank, names, connections, speaks)


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _welcome(server: socket.socket, count: int, token: bytes) -> dict[int, socket.socket]:
    """Returns a connection to each process but the first; those of strangers are closed."""
    found: dict[int, socket.socket] = {}
    until = time.monotonic() + _JOIN_SECONDS
    while len(found) < count - 1:
        server.settimeout(max(until - time.monotonic(), 0.01))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            missing = sorted(set(range(1, count)) - found.keys())
            raise UserError(f"Processes {missing} did not connect to the first one. May they reach any port?") from None
        connection.settimeout(_JOIN_SECONDS)
        hello = _exactly(connection, _HELLO.size)
        if len(hello) == _HELLO.size and _HELLO.unpack(hello)[0] == token:
            found[_HELLO.unpack(hello)[1]] = connection
        else:
            connection.close()
    return found


def _join(port: int, token: bytes, rank: int) -> socket.socket:
    host = os.environ.get("MASTER_ADDR", "localhost")
    try:
        connection = socket.create_connection((host, port), timeout=_JOIN_SECONDS)
        connection.sendall(_HELLO.pack(token, rank))
    except OSError as error:
        raise UserError(f"Process {rank} cannot reach the first process at {host}, port {port}: {error}.") from error
    return connection


def _probe(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # other systems than Linux have some of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _hear(connection: Any, rank: int) -> tuple[bytes | None, int]:
    """Returns what a process says and of whom; None once it has ended."""
    heard = _exactly(connection, _WORD.size)
    return _WORD.unpack(heard) if len(heard) == _WORD.size else (None, rank)


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Reads a number of bytes, or fewer if the other side has ended."""
    read = b""
    try:
        while len(read) < count and (more := connection.recv(count - len(read))):
            read += more
    except OSError:
        return b""
    return read


def _say(connection: socket.socket, what: bytes, rank: int) -> None:
    try:
        connection.sendall(_WORD.pack(what, rank))
    except OSError:
        return  # it has ended itself


def _is_of_connection(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")
    )

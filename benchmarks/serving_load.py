"""Sends images to a server and checks each answer against the one that its image must have. See `serving.py`.

    python benchmarks/serving_load.py PLAN.json

Runs in a process of its own and speaks HTTP/1.1 over plain asyncio streams, so that it takes little of the cores that
the server needs. Closed loop: each client sends its next request when it has its answer. Open loop: requests begin at
random times of a fixed rate (Poisson), whether or not the server keeps up, and their time counts from when they should
have begun, so that a waiting generator hides nothing (coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCORE_TOLERANCE = 2e-3  # of a probability; batches of other sizes may add up in another order


@dataclass
class Tally:
    """What came back."""

    milliseconds: list[float] = field(default_factory=list)  # of right answers
    finished: list[float] = field(default_factory=list)  # seconds since the beginning, likewise
    refused_milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # no answer, by reason
    wrong: list[str] = field(default_factory=list)  # an answer that is not that of the image


class Connection:
    """One connection, opened again when the server closes it."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Sends a request. Returns status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            self.close()
            raise
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(lines[0].split()[1]), body

    def close(self) -> None:
        """Closes it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def request_bytes(host: str, path: str, kind: str, body: bytes) -> bytes:
    """Returns a POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def differs(body: bytes, expected: dict[str, float]) -> str:
    """Returns in what an answer is not the one expected; empty if it is."""
    try:
        values = json.loads(body)
        rows = values["results"][0]["predictions"]
        told = {row["label"]: row["score"] for row in rows}
    except (ValueError, LookupError, TypeError) as error:
        return f"unreadable: {error} {body[:200]!r}"
    if not told.keys() & expected.keys():
        return f"{told} in place of {expected}"
    # Classes with nearly the same score may change places at the end of the list.
    farthest = max(abs(told[name] - expected[name]) for name in told.keys() & expected.keys())
    missing = [score for name, score in expected.items() if name not in told]
    last = min(told.values())
    if farthest > SCORE_TOLERANCE or any(score > last + SCORE_TOLERANCE for score in missing):
        return f"{told} in place of {expected}"
    return ""


class Load:
    """Sends the requests of a plan.

    Args:
        plan: "host", "port", "path", "kind", "files" (paths of bodies), "expected" ({label: score} of each), "mode"
            ("closed" or "open"), "seconds", "clients" or "rate", "seed".
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._host, self._port = plan["host"], plan["port"]
        bodies = [Path(name).read_bytes() for name in plan["files"]]
        self._requests = [request_bytes(self._host, plan["path"], plan["kind"], body) for body in bodies]
        self._random = random.Random(plan.get("seed", 0))
        self._tally = Tally()
        self._begin = 0.0
        self._ended = False

    def end(self) -> None:
        """Lets a closed loop end before its time."""
        self._ended = True

    async def run(self) -> dict[str, Any]:
        """Returns the tally, as JSON values."""
        self._begin = time.perf_counter()
        await (self._closed() if self._plan["mode"] == "closed" else self._open())
        return {
            **vars(self._tally),
            "seconds": self._plan["seconds"],
            "whole_seconds": time.perf_counter() - self._begin,
        }

    async def _closed(self) -> None:
        async def client() -> None:
            connection = Connection(self._host, self._port)
            while not self._ended and time.perf_counter() - self._begin < self._plan["seconds"]:
                refused = await self._send(connection, time.perf_counter())
                if refused:
                    await asyncio.sleep(0.05)
            connection.close()

        await asyncio.gather(*(client() for _ in range(self._plan["clients"])))

    async def _open(self) -> None:
        free: list[Connection] = []
        running: set[asyncio.Task[None]] = set()

        async def one(due: float) -> None:
            connection = free.pop() if free else Connection(self._host, self._port)
            await self._send(connection, due)
            free.append(connection)

        due = self._begin
        while due - self._begin < self._plan["seconds"]:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(one(due))
            running.add(task)
            task.add_done_callback(running.discard)
            due += self._random.expovariate(self._plan["rate"])
        await asyncio.gather(*running)
        for connection in free:
            connection.close()

    async def _send(self, connection: Connection, begin: float) -> bool:
        """Sends one image that was drawn by chance. Returns whether the server refused it."""
        number = self._random.randrange(len(self._requests))
        tally = self._tally
        try:
            async with asyncio.timeout(120):
                status, body = await connection.ask(self._requests[number])
        except (OSError, EOFError, asyncio.IncompleteReadError, TimeoutError) as error:
            tally.lost[f"{type(error).__name__}: {error}"[:100]] += 1
            await asyncio.sleep(0.05)
            return True
        now = time.perf_counter()
        tally.statuses[str(status)] += 1
        if status != 200:
            tally.refused_milliseconds.append(1e3 * (now - begin))
            return True
        if problem := differs(body, self._plan["expected"][number]):
            tally.wrong.append(f"image {number}: {problem}")
        else:
            tally.milliseconds.append(1e3 * (now - begin))
            tally.finished.append(now - self._begin)
        return False


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(asyncio.run(Load(plan).run())))


if __name__ == "__main__":
    main()

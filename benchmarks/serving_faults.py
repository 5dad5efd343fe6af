"""Sends malformed requests to `deit serve` while good ones go on, and ends it in the middle of its work.

    python benchmarks/serving_faults.py [--count 10000] [--seed 0] [--max-batch 16]

Starts the server with a tiny model and short patience, and counts, for each kind of fault (`serving_fault_kinds.py`),
what was answered. Every answer must be 4xx or 503 or 504 with a reason (200 where that is right as well), good requests
must get their own answers all along, and memory, threads and open files must be at the end what they were after the
first fifth. Then it checks the end: SIGTERM under load, which must lose no request that was accepted, and a worker that
is killed, which /readyz must notice within 2 s and the server must replace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from harness import report
from serving import expected_answers, free_port, photos, running, tree_bytes, write_model
from serving_fault_kinds import Fault, faults
from serving_load import Connection, Load, request_bytes

from deit.inference.predictor import Predictor

PATIENCE = "header_seconds: 3\nbody_seconds: 3\nidle_seconds: 30\n"
MOST_SECONDS = 30.0  # for an answer
SENDERS = 16
GROWTH = 1.05
CLIENTS = 8


async def outcome(fault: Fault, host: str, port: int) -> str:
    """Sends a fault. Returns the status of the answer with its reason, or what happened in place of one."""
    try:
        async with asyncio.timeout(MOST_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return await _sent(fault, reader, writer)
            finally:
                writer.close()
    except TimeoutError:
        return "no answer in time"
    except ConnectionRefusedError:
        return "connection refused"


async def _sent(fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    with suppress(ConnectionError):  # the server may answer and close before it has read everything
        for number, piece in enumerate(fault.pieces):
            if number:
                await asyncio.sleep(fault.pause)
            writer.write(piece)
            await writer.drain()
    if fault.hangs_up == "first byte":
        await reader.read(1)
    if fault.hangs_up == "reset":
        held: socket.socket = writer.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if fault.hangs_up:
        return "gone"
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        return "closed"
    status = head.split()[1] if len(head.split()) > 1 else head[:20]
    size = next(
        (line.partition(":")[2] for line in head.split("\r\n") if line.lower().startswith("content-length:")), "0"
    )
    body = await reader.readexactly(int(size))
    return f"{status} {_reason(body)}"


def _reason(body: bytes) -> str:
    """Returns the reason of an error; "ok" for results, "" if there is none."""
    try:
        values = json.loads(body)
    except ValueError:
        return "text" if body.strip() else ""
    if "results" in values:
        errors = [one["error"]["reason"] for one in values["results"] if "error" in one]
        return errors[0] if len(errors) == len(values["results"]) else "ok"
    error = values.get("error", "ok")
    return str(error["reason"] if isinstance(error, dict) else error.partition(":")[0] or "ok")


def is_right(fault: Fault, told: str) -> bool:
    """Whether an outcome is one that a fault may have."""
    if told == "gone":
        return True
    if told == "closed":
        return fault.stays_silent
    status, _, reason = told.partition(" ")
    if status == "200":
        return fault.may_succeed and reason == "ok"
    return status.isdigit() and bool(reason) and (400 <= int(status) < 500 or int(status) in (503, 504))


async def send_all(sent: list[Fault], host: str, port: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Sends faults, several at a time. Returns outcomes by kind, and descriptions of those that are wrong."""
    told: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    waiting = iter(sent)

    async def sender() -> None:
        for fault in waiting:
            result = await outcome(fault, host, port)
            told.setdefault(fault.name, Counter())[result] += 1
            if not is_right(fault, result):
                wrong.append(f"{fault.name}: {result}, sent {fault.pieces[0][:300]!r}")

    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    return told, wrong


async def with_good_requests(
    sent: list[Fault], plan: dict[str, Any]
) -> tuple[dict[str, Counter[str]], list[str], dict[str, Any]]:
    """Sends faults while two clients send good images. Returns also the tally of these, see `Load`."""
    load = Load({**plan, "mode": "closed", "clients": 2, "seconds": float("inf")})
    good = asyncio.create_task(load.run())
    try:
        told, wrong = await send_all(sent, plan["host"], plan["port"])
    finally:
        load.end()
        tally = await good
    return told, wrong, tally


# --- the end of the server, and of a worker -----------------------------------------------------------


async def end_under_load(process: psutil.Process, plan: dict[str, Any]) -> dict[str, Any]:
    """Sends SIGTERM under load. Returns what became of the requests that were on their way, and of later ones."""
    requests = [
        request_bytes(plan["host"], plan["path"], plan["kind"], Path(name).read_bytes()) for name in plan["files"]
    ]
    begun: dict[int, float] = {}
    results: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    told_at = 0.0

    async def client(number: int) -> None:
        connection = Connection(plan["host"], plan["port"])
        while True:
            begin = time.perf_counter()
            begun[number] = begin
            try:
                status, _ = await connection.ask(requests[number % len(requests)])
            except (OSError, EOFError) as error:
                before = told_at == 0.0 or begin < told_at - 0.05  # surely read by the server before the signal
                (lost if before else results)[type(error).__name__] += 1
                return
            results[str(status)] += 1
            if status == 503:
                return

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await asyncio.sleep(2)
    told_at = time.perf_counter()
    process.terminate()
    async with asyncio.timeout(60):
        await asyncio.gather(*clients)
        code = await asyncio.to_thread(process.wait, 60)
    seconds = time.perf_counter() - told_at
    return {"results": dict(results), "lost": dict(lost), "exit code": code, "seconds to end": seconds}


def readiness(port: int) -> int:
    """Returns the status of /readyz; 0 without an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def kill_a_worker(process: psutil.Process, port: int) -> dict[str, float]:
    """Kills a worker. Returns after how many seconds /readyz noticed, and was ready again with as many workers."""
    workers = process.children()
    os.kill(workers[0].pid, signal.SIGKILL)
    begin = time.perf_counter()
    noticed = replaced = float("nan")
    while time.perf_counter() - begin < 60:
        status = readiness(port)
        seconds = time.perf_counter() - begin
        if noticed != noticed and status != 200:
            noticed = seconds
        alive = {one.pid for one in process.children()} - {workers[0].pid}
        if status == 200 and noticed == noticed and len(alive) == len(workers):
            replaced = seconds
            break
        time.sleep(0.05)
    return {"noticed after s": noticed, "replaced after s": replaced}


# --- all together -------------------------------------------------------------------------------------


def footprint(process: psutil.Process) -> dict[str, int]:
    """Returns memory, open files and threads of a server."""
    tree = [process, *process.children(recursive=True)]
    return {
        "bytes": tree_bytes(process),
        "files": sum(one.num_fds() for one in tree),
        "threads": sum(one.num_threads() for one in tree),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--engine", default="torch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = photos(16, size=(64, 48))
        model = write_model(folder / "model", "deit-digits-distilled-patch8-32", images)
        expected = expected_answers(Predictor.open(model, engine=args.engine), images)
        for number, image in enumerate(images):
            (folder / f"{number}.jpg").write_bytes(image)
        files = [str(folder / f"{number}.jpg") for number in range(len(images))]
        plan = {"host": "127.0.0.1", "path": "/v1/classify", "kind": "image/jpeg", "files": files, "expected": expected}
        (folder / "settings.yaml").write_text(PATIENCE)
        row = run_faults(args, model, plan, images, folder)
        row["workers"] = run_workers(args, model, folder)
    report("serving-faults", [row], write=args.count >= 10_000)
    sys.exit(0 if row["passed"] else 1)


def server(args: argparse.Namespace, model: Path, folder: Path, port: int, *more: str) -> list[str]:
    settings = ["--settings", str(folder / "settings.yaml"), "--max-batch", str(args.max_batch)]
    name = f"model={model}"
    return [sys.executable, "-m", "deit", "serve", name, "--port", str(port), "--engine", args.engine, *settings, *more]


def run_faults(args: argparse.Namespace, model: Path, plan: dict[str, Any], images: list[bytes], folder: Path) -> Any:
    port = free_port()
    sent = faults(args.count, args.seed, images)
    first = len(sent) // 5
    plan = {**plan, "port": port}
    ready = f"http://127.0.0.1:{port}/readyz"
    with running(server(args, model, folder, port), ready, folder / "server.log") as process:
        outcomes, wrong, tally = asyncio.run(with_good_requests(sent[:first], plan))
        before = footprint(process)
        rest, more, later = asyncio.run(with_good_requests(sent[first:], plan))
        time.sleep(2)
        after = footprint(process)
        for name, counts in rest.items():
            outcomes.setdefault(name, Counter()).update(counts)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        end = asyncio.run(end_under_load(process, plan))
    for name, counts in sorted(outcomes.items()):
        print(f"{name:26} {dict(counts.most_common(8))}")
    wrong += more
    print("\n".join(wrong[:20]))
    over = largest_batches(metrics, args.max_batch)
    good = len(tally["milliseconds"]) + len(later["milliseconds"])
    bad = [*tally["wrong"], *later["wrong"], *tally["lost"], *later["lost"]]
    refused = sum(count for one in (tally, later) for status, count in one["statuses"].items() if status != "200")
    row = {
        "faults": len(sent), "seed": args.seed, "max_batch": args.max_batch, "wrong": len(wrong),
        "wrong ones": wrong[:50],
        "good requests": good, "good requests refused": refused, "good requests lost or mixed up": bad[:20],
        "MiB before": before["bytes"] / 2**20, "MiB after": after["bytes"] / 2**20,
        "files": [before["files"], after["files"]],
        "threads": [before["threads"], after["threads"]], "batches over max_batch": over, "end": end,
        "outcomes": {name: dict(counts) for name, counts in outcomes.items()},
    }  # fmt: skip
    row["passed"] = (
        not wrong
        and not bad
        and not over
        and not end["lost"]
        and after["bytes"] <= GROWTH * before["bytes"]
        and good > 0
    )
    return row


def run_workers(args: argparse.Namespace, model: Path, folder: Path) -> dict[str, float]:
    port = free_port()
    command = server(args, model, folder, port, "--workers", "2")
    with running(command, f"http://127.0.0.1:{port}/readyz", folder / "workers.log") as process:
        return kill_a_worker(process, port)


def largest_batches(metrics: str, most: int) -> int:
    """Returns how many batches had more images than allowed, by /metrics; `most` must be one of its limits."""
    inside = total = 0.0
    for line in metrics.splitlines():
        if line.startswith("deit_batch_images_bucket"):
            limit, count = line.partition('le="')[2].partition('"')[0], float(line.rpartition(" ")[2])
            if limit == "+Inf":
                total += count
            elif float(limit) == most:
                inside += count
    return int(total - inside)


if __name__ == "__main__":
    main()

"""Workers that live but do not answer are replaced. Their processes here are small ones that only give signs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from deit.serve.process.draining import DrainingServer
from tests.serve.conftest import until

PARENT = """
import socket, sys
from deit.serve.process.workers import run_workers
with socket.socket() as bound:
    sys.exit(run_workers([sys.executable, "-c", *sys.argv[1:]], 2, bound, drain_seconds=5.0, stuck_seconds=1.0))
"""
# Gives signs until its file says that it must not.
CHILD = """
import os, pathlib, sys, time
from deit.serve.process.workers import this_worker
worker = this_worker()
file = pathlib.Path(sys.argv[1], f"{worker.number}-{os.getpid()}")
file.touch()
while True:
    if not file.read_text():
        worker.sign()
    time.sleep(0.05)
"""


@contextmanager
def workers(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(folder)])
    try:
        until(lambda: len(list(folder.iterdir())) == 2, 30)
        yield process
    finally:
        process.kill()
        process.wait(20)


@pytest.mark.parametrize("stuck", ["process", "model"])
def test_a_worker_that_lives_and_gives_no_sign_is_replaced(tmp_path, stuck) -> None:
    with workers(tmp_path) as parent:
        first, other = sorted(tmp_path.iterdir())
        pid = int(first.name.partition("-")[2])
        if stuck == "process":
            os.kill(pid, signal.SIGSTOP)
        else:
            first.write_text("stuck")
        until(lambda: len(list(tmp_path.glob("0-*"))) == 2, 30)
        with pytest.raises(ProcessLookupError):  # it was ended, and its end was waited for
            os.kill(pid, 0)
        assert list(tmp_path.glob("1-*")) == [other]
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(20) == 0


def test_a_worker_gives_no_sign_while_a_model_is_stuck() -> None:
    signs: list[str] = []
    problem = ""
    worker: Any = SimpleNamespace(sign=lambda: signs.append("well"), is_orphan=False)
    server = DrainingServer(uvicorn.Config(lambda: None), SimpleNamespace(), worker=worker, problem=lambda: problem)
    asyncio.run(server.on_tick(1))
    problem = "one call of the model has been running for 31 s"
    asyncio.run(server.on_tick(2))
    assert signs == ["well"]

"""`deit serve` with two workers: SIGHUP under load loses no request, and other classes are refused in every worker."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import deit
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.inference.predictor import Predictor
from tests.serve.live_server import solid

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")

IMAGE = solid((200, 90, 10))


def write_model(folder: Path, tiny_config, redraw, names: list[str], seed: int) -> float:
    """Writes a model; returns its score of the first class for `IMAGE`."""
    config = tiny_config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    model = redraw(deit.DeiTForImageClassification(config))
    for parameter in model.parameters():
        parameter.data *= 1 + seed
    model.save_pretrained(folder)
    DeiTImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder)
    answer = Predictor.open(folder, engine="torch").classify(IMAGE, top_k=9)
    assert not answer.error, answer.error
    return next(one.score for one in answer if one.label == names[0])


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(ConnectionError):
            if happened():
                return
        time.sleep(0.02)
    raise AssertionError("It did not happen.")


class Clients:
    """Asks all the time, and keeps what was answered."""

    def __init__(self, port: int) -> None:
        self.port, self.stop, self.bad = port, threading.Event(), []
        self.scores: list[float] = []
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(4)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        while not self.stop.is_set():
            try:
                status, answer = ask(self.port, "/v1/classify?top_k=9", IMAGE)
            except OSError as error:
                self.bad.append(repr(error))
                continue
            if status == 200:
                found = answer["results"][0]["predictions"]
                self.scores.append(next(one["score"] for one in found if one["label"] == "ant"))
            else:
                self.bad.append(answer)

    def wait_for(self, score: float, *, last: int = 20) -> None:
        """Waits until the newest answers all are of one model."""
        wait_until(lambda: len(self.scores) >= last and np.allclose(self.scores[-last:], score, atol=1e-5))


def says_other_classes(port: int) -> bool:
    return "the same in another order" in str(ask(port, "/readyz")[1].get("warnings"))


def replace(folder: Path, new: Path) -> None:
    folder.rename(folder.with_name("away"))
    new.rename(folder)
    shutil.rmtree(folder.with_name("away"))


@pytest.mark.slow
def test_models_are_replaced_under_load(tmp_path, tiny_config, redraw):
    served = tmp_path / "birds"
    first = write_model(served, tiny_config, redraw, ["ant", "bee", "cow", "dog", "elk"], 0)
    second = write_model(tmp_path / "second", tiny_config, redraw, ["ant", "bee", "cow", "dog", "elk"], 1)
    write_model(tmp_path / "third", tiny_config, redraw, ["ant", "cow", "bee", "dog", "elk"], 2)
    assert abs(first - second) > 1e-3
    command = [sys.executable, "-m", "deit", "serve", str(served), "--port", "0", "--workers", "2", "--engine", "torch"]
    said = tmp_path / "stderr"
    with said.open("wb") as file:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
    try:
        wait_until(lambda: "Listening" in said.read_text())
        port = int(re.search(r"Listening on .*:(\d+)", said.read_text())[1])
        wait_until(lambda: ask(port, "/readyz")[0] == 200)
        clients = Clients(port)
        clients.wait_for(first)
        replace(served, tmp_path / "second")
        server.send_signal(signal.SIGHUP)
        clients.wait_for(second)
        replace(served, tmp_path / "third")
        server.send_signal(signal.SIGHUP)
        # Each request reaches one of the workers; both refuse in the end, and stay ready.
        wait_until(lambda: all(says_other_classes(port) for _ in range(8)))
        assert ask(port, "/readyz")[0] == 200
        clients.wait_for(second)
        clients.stop.set()
        for thread in clients.threads:
            thread.join(30)
        assert clients.bad == []
        assert all(np.isclose(score, [first, second], atol=1e-5).any() for score in clients.scores)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()

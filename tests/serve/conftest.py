"""The whole server over real sockets, in a thread: its own protocol, guard and end. Clients send any bytes."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("starlette")

from PIL import Image

from deit.core.processing.image_processor import DeiTImageProcessor
from deit.inference.contract import Contract
from deit.inference.predictor import Predictor
from deit.serve.decoding import DecodingPool
from deit.serve.hosting.models import Models
from deit.serve.hosting.sources import ModelSource
from deit.serve.metrics import Metrics
from deit.serve.process.binding import bind
from deit.serve.running import run_server
from deit.serve.served_model import ServedModel
from deit.serve.settings import ServeSettings
from tests.inference.conftest import deit_directory as deit_directory

NAMES = ["ant", "bee", "cow"]
PROCESSOR = DeiTImageProcessor(
    size={"height": 8, "width": 8}, do_center_crop=False, image_mean=[0.0] * 3, image_std=[1.0] * 3
)


@dataclass
class MeanEngine:
    """Answers with the means of the three colors. Tests make it slow, stuck or broken; a poisonous image is all red."""

    contract: Contract = field(
        default_factory=lambda: Contract(processor=PROCESSOR, label_names=list(NAMES), image_size=(8, 8))
    )
    device = "cpu"
    precision = "fp32"
    name = "mean"
    batches: list[int] = field(default_factory=list)
    seconds: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    poisonous: bool = False
    threads: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, pixels: np.ndarray, /) -> dict[str, np.ndarray]:
        self.batches.append(len(pixels))
        self.threads.add(threading.get_ident())
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        means = pixels.mean((2, 3))
        if self.poisonous and (means == [1.0, 0.0, 0.0]).all(axis=1).any():
            raise RuntimeError("the secret of the engine")
        return {"class": 10 * means}


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return str(self.json["error"]["reason"])


@dataclass
class Served:
    """A running server."""

    port: int
    predictor: Predictor
    server: Any
    state: Any
    loop: asyncio.AbstractEventLoop

    @property
    def engine(self) -> Any:
        return self.predictor.engine

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(headers or {}))
            return read(connection)
        finally:
            connection.close()

    def classify(self, image: bytes, query: str = "", **headers: str) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", f"/v1/classify{query}", image, {"Content-Type": "image/png", **sent})

    def raw(self, data: bytes) -> socket.socket:
        """Sends bytes and leaves the connection open."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection


def read(connection: http.client.HTTPConnection) -> Reply:
    answer = connection.getresponse()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def read_all(connection: socket.socket) -> bytes:
    """Reads until the server closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def form(*files: tuple[str, bytes], **fields: str) -> tuple[bytes, dict[str, str]]:
    """Returns a multipart body and its headers."""
    parts = []
    for name, content in files:
        head = f'--part\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    for name, value in fields.items():
        parts.append(f'--part\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    return b"".join(parts) + b"--part--\r\n", {"Content-Type": "multipart/form-data; boundary=part"}


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return found


@contextmanager
def serving(
    predictor: Predictor, *, merged: Predictor | None = None, token: Any = None, **limits: Any
) -> Iterator[Served]:
    """Runs a server with one model, called "model"."""
    settings = ServeSettings(**{"port": 0, "max_wait_ms": 2.0, "decode_threads": 2, **limits})
    bound, box, started = bind(settings), {}, threading.Event()

    async def run() -> None:
        pool, metrics = DecodingPool(settings.decode_threads), Metrics()

        def open_model(source: ModelSource) -> ServedModel:
            return ServedModel(
                predictor,
                settings,
                pool=pool,
                measures=metrics,
                name=source.name,
                version=source.version,
                merged=merged,
            )

        models = Models([ModelSource(name="model", path="here")], open_model, metrics)
        serves = asyncio.create_task(
            run_server(
                models, settings, bound, pool=pool, measures=metrics, token=token,
                on_start=lambda server: box.update(server=server),
            )
        )  # fmt: skip
        while not (serves.done() or ("server" in box and box["server"].started)):
            await asyncio.sleep(0.005)
        box["loop"] = asyncio.get_running_loop()
        started.set()
        await serves

    def begin() -> None:
        try:
            asyncio.run(run())
        except Exception as error:  # noqa: BLE001  # the test raises it
            box["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=begin, daemon=True)
    port = bound.getsockname()[1]
    thread.start()
    assert started.wait(60)
    if "error" in box:
        raise box["error"]
    try:
        yield Served(port, predictor, box["server"], box["server"]._state, box["loop"])
    finally:
        if hasattr(predictor.engine, "gate"):
            predictor.engine.gate.set()
        box["server"].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server with the engine of means and default limits."""
    with serving(Predictor(MeanEngine())) as running:
        yield running

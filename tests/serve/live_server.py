"""A server in a thread, on a port of its own, and a client that sends any bytes."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from deit.core.processing.image_processor import DeiTImageProcessor
from deit.inference.predictor import Predictor
from deit.serve.app import make_app
from deit.serve.decoding import DecodingPool
from deit.serve.hosting.models import Models
from deit.serve.hosting.sources import ModelSource, read_sources
from deit.serve.http.authorization import Token
from deit.serve.metrics import Metrics
from deit.serve.served_model import ServedModel
from deit.serve.settings import ServeSettings

CLASSES = ["red", "green", "blue"]


def color_predictor(path: str = "") -> Predictor:
    """Returns a model whose logits are ten times the mean of each color of 8 x 8 pixels."""
    processor = DeiTImageProcessor(
        size={"height": 8, "width": 8}, do_center_crop=False, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    return Predictor(lambda pixels: 10 * pixels.mean((2, 3)), processor, CLASSES)


class LiveServer:
    """What runs: its address, models and application."""

    def __init__(self, port: int, models: Models, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.port, self.models, self.app, self._loop = port, models, app, loop

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Sends a request and returns status, headers in lower case, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            content = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, content, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def ask_json(self, method: str, path: str, body: bytes | dict[str, Any] | None = None, **headers: str) -> Any:
        """The same with the JSON of the answer in place of its bytes and without its headers."""
        status, _, content = self.ask(method, path, body, headers)
        return status, json.loads(content) if content else None

    def run(self, coroutine: Any) -> Any:
        """Runs a coroutine in the loop of the server."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


@contextmanager
def live_server(
    arguments: tuple[str, ...] = ("colors=here",),
    open_predictor: Callable[[str], Predictor] = color_predictor,
    token: str = "",
    **settings: Any,
) -> Iterator[LiveServer]:
    """Runs a server with the models of the arguments.

    Args:
        arguments: As `deit serve` takes them.
        open_predictor: Opens the path of one.
        token: That requests must carry; empty for none.
        **settings: Of `ServeSettings`.
    """
    chosen = ServeSettings(port=0, max_wait_ms=1, **settings)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    started: threading.Event = threading.Event()
    box: dict[str, Any] = {}

    async def run() -> None:
        pool, metrics = DecodingPool(2), Metrics()

        def open_model(source: ModelSource) -> ServedModel:
            opened = open_predictor(source.path)
            return ServedModel(opened, chosen, pool=pool, measures=metrics, name=source.name, version=source.version)

        models = Models(read_sources(list(arguments)), open_model, metrics)
        await models.start()
        app = make_app(models, chosen, pool=pool, measures=metrics, token=Token(token) if token else None)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, http="httptools", ws="none"))
        box.update(models=models, app=app, loop=asyncio.get_running_loop(), server=server)
        serving = asyncio.create_task(server.serve([bound]))
        while not server.started:
            await asyncio.sleep(0.005)
        started.set()
        await serving

    def begin() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            box["error"] = error
            raise
        finally:
            started.set()

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    assert started.wait(60)
    assert "error" not in box, box["error"]
    try:
        yield LiveServer(bound.getsockname()[1], box["models"], box["app"], box["loop"])
    finally:
        box["server"].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def solid(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    """Returns a PNG of one color."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def expected_scores(*colors: tuple[int, int, int]) -> np.ndarray:
    """Returns the probabilities of `color_predictor` by hand."""
    logits = 10 * np.array(colors, np.float64) / 255
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

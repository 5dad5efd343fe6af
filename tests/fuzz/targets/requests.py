"""Requests to `deit serve`, as its application is given them: no socket, and the real routes, limits and models.

An input is a request as clients send it: a line, headers, an empty line, the body.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

from tests.fuzz.changes import of_bytes, of_json
from tests.fuzz.driver import Target
from tests.fuzz.targets.models import good_model
from tests.fuzz.targets.tables import small_image

_MOST_BODY = 2**20
_FRAME = b"Inference-Header-Content-Length"


class ServerError(Exception):
    """The server answered with 500, or not as HTTP answers."""


class _Server:
    """The application and its event loop, for the lifetime of the process."""

    def __init__(self) -> None:
        from deit.inference.predictor import Predictor
        from deit.serve.app import make_app
        from deit.serve.decoding import DecodingPool
        from deit.serve.hosting.models import Models
        from deit.serve.hosting.sources import ModelSource
        from deit.serve.metrics import Metrics
        from deit.serve.served_model import ServedModel
        from deit.serve.settings import ServeSettings
        from deit.serve.state import SERVING

        settings = ServeSettings(max_wait_ms=0.0, decode_threads=1, max_request_bytes=_MOST_BODY, request_seconds=5.0)
        pool, metrics = DecodingPool(1), Metrics()

        def opened(source: ModelSource) -> ServedModel:
            predictor = Predictor.open(source.path, device="cpu", engine="torch")
            names = {"name": source.name, "version": source.version}
            return ServedModel(predictor, settings, pool=pool, measures=metrics, **names)

        self.loop = asyncio.new_event_loop()
        models = Models([ModelSource(name="model", path=str(good_model()))], opened, metrics)
        self.app = make_app(models, settings, pool=pool, measures=metrics)
        self.loop.run_until_complete(models.start())
        self.app.state.deit.phase = SERVING

    def ask(self, scope: MutableMapping[str, Any], body: bytes) -> int:
        """Returns the status of the answer."""
        return self.loop.run_until_complete(self._ask(scope, body))

    async def _ask(self, scope: MutableMapping[str, Any], body: bytes) -> int:
        parts = [body[:7], body[7:]]
        status: list[int] = []
        ended = asyncio.Event()

        async def receive() -> MutableMapping[str, Any]:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
                for name, value in message["headers"]:
                    if b"\n" in name + value or b"\r" in name + value:
                        raise ServerError(f"a header of two lines: {name!r}: {value!r}")

        try:
            await asyncio.wait_for(self.app(scope, receive, send), 20)
        finally:
            ended.set()
        if len(status) != 1:
            raise ServerError(f"{len(status)} answers")
        return status[0]


server = cache(_Server)


def _read(data: bytes, folder: Path) -> None:
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.split(b"\r\n")
    method, _, address = line.partition(b" ")
    path, _, query = address.partition(b" ")[0].partition(b"?")
    headers = [(n.strip().lower(), v.strip()) for n, colon, v in (each.partition(b":") for each in rest) if colon]
    headers = [each for each in headers if each[0] != b"content-length"]  # the parser of HTTP has checked it
    scope = {
        "type": "http", "http_version": "1.1", "method": method.decode("latin-1"), "scheme": "http",
        "path": unquote(path.decode("latin-1")), "raw_path": path, "query_string": query, "root_path": "",
        "headers": [*headers, (b"content-length", b"%d" % len(body))], "client": ("127.0.0.1", 1), "server": ("a", 80),
    }  # fmt: skip
    errors: list[BaseException] = []
    with _logged(errors):
        status = server().ask(scope, body)
    if status == 500:
        raise errors[0] if errors else ServerError("status 500")


class _logged:  # noqa: N801  # used as a function
    """Collects the errors that the server writes into its log."""

    def __init__(self, errors: list[BaseException]) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        from deit.serve.http import guard

        self._logger, self._error = guard.logger, guard.logger.error
        self._logger.error = lambda *_, exc_info=None, **__: self._errors.append(exc_info)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._logger.error = self._error  # type: ignore[method-assign]


def _change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes the head, the JSON or the bytes of the body."""
    head, gap, body = data.partition(b"\r\n\r\n")
    kind = random.randrange(6)
    if kind == 0 or not gap:
        return of_bytes(random, data, others)
    if kind == 1:
        return of_bytes(random, head, others) + gap + body
    if body[:1] == b"{":
        frames = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.startswith(_FRAME)]
        length = int(frames[0]) if frames and frames[0].isdigit() else len(body)
        changed = of_json(random, body[:length], others)
        if random.randrange(5):
            head = head.replace(b"%s:%d" % (_FRAME, length), b"%s:%d" % (_FRAME, len(changed)))
        rest = body[length:] if random.randrange(3) else of_bytes(random, body[length:])
        return head + gap + changed + rest
    return head + gap + of_bytes(random, body, others)


def _request(line: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [line, *(f"{name.replace('_', '-')}:{value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _seeds_v1() -> Mapping[str, bytes]:
    image = small_image()
    items = [{"name": "a.png", "data": base64.b64encode(image).decode()}]
    part = b'--p\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    form = (
        part % (b"file", b'; filename="a.png"\r\nContent-Type: image/png', image)
        + part % (b"top_k", b"", b"2")
        + b"--p--\r\n"
    )
    options = {"top_k": 2, "heads": True, "embedding": True, "model": "model", "version": "1"}
    return {
        "raw": _request(
            "POST /v1/classify?top_k=2&heads=1 HTTP/1.1", image, Content_Type="image/png", X_Deadline_Ms="900"
        ),
        "json": _request(
            "POST /v1/classify HTTP/1.1",
            json.dumps({"images": items, **options}).encode(),
            Content_Type="application/json",
        ),
        "form": _request("POST /v1/classify HTTP/1.1", form, Content_Type="multipart/form-data; boundary=p"),
        "coverage": _request(
            "POST /v1/classify?coverage=90&sets=lac&abstain=1 HTTP/1.1", image, Content_Type="image/png"
        ),
        "explain": _request("POST /v1/classify?explain=relevance&explain_score=1 HTTP/1.1", image),
        "models": _request("GET /v1/models HTTP/1.1", X_Request_Id="a-1"),
        "page": _request("GET /page/app.js HTTP/1.1"),
        "metrics": _request("GET /metrics HTTP/1.1", Accept="text/plain"),
    }


def _seeds_v2() -> Mapping[str, bytes]:
    pixels = [0.5] * (3 * 8 * 8)
    encoded = base64.b64encode(small_image()).decode()
    image = small_image()
    framed = {
        "inputs": [
            {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8], "parameters": {"binary_data_size": 768}}
        ],
        "outputs": [
            {"name": "scores", "parameters": {"binary_data": True}},
            {"name": "labels", "parameters": {"classification": 2}},
        ],
    }
    head = json.dumps(framed).encode()
    image_head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "datatype": "BYTES",
                    "shape": [1],
                    "parameters": {"binary_data_size": len(image) + 4},
                }
            ]
        }
    ).encode()
    tensor = {"id": "a", "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": pixels}]}
    texts = {
        "inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": [encoded]}],
        "parameters": {"timeout": 900000},
    }
    uint8 = {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [[[[1, 2, 3]] * 2] * 2]}]
    }
    line = "POST /v2/models/model/infer HTTP/1.1"
    return {
        "tensor": _request(line, json.dumps(tensor).encode(), Content_Type="application/json"),
        "texts": _request("POST /v2/models/model/versions/1/infer HTTP/1.1", json.dumps(texts).encode()),
        "uint8": _request(line, json.dumps(uint8).encode()),
        "binary": _request(line, head + struct.pack("<f", 0.5) * 192, Inference_Header_Content_Length=str(len(head))),
        "image": _request(
            line,
            image_head + struct.pack("<I", len(image)) + image,
            Inference_Header_Content_Length=str(len(image_head)),
        ),
        "gzip": _request(line, gzip.compress(json.dumps(texts).encode(), mtime=0), Content_Encoding="gzip"),
        "about": _request("GET /v2/models/model HTTP/1.1"),
        "index": _request("POST /v2/repository/index HTTP/1.1", b'{"ready": true}'),
    }


TARGETS = (
    Target(name="requests_v1", read=_read, change=_change, seeds=_seeds_v1, prepare=server),
    Target(name="requests_v2", read=_read, change=_change, seeds=_seeds_v2, prepare=server),
)

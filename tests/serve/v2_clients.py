"""Asks a server with the unmodified clients of Triton and KServe, and compares with what is expected.

It imports nothing of this package, so that it runs where only the clients are installed: `tests.serve.v2_conformance`.
Usage: python v2_clients.py URL FOLDER, where FOLDER holds first.png, second.png, pixels.npy and expected.json.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import tritonclient.http
import tritonclient.http.aio
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException


class Case:
    """What is sent, and what must come back."""

    def __init__(self, folder: Path) -> None:
        self.files = [(folder / name).read_bytes() for name in ("first.png", "second.png")]
        self.pixels = np.load(folder / "pixels.npy")
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        self.model, self.classes = expected["model"], expected["classes"]
        self.scores = np.array(expected["scores"])
        self.best = [self.classes[number] for number in self.scores.argmax(1)]
        self.objects = np.empty(len(self.files), object)
        self.objects[:] = self.files

    def check(self, scores: np.ndarray, labels: np.ndarray | None = None) -> None:
        np.testing.assert_allclose(scores, self.scores, atol=1e-4)
        if labels is not None:
            found = [label.decode() if isinstance(label, bytes) else label for label in labels]
            assert found == self.best, found


def triton_input(case: Case, kind: str, *, binary: bool = True):
    if kind == "image":
        sent = tritonclient.http.InferInput("image", [2], "BYTES")
        texts = np.array([base64.b64encode(file).decode() for file in case.files], object)
        sent.set_data_from_numpy(case.objects if binary else texts, binary_data=binary)
    elif kind == "pixels":
        sent = tritonclient.http.InferInput("pixels", list(case.pixels.shape), "FP32")
        sent.set_data_from_numpy(case.pixels, binary_data=binary)
    else:
        array = np.zeros((1, 4, 6, 3), np.uint8)
        sent = tritonclient.http.InferInput("array", [1, 4, 6, 3], "UINT8")
        sent.set_data_from_numpy(array, binary_data=binary)
    return [sent]


def ask_triton(address: str, case: Case) -> None:
    client = tritonclient.http.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(case.model)
    assert client.is_model_ready(case.model, "1")
    assert not client.is_model_ready("no-such-model")
    assert set(client.get_server_metadata()) == {"name", "version", "extensions"}
    metadata = client.get_model_metadata(case.model, "1")
    assert metadata["name"] == case.model
    assert {one["name"] for one in metadata["inputs"]} == {"image", "array", "pixels"}
    for kind in ("image", "pixels"):
        for binary in (True, False):
            answer = client.infer(case.model, triton_input(case, kind, binary=binary), request_id="17")
            case.check(answer.as_numpy("scores"), answer.as_numpy("labels"))
            assert answer.get_response()["id"] == "17"
            assert answer.as_numpy("logits").shape == case.scores.shape
    assert client.infer(case.model, triton_input(case, "array")).as_numpy("scores").shape == (1, len(case.classes))
    for encoding in ("gzip", "deflate"):
        answer = client.infer(
            case.model,
            triton_input(case, "image"),
            request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        )
        case.check(answer.as_numpy("scores"))
    outputs = [tritonclient.http.InferRequestedOutput("scores", binary_data=False)]
    case.check(client.infer(case.model, triton_input(case, "image"), "1", outputs).as_numpy("scores"))
    for binary in (True, False):
        outputs = [tritonclient.http.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
        found = client.infer(case.model, triton_input(case, "image"), outputs=outputs).as_numpy("scores")
        texts = [text.decode() if isinstance(text, bytes) else text for text in found[:, 0]]
        assert [text.split(":")[2] for text in texts] == case.best, texts
    refuse_triton(client, case)
    pending = client.async_infer(case.model, triton_input(case, "image"), timeout=10_000_000)
    case.check(pending.get_result().as_numpy("scores"))
    index = client.get_model_repository_index()
    assert {"name": case.model, "version": "1", "state": "READY", "reason": ""} in index
    client.load_model(case.model)
    client.close()


def refusal(call: Callable[[], object], kind: type[Exception]):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("Nothing was refused.")


def refuse_triton(client, case: Case) -> None:
    wrong = tritonclient.http.InferInput("pixels", [1, 3, 2, 2], "INT32")
    wrong.set_data_from_numpy(np.zeros((1, 3, 2, 2), np.int32))
    damaged = tritonclient.http.InferInput("image", [1], "BYTES")
    damaged.set_data_from_numpy(np.array([b"not an image"], object))
    for call, word in [
        (lambda: client.infer("no-such-model", triton_input(case, "image")), "no-such-model"),
        (lambda: client.infer(case.model, [wrong]), "datatype"),
        (lambda: client.infer(case.model, [damaged]), "unreadable_image"),
        (lambda: client.unload_model(case.model), "not_allowed"),
        (lambda: client.load_model(case.model, config="{}"), "config"),
        (lambda: client.get_model_config(case.model), "not_found"),
    ]:
        told = refusal(call, InferenceServerException)
        assert word in told.message(), told
        assert told.status() not in (None, "500"), told


async def ask_triton_without_waiting(address: str, case: Case) -> None:
    async with tritonclient.http.aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        answers = await asyncio.gather(*(client.infer(case.model, triton_input(case, "image")) for _ in range(4)))
        for answer in answers:
            case.check(answer.as_numpy("scores"), answer.as_numpy("labels"))


async def ask_kserve(url: str, case: Case) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, case.model)
        assert not await client.is_model_ready(url, "no-such-model")
        image = InferInput("image", [2], "BYTES")
        image.set_data_from_numpy(case.objects)
        text = InferInput("image", [2], "BYTES", [base64.b64encode(file).decode() for file in case.files])
        pixels = InferInput("pixels", list(case.pixels.shape), "FP32")
        pixels.set_data_from_numpy(case.pixels, binary_data=True)
        numbers = InferInput("pixels", list(case.pixels.shape), "FP32", case.pixels.tolist())
        binary = [RequestedOutput("scores", {"binary_data": True}), RequestedOutput("labels", {"binary_data": True})]
        for sent in (image, text, pixels, numbers):
            for outputs in (None, binary):
                request = InferRequest(case.model, [sent], request_id="18", request_outputs=outputs)
                answer = await client.infer(url, request, case.model, headers={})
                found = {output.name: output.as_numpy() for output in answer.outputs}
                case.check(found["scores"], found["labels"])
                assert answer.id == "18"
        damaged = InferInput("image", [1], "BYTES", ["bm8="])
        told = None
        try:
            await client.infer(url, InferRequest(case.model, [damaged], request_id="19"), case.model)
        except httpx.HTTPStatusError as error:
            told = error
        assert "unreadable_image" in str(told), told


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    case, address = Case(folder), url.removeprefix("http://")
    ask_triton(address, case)
    asyncio.run(ask_triton_without_waiting(address, case))
    asyncio.run(ask_kserve(url, case))
    print(f"tritonclient {version('tritonclient')} and kserve {version('kserve')} agree.")


if __name__ == "__main__":
    main()

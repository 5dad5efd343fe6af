"""The Open Inference Protocol v2 over HTTP: what the protocol says, and hostile requests, which never are a bug."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib

import numpy as np
import pytest

from tests.serve.live_server import CLASSES, expected_scores, live_server, solid

RED, BLUE = (200, 10, 10), (10, 20, 220)
INFER = "/v2/models/colors/infer"


@pytest.fixture(scope="module")
def server():
    with live_server(("colors=one", "colors@3=three", "other=x"), max_images=4) as running:
        yield running


def packed(*files: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def binary_request(binary: bytes, tensor: dict, **more) -> tuple[bytes, dict[str, str]]:
    tensor = {**tensor, "parameters": {"binary_data_size": len(binary)}}
    header = json.dumps({"inputs": [tensor], **more}).encode()
    return header + binary, {"Inference-Header-Content-Length": str(len(header))}


IMAGES = {"name": "image", "datatype": "BYTES", "shape": [2]}


def scores_in(outputs: list[dict]) -> np.ndarray:
    (found,) = [one for one in outputs if one["name"] == "scores"]
    return np.array(found["data"]).reshape(found["shape"])


# --- the protocol ----------------------------------------------------------------------------------


def test_the_server_tells_about_itself_and_its_models(server):
    assert server.ask_json("GET", "/v2/health/live") == (200, {"live": True})
    assert server.ask_json("GET", "/v2/health/ready") == (200, {"ready": True})
    status, about = server.ask_json("GET", "/v2")
    assert status == 200
    assert about["name"] == "deit"
    assert set(about) == {"name", "version", "extensions"}
    assert server.ask_json("GET", "/v2/models/colors/ready") == (200, {"name": "colors", "ready": True})
    status, model = server.ask_json("GET", "/v2/models/colors")
    assert status == 200
    assert model["versions"] == ["3", "1"]
    assert model["inputs"][0] == {"name": "image", "datatype": "BYTES", "shape": [-1]}
    assert model["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}
    assert server.ask_json("GET", "/v2/models/colors/versions/1")[1]["versions"] == ["1"]


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
def test_a_model_or_version_that_is_not_there_is_not_found(server, path):
    for address in (f"/v2/models/birds{path}", f"/v2/models/colors/versions/2{path}"):
        status, answer = server.ask_json("POST" if path == "/infer" else "GET", address, {})
        assert status == 404
        assert "unknown" in answer["error"]
        assert list(answer) == ["error"]


def test_a_queue_that_is_shorter_than_a_request_may_be_is_its_limit():
    with live_server(max_queue=2) as server:
        assert server.ask_json("GET", "/v1/models")[1]["limits"]["max_images"] == 2
        status, answer = server.ask_json("POST", INFER, {"inputs": [{**IMAGES, "shape": [3], "data": []}]})
    assert status == 413  # before its data are looked at
    assert answer["error"].startswith("too_many_images: ")


def test_files_in_json_and_as_bytes_are_answered_alike(server):
    files = [solid(RED), solid(BLUE, (31, 17))]
    data = [base64.b64encode(file).decode() for file in files]
    status, answer = server.ask_json("POST", INFER, {"id": "7", "inputs": [{**IMAGES, "data": data}]})
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("colors", "3", "7")
    np.testing.assert_allclose(scores_in(answer["outputs"]), expected_scores(RED, BLUE), atol=1e-5)
    assert answer["outputs"][2] == {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["red", "blue"]}

    body, headers = binary_request(packed(*files), IMAGES, parameters={"binary_data_output": True})
    status, told, content = server.ask("POST", INFER, body, headers)
    assert status == 200
    assert told["content-type"] == "application/octet-stream"
    length = int(told["inference-header-content-length"])
    outputs = {one["name"]: one for one in json.loads(content[:length])["outputs"]}
    assert outputs["scores"]["parameters"] == {"binary_data_size": 24}
    np.testing.assert_allclose(
        np.frombuffer(content, "<f4", 6, length).reshape(2, 3), expected_scores(RED, BLUE), atol=1e-5
    )
    assert content.endswith(b"\x03\0\0\0red\x04\0\0\0blue")


def test_arrays_go_through_the_preprocessing_and_pixels_do_not(server):
    colors = np.array([RED, BLUE], np.uint8)
    arrays = np.broadcast_to(colors[:, None, None], (2, 5, 9, 3)).copy()
    body, headers = binary_request(arrays.tobytes(), {"name": "array", "datatype": "UINT8", "shape": [2, 5, 9, 3]})
    status, _, content = server.ask("POST", INFER, body, headers)
    assert status == 200, content
    np.testing.assert_allclose(scores_in(json.loads(content)["outputs"]), expected_scores(RED, BLUE), atol=1e-5)
    pixels = np.broadcast_to(colors[:, :, None, None] / 255, (2, 3, 8, 8)).astype("<f4")
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [2, 3, 8, 8]}
    body, headers = binary_request(pixels.tobytes(), tensor)
    as_bytes = json.loads(server.ask("POST", INFER, body, headers)[2])
    as_json = server.ask_json("POST", INFER, {"inputs": [{**tensor, "data": pixels.tolist()}]})[1]
    for answer in (as_bytes, as_json):
        np.testing.assert_allclose(scores_in(answer["outputs"]), expected_scores(RED, BLUE), atol=1e-5)
    logits = np.array(as_json["outputs"][1]["data"]).reshape(2, 3)
    np.testing.assert_allclose(logits, colors / 25.5, atol=1e-4)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests_are_answered(server, encoding, pack):
    body, headers = binary_request(packed(solid(RED), solid(BLUE)), IMAGES)
    status, _, content = server.ask("POST", INFER, pack(body), {**headers, "Content-Encoding": encoding})
    assert status == 200
    np.testing.assert_allclose(scores_in(json.loads(content)["outputs"]), expected_scores(RED, BLUE), atol=1e-5)


def test_the_classification_extension_names_the_best_classes(server):
    data = [base64.b64encode(solid(color)).decode() for color in (RED, BLUE)]
    outputs = [{"name": "scores", "parameters": {"classification": 2}}]
    answer = server.ask_json("POST", INFER, {"inputs": [{**IMAGES, "data": data}], "outputs": outputs})[1]
    (output,) = answer["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    for text, expected in zip(output["data"][::2], expected_scores(RED, BLUE).max(1), strict=True):
        value, number, name = text.split(":")
        assert float(value) == pytest.approx(expected, abs=1e-5)
        assert CLASSES[int(number)] == name


# --- hostile ---------------------------------------------------------------------------------------

BOMB = gzip.compress(b" " * 70_000_000, 1, mtime=0)
HUGE = {"Inference-Header-Content-Length": "99999999999"}
GOOD, GOOD_HEADERS = binary_request(packed(solid(RED), solid(BLUE)), IMAGES)


@pytest.mark.parametrize(
    ("body", "headers", "status", "word"),
    [
        (b"", {}, 400, "bad_json"),
        (b"[" * 10_000_000, {}, 400, "bad_json"),
        (b'{"inputs":' + b"[" * 10_000_000, {}, 400, "bad_json"),
        (b'{"inputs":' + b'{"a":' * 2_000_000, {}, 400, "bad_json"),
        (gzip.compress(b"{" + b" " * 17_000_000, 1), {"Content-Encoding": "gzip"}, 413, "json_too_large"),
        (GOOD, {}, 400, "Inference-Header-Content-Length"),
        (GOOD, HUGE, 400, "bad_header_length"),
        (GOOD[:-1], GOOD_HEADERS, 400, "wrong_size"),
        (GOOD + b"x", GOOD_HEADERS, 400, "wrong_size"),
        (GOOD, {**GOOD_HEADERS, "Content-Encoding": "gzip"}, 400, "damaged_body"),
        (GOOD, {**GOOD_HEADERS, "Content-Encoding": "br"}, 415, "unsupported_encoding"),
        (BOMB, {"Content-Encoding": "gzip"}, 413, "too_large"),
        (GOOD, {**GOOD_HEADERS, "X-Deadline-Ms": "soon"}, 400, "bad_deadline"),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["bm8="]}]}',
            {},
            422,
            "unreadable",
        ),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}]}', {}, 422, "unreadable"),
        (
            b'{"id": 1, "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["bm8="]}]}',
            {},
            400,
            "id",
        ),
    ],
)
def test_a_hostile_request_gets_a_reason(server, body, headers, status, word):
    found, _, content = server.ask("POST", INFER, body, headers)
    assert found == status, content[:300]
    assert word in json.loads(content)["error"]
    assert len(content) < 2000


def test_random_changes_of_a_request_never_are_a_bug(server):
    """Bytes of a good request are changed at random: an answer or a reason, and the server goes on."""
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        body = bytearray(GOOD)
        for place in random.integers(0, len(GOOD) if random.random() < 0.3 else 120, random.integers(1, 4)):
            body[place] = random.integers(0, 256)
        status, _, content = server.ask("POST", INFER, bytes(body), GOOD_HEADERS)
        assert status in (200, 400, 413, 415, 422), content[:300]
        json.loads(content)
        seen.add(status)
    assert {200, 400} <= seen
    assert server.ask("POST", INFER, GOOD, GOOD_HEADERS)[0] == 200


def test_pixels_of_a_size_that_no_model_takes_are_no_bug():
    from deit.inference.contract import Contract
    from deit.inference.engines.engine import FunctionEngine
    from deit.inference.predictor import Predictor
    from tests.serve.live_server import color_predictor

    def sized(path: str) -> Predictor:
        plain = color_predictor()
        contract = Contract(processor=plain.processor, label_names=CLASSES, image_size=(8, 8))
        return Predictor(FunctionEngine(lambda pixels: 10 * pixels.mean((2, 3)), contract))

    with live_server(open_predictor=sized) as server:
        tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, 3, 8, 9], "data": [0.0] * 216}
        status, answer = server.ask_json("POST", INFER, {"inputs": [tensor]})
        assert (status, "wrong_shape" in answer["error"]) == (400, True)


def test_a_timeout_in_the_request_is_a_deadline(server):
    body = {"inputs": [{**IMAGES, "shape": [1], "data": [base64.b64encode(solid(RED)).decode()]}]}
    status, answer = server.ask_json("POST", INFER, {**body, "parameters": {"timeout": 1}})
    assert (status, "deadline" in answer["error"]) == (504, True)
    assert server.ask_json("POST", INFER, {**body, "parameters": {"timeout": 10_000_000}})[0] == 200
    assert server.ask_json("POST", INFER, {**body, "parameters": {"timeout": -1}})[0] == 400


# --- the repository --------------------------------------------------------------------------------


def test_models_are_listed_and_reloaded_and_unloaded_only_if_allowed(server):
    status, index = server.ask_json("POST", "/v2/repository/index", b"")
    assert status == 200
    assert index[0] == {"name": "colors", "version": "3", "state": "READY", "reason": ""}
    assert len(server.ask_json("POST", "/v2/repository/index", {"ready": True})[1]) == 3
    assert server.ask("POST", "/v2/repository/models/colors/load")[::2] == (200, b"")
    for body, word in [
        ({"parameters": {"config": "{}"}}, "config"),
        ({"parameters": {"file:1/model.onnx": "eA=="}}, "file:1"),
        ({"parameters": {"allow_other_classes": "yes"}}, "allow_other_classes"),
        ({"parameters": [1]}, "parameters"),
    ]:
        status, answer = server.ask_json("POST", "/v2/repository/models/colors/load", body)
        assert status == 400
        assert word in answer["error"]
    for path in ("load", "unload"):
        assert server.ask_json("POST", f"/v2/repository/models/birds/{path}", {})[0] == 404
    status, answer = server.ask_json("POST", "/v2/repository/models/colors/unload", {})
    assert (status, "allow_unload" in answer["error"]) == (403, True)


def test_an_unloaded_model_is_gone_until_it_is_loaded():
    with live_server(("colors=a", "other=b"), allow_unload=True) as server:
        assert server.ask("POST", "/v2/repository/models/colors/unload", b"{}")[0] == 200
        assert server.ask_json("GET", "/v2/models/colors/ready") == (503, {"name": "colors", "ready": False})
        assert server.ask_json("POST", INFER, {"inputs": []})[0] == 404
        assert server.ask_json("GET", "/v2/health/ready")[0] == 200
        assert server.ask("POST", "/v2/repository/models/colors/load")[0] == 200
        assert server.ask_json("GET", "/v2/models/colors/ready")[0] == 200


def test_several_workers_refuse_what_would_reach_only_one():
    with live_server(workers=2) as server:
        status, answer = server.ask_json("POST", "/v2/repository/models/colors/load")
        assert (status, "SIGHUP" in answer["error"]) == (409, True)


def test_phases_and_refusals_are_counted(server):
    server.ask("POST", INFER, GOOD, GOOD_HEADERS)
    server.ask("POST", "/v2/models/hackers-choice/infer", GOOD, GOOD_HEADERS)
    text = server.ask("GET", "/metrics")[2].decode()
    for name in ("decode_seconds_count", "queue_seconds_count", "compute_seconds_count", "batch_images_count"):
        assert f'deit_{name}{{model="colors",version="3"}}' in text
    assert "hackers-choice" not in text
    assert 'deit_refusals_total{model="unknown",reason="unknown_model",version=""}' in text
    assert 'route="/v2/models/{model}/versions/{version}/infer"' in text or 'route="/v2/models/{model}/infer"' in text
    assert "deit_models_ready 3.0" in text

"""`POST /v1/classify`: what it takes, what it answers, and that answers are those of `Predictor`."""

from __future__ import annotations

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from deit.inference.predictor import Predictor
from deit.serve.routes.openapi import document
from tests.serve.conftest import MeanEngine, form, png, read, read_all, serving
from tests.serve.test_openapi import check

RED, GREEN, BLUE = png((255, 0, 0)), png((0, 255, 0)), png((0, 0, 255))
JSON = {"Content-Type": "application/json"}


def softmax(*logits: float) -> list[float]:
    powers = np.exp(np.array(logits))
    return list(powers / powers.sum())


def test_an_image_is_answered_with_the_softmax_of_the_logits(served) -> None:
    reply = served.classify(GREEN, "?top_k=2")
    result = reply.json["results"][0]
    assert reply.status == 200
    assert (reply.json["model"], reply.json["version"]) == ("model", "1")
    assert [p["label"] for p in result["predictions"]] == ["bee", "ant"]
    assert [p["score"] for p in result["predictions"]] == pytest.approx(softmax(10, 0, 0)[:2], rel=1e-6)
    assert result["calibrated"] is False
    assert set(reply.json["timing_ms"]) == {"decode", "queue", "compute", "total"}


def test_forms_raw_bytes_and_json_are_the_same_request(served) -> None:
    body, headers = form(("a.png", RED), ("b.png", BLUE), top_k="1")
    as_form = served.ask("POST", "/v1/classify", body, headers).json["results"]
    images = [{"name": n, "data": base64.b64encode(i).decode()} for n, i in (("a.png", RED), ("b.png", BLUE))]
    as_json = served.ask("POST", "/v1/classify", json.dumps({"images": images, "top_k": 1}).encode(), JSON)
    assert as_form == as_json.json["results"]
    assert [(r["image"], r["predictions"][0]["label"]) for r in as_form] == [("a.png", "ant"), ("b.png", "cow")]
    raw = served.classify(RED, "?top_k=1").json["results"][0]
    assert raw["predictions"] == as_form[0]["predictions"]
    typed = served.ask("POST", "/v1/classify", RED, {"Content-Type": "application/octet-stream"})
    assert typed.status == 200


def test_one_unreadable_image_does_not_keep_the_others_back(served) -> None:
    body, headers = form(("a.png", RED), ("notes.txt", b"hello"), ("c.png", BLUE))
    reply = served.ask("POST", "/v1/classify", body, headers)
    assert reply.status == 200
    first, second, third = reply.json["results"]
    assert (first["predictions"][0]["label"], third["predictions"][0]["label"]) == ("ant", "cow")
    assert second["error"]["reason"] == "unreadable_image"
    assert second["predictions"] == []


def test_a_request_without_a_readable_image_is_422(served) -> None:
    reply = served.classify(b"hello")
    assert reply.status == 422
    assert reply.json["results"][0]["error"]["status"] == 422


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b'{"image": "/etc/passwd"}', JSON, 400, "no_image"),
        (b'{"images": ["/etc/passwd"]}', JSON, 400, "bad_json"),
        (b'{"images": [{"path": "/etc/passwd"}]}', JSON, 400, "bad_json"),
        (b'{"images": [{"data": "/etc/passwd"}]}', JSON, 400, "bad_base64"),
        (b'{"images": [{"data": "http://localhost/a.png"}]}', JSON, 400, "bad_base64"),
        (b'{"images": [{"data": "aGVsbG8=", "url": "http://localhost/"}]}', JSON, 400, "bad_json"),
        (b'{"images": [{"data": 7}]}', JSON, 400, "bad_json"),
        (b'{"images": {}}', JSON, 400, "no_image"),
        (b'{"images": []}', JSON, 400, "no_image"),
        (b"[" * 100_000, JSON, 400, "bad_json"),
        (b'{"images": [' + b"[]," * 60_000 + b"[]]}", JSON, 400, "bad_json"),
        (b"[]", JSON, 400, "bad_json"),
        (b"{", JSON, 400, "bad_json"),
        (b"\xff\xfe", JSON, 400, "bad_json"),
        (b"", {"Content-Type": "image/png"}, 400, "no_image"),
        (b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unknown_content_type"),
        (b"a", {"Content-Type": "multipart/form-data"}, 400, "bad_form"),
        (b"a", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "bad_form"),
        (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "no_image"),
        (form(("a", RED), ("b", RED))[0][:-20], form()[1], 400, "bad_form"),
        (form(a="0" * 5000)[0], form()[1], 400, "bad_form"),
        (b"a", {"Content-Type": "image/png", "Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
    ],
)
def test_bodies_that_are_no_images_are_refused_with_a_reason(served, body, headers, status, reason) -> None:
    reply = served.ask("POST", "/v1/classify", body, headers)
    assert (reply.status, reply.reason) == (status, reason)


def test_an_unknown_address_with_a_query_of_any_bytes_is_404(served) -> None:
    with served.raw(b"GET /v1/nothing?a=\xff\xfe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as connection:
        answer = read_all(connection)
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))
    assert b"server_error" not in answer


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("?top_k=0", 400, "bad_option"),
        ("?top_k=1.5", 400, "bad_option"),
        ("?top_k=many", 400, "bad_option"),
        ("?top_k=1_0", 400, "bad_option"),
        ("?top_k=1&top_k=2", 400, "bad_option"),
        ("?topk=1", 400, "unknown_option"),
        ("?url=http://localhost/a.png", 400, "unknown_option"),
        ("?coverage=nan", 400, "bad_option"),
        ("?coverage=200", 400, "bad_option"),
        ("?coverage=95", 400, "bad_option"),  # no calibration
        ("?abstain=perhaps", 400, "bad_option"),
        ("?explain_score=true", 400, "bad_option"),
        ("?explain=magic", 400, "bad_option"),
        ("?explain=relevance", 422, "cannot_explain"),
        ("?model=other", 404, "unknown_model"),
        ("?version=2", 404, "unknown_version"),
    ],
)
def test_options_are_strict(served, query, status, reason) -> None:
    before = len(served.engine.batches)
    reply = served.classify(RED, query)
    assert (reply.status, reply.reason) == (status, reason)
    assert len(served.engine.batches) == before  # nothing was computed


@pytest.mark.parametrize("value", ["0", "-5", "soon", "nan", "inf", ""])
def test_a_deadline_is_a_number_of_milliseconds(served, value) -> None:
    reply = served.classify(RED, X_Deadline_Ms=value)
    assert (reply.status, reply.reason) == (400, "bad_deadline")


def test_odd_images_are_images(served) -> None:
    frames = [Image.new("P", (9, 7), color) for color in (0, 1, 2)]
    animated, dot = io.BytesIO(), io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    Image.new("L", (1, 1), 255).save(dot, "PNG")
    assert served.classify(animated.getvalue()).status == 200
    assert served.classify(dot.getvalue()).json["results"][0]["predictions"][0]["score"] == pytest.approx(1 / 3)


def test_other_addresses_and_methods_are_refused_in_json(served) -> None:
    assert served.ask("GET", "/nowhere").reason == "not_found"
    reply = served.ask("GET", "/v1/classify")
    assert (reply.status, reply.reason) == (405, "method_not_allowed")


def test_models_say_what_they_are(served) -> None:
    (model,) = served.ask("GET", "/v1/models").json["models"]
    assert model["classes"] == ["ant", "bee", "cow"]
    assert (model["name"], model["version"], model["image_size"], model["heads"]) == ("model", "1", [8, 8], ["class"])
    assert model["calibrated"] is False


def test_answers_of_a_model_are_those_of_the_predictor_in_the_same_batch(deit_directory) -> None:
    predictor = Predictor.open(deit_directory(), engine="torch")
    random = np.random.default_rng(0)
    files = []
    for size in ((40, 30), (17, 90), (300, 200), (16, 16)):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    expected = predictor.classify(files, top_k=5)
    with serving(predictor, max_wait_ms=500.0, max_batch=4) as running:
        body, headers = form(*((f"{i}.jpg", file) for i, file in enumerate(files)), heads="true")
        results = running.ask("POST", "/v1/classify", body, headers).json["results"]
        singles = [running.classify(file, "?embedding=true").json["results"][0] for file in files[:2]]
    for result, wanted in zip(results, expected, strict=True):
        assert [p["label"] for p in result["predictions"]] == [p.label for p in wanted]
        assert [p["score"] for p in result["predictions"]] == [p.score for p in wanted]  # bit for bit
        assert set(result["heads"]) == {"class", "distillation"}
    for result, wanted in zip(singles, expected, strict=False):
        assert len(result["embedding"]) == 32
        assert [p["score"] for p in result["predictions"]] == pytest.approx([p.score for p in wanted], abs=1e-5)


def test_a_refusal_does_not_tell_where_the_model_lies(deit_directory) -> None:
    folder = deit_directory()
    with serving(Predictor.open(folder, engine="torch")) as running:
        message = running.classify(RED, "?coverage=95").json["error"]["message"]
    assert "The model model has no calibration.json" in message
    assert str(folder) not in message


def test_heads_are_the_softmax_of_each_head(deit_directory) -> None:
    predictor = Predictor.open(deit_directory(), engine="torch")
    with serving(predictor) as running:
        result = running.classify(GREEN, "?heads=true&top_k=5").json["results"][0]
    pixels = predictor.processor(Image.open(io.BytesIO(GREEN)), return_tensors="np").pixel_values
    for head, logits in predictor.engine(pixels).items():
        powers = np.exp(logits[0].astype(np.float64))
        wanted = dict(zip(predictor.label_names, powers / powers.sum(), strict=True))
        if head != "both":
            assert {p["label"]: p["score"] for p in result["heads"][head]} == pytest.approx(wanted, abs=1e-6)


def test_an_explanation_holds_a_map_for_each_block_of_each_head(deit_directory) -> None:
    predictor = Predictor.open(deit_directory(), engine="torch")
    with serving(predictor, explain_queue=1) as running:
        explained = running.classify(png((9, 200, 30), (20, 16)), "?explain=relevance&explain_score=true")
        too_many = running.ask("POST", "/v1/classify?explain=relevance", *form(("a", RED), ("b", RED)))
    found = explained.json["results"][0]["explanation"]
    assert (found["method"], found["grid"]) == ("relevance", [4, 4])
    assert {name: (len(maps), len(maps[0])) for name, maps in found["maps"].items()} == {
        "both": (2, 16), "class": (2, 16), "distillation": (2, 16)
    }  # fmt: skip
    assert set(found["score"]) == set(found["maps"])
    check({"$ref": "#/components/schemas/Explanation"}, found, document())
    assert (too_many.status, too_many.reason) == (413, "too_many_images")


def test_answers_are_never_mixed_up(served) -> None:
    colors = {"ant": RED, "bee": GREEN, "cow": BLUE}
    wrong: list[str] = []

    def ask(label: str) -> None:
        connection = served.connect()
        for _ in range(20):
            connection.request("POST", "/v1/classify?top_k=1", colors[label], {"Content-Type": "image/png"})
            found = read(connection).json["results"][0]["predictions"][0]["label"]
            if found != label:
                wrong.append(found)
        connection.close()

    threads = [threading.Thread(target=ask, args=(label,)) for label in colors for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert max(served.engine.batches) <= 16
    assert len(served.engine.threads) == 1


def test_a_model_that_answers_with_nan_is_said_to() -> None:
    class NanEngine(MeanEngine):
        def __call__(self, pixels, /):
            return {"class": np.full((len(pixels), 3), np.nan, np.float32)}

    with serving(Predictor(NanEngine())) as running:
        reply = running.classify(RED)
    assert reply.status == 500
    assert reply.json["results"][0]["error"]["reason"] == "no_number"

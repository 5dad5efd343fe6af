"""Batches across requests, the bounded queue, deadlines, clients that leave, and models that fail."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest

from deit.inference.predictor import Predictor
from deit.serve.batcher import Batcher
from deit.serve.settings import ServeSettings
from tests.serve.conftest import MeanEngine, form, png, serving, until

RED, GREEN, BLUE = png((255, 0, 0)), png((0, 255, 0)), png((0, 0, 255))


def closed(engine: MeanEngine) -> MeanEngine:
    """Lets the next call of the model wait for `engine.gate.set()`; forgets the warm-up."""
    engine.gate.clear()
    engine.batches.clear()
    return engine


def waiting(running) -> int:
    with running.state.models.borrow() as model:
        return model._room.used


def decoded(running) -> int:
    with running.state.models.borrow() as model:
        return model._batcher.waiting


def in_model(running) -> bool:
    return bool(running.engine.batches)


def test_requests_that_wait_share_a_batch() -> None:
    with serving(Predictor(MeanEngine()), max_batch=8) as running, ThreadPoolExecutor(8) as clients:
        engine = closed(running.engine)
        first = clients.submit(running.classify, RED)
        until(lambda: in_model(running))
        others = [clients.submit(running.classify, GREEN) for _ in range(5)]
        until(lambda: decoded(running) == 5)
        engine.gate.set()
        assert first.result().json["results"][0]["predictions"][0]["label"] == "ant"
        assert {each.result().json["results"][0]["predictions"][0]["label"] for each in others} == {"bee"}
        assert engine.batches == [1, 5]


def test_the_model_goes_on_with_a_full_batch_while_the_event_loop_is_busy() -> None:
    gate, calls = threading.Event(), []

    def model(pixels, features):
        calls.append(len(pixels))
        assert gate.wait(20)
        return {"logits": pixels[:, 0, 0]}

    async def run():
        batcher = Batcher(model, ServeSettings(max_batch=2), name="model", measures=Mock())
        batcher.start()
        images = [np.full((1, 3, 1, 2), value, np.float32) for value in range(4)]
        asked = [asyncio.create_task(batcher.submit(image)) for image in images]
        while batcher.waiting or not calls:
            await asyncio.sleep(0.01)
        gate.set()
        end = time.monotonic() + 10
        while len(calls) < 2 and time.monotonic() < end:
            time.sleep(0.01)  # not asyncio.sleep: nothing else runs in the event loop meanwhile
        begun = list(calls)
        answers = [(await each).outputs["logits"].tolist() for each in asked]
        await batcher.close()
        return begun, answers

    assert asyncio.run(run()) == ([2, 2], [[[value, value]] for value in range(4)])


def test_an_image_that_nobody_waits_for_any_more_is_neither_computed_nor_taken() -> None:
    gate, calls, taken = threading.Event(), [], []

    def model(pixels, features):
        calls.append(pixels[:, 0, 0, 0].tolist())
        assert gate.wait(20)
        return {"logits": pixels[:, 0, 0]}

    async def run():
        batcher = Batcher(model, ServeSettings(max_batch=2), name="model", measures=Mock())
        batcher.start()
        asked = [
            asyncio.create_task(batcher.submit(np.full((1, 3, 1, 2), i, np.float32), taken=partial(taken.append, i)))
            for i in range(4)
        ]
        while batcher.waiting or not calls:  # the thread has both batches
            await asyncio.sleep(0.01)
        asked[3].cancel()
        await asyncio.wait(asked[3:])
        gate.set()
        await asyncio.gather(*asked[:3])
        await batcher.close()

    asyncio.run(run())
    assert (calls, taken) == ([[0, 1], [2]], [0, 1, 2])


@pytest.mark.parametrize("most", [1, 3])
def test_a_request_with_more_images_than_a_batch_is_split_and_put_together_again(most) -> None:
    colors = [RED, GREEN, BLUE, GREEN, RED, BLUE, BLUE]
    body, headers = form(*((f"{i}.png", color) for i, color in enumerate(colors)))
    with serving(Predictor(MeanEngine()), max_batch=most, max_wait_ms=50.0) as running:
        running.engine.batches.clear()
        results = running.ask("POST", "/v1/classify", body, headers).json["results"]
    assert [r["predictions"][0]["label"] for r in results] == ["ant", "bee", "cow", "bee", "ant", "cow", "cow"]
    assert max(running.engine.batches) <= most
    assert sum(running.engine.batches) == len(colors)


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(status) -> None:
    limits = {"max_batch": 1, "max_queue": 2, "max_images": 2, "full_status": status}
    with serving(Predictor(MeanEngine()), **limits) as running, ThreadPoolExecutor(4) as clients:
        engine = closed(running.engine)
        accepted = [clients.submit(running.classify, RED)]
        until(lambda: in_model(running))
        accepted += [clients.submit(running.classify, RED) for _ in range(2)]
        until(lambda: waiting(running) == 2)
        refused = running.classify(RED)
        assert (refused.status, refused.reason) == (status, "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert running.ask("GET", "/healthz").status == 200
        engine.gate.set()
        assert [each.result().status for each in accepted] == [200] * 3
        assert running.classify(RED).status == 200


def test_a_request_with_too_many_images_is_refused_whole(served) -> None:
    body, headers = form(*((f"{i}.png", RED) for i in range(33)))
    reply = served.ask("POST", "/v1/classify", body, headers)
    assert (reply.status, reply.reason) == (413, "too_many_images")
    images = [{"data": "aGVsbG8="}] * 33
    reply = served.ask(
        "POST", "/v1/classify", json.dumps({"images": images}).encode(), {"Content-Type": "application/json"}
    )
    assert (reply.status, reply.reason) == (413, "too_many_images")


def test_work_past_its_deadline_is_not_computed() -> None:
    with serving(Predictor(MeanEngine()), max_batch=1) as running, ThreadPoolExecutor(2) as clients:
        engine = closed(running.engine)
        first = clients.submit(running.classify, RED)
        until(lambda: in_model(running))
        late = running.classify(GREEN, X_Deadline_Ms="50")  # answered while the model is still busy
        assert (late.status, late.reason) == (504, "deadline")
        engine.gate.set()
        assert first.result().status == 200
        assert running.classify(BLUE).status == 200
        assert len(engine.batches) == 2  # the first and the last


def test_requests_without_a_deadline_end_after_the_longest_time() -> None:
    with serving(Predictor(MeanEngine()), request_seconds=0.2) as running:
        closed(running.engine)
        assert running.classify(RED).reason == "deadline"


def test_work_of_clients_that_have_left_is_not_computed_and_batches_go_on() -> None:
    """As in Ray Serve #41057, where batches were broken for good after that."""
    with serving(Predictor(MeanEngine()), max_batch=2) as running, ThreadPoolExecutor(2) as clients:
        engine = closed(running.engine)
        first = clients.submit(running.classify, RED)
        until(lambda: in_model(running))
        head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(RED)}\r\n\r\n"
        gone = [running.raw(head.encode() + RED) for _ in range(20)]
        until(lambda: waiting(running) == 20)
        for connection in gone:
            connection.close()
        until(lambda: waiting(running) == 0)  # their room is free before the model is
        engine.gate.set()
        assert first.result().status == 200
        assert [running.classify(each).status for each in (GREEN, BLUE)] == [200, 200]
        assert engine.batches == [1, 1, 1]
        until(lambda: running.state.in_flight == 0)


def test_a_poisonous_image_fails_alone_and_tells_clients_nothing(caplog) -> None:
    with serving(Predictor(MeanEngine()), max_batch=4, max_wait_ms=300.0) as running:
        running.engine.poisonous = True
        with caplog.at_level(logging.WARNING, "deit.serve"):
            body, headers = form(("a.png", GREEN), ("bad.png", RED), ("c.png", BLUE), ("d.png", BLUE))
            reply = running.ask("POST", "/v1/classify", body, headers)
        alone = running.classify(RED)
        assert running.ask("GET", "/readyz").status == 200
    assert reply.status == 200
    results = reply.json["results"]
    assert [bool(r["predictions"]) for r in results] == [True, False, True, True]
    error = results[1]["error"]
    assert (error["status"], error["reason"]) == (500, "model_failed")
    assert b"secret" not in reply.body + alone.body
    assert alone.status == 500
    logged = [record for record in caplog.records if record.exc_info]
    assert "the secret of the engine" in str(logged[0].exc_info[1])
    assert error["message"].split()[-1].rstrip(".") in logged[0].getMessage()


def test_a_model_that_returns_too_few_rows_answers_nobody_wrongly() -> None:
    class Short(MeanEngine):
        def __call__(self, pixels, /):
            return {"class": super().__call__(pixels)["class"][: 1 if self.poisonous else None]}

    body, headers = form(("a.png", BLUE), ("b.png", GREEN))
    with serving(Predictor(Short()), max_wait_ms=300.0) as running:
        running.engine.poisonous = True
        found = running.ask("POST", "/v1/classify", body, headers).json["results"]
    assert [r["predictions"][0]["label"] for r in found] == ["cow", "bee"]  # asked again, one by one


def test_images_of_different_sizes_are_in_batches_of_their_own() -> None:
    class AnySize(MeanEngine):
        def __post_init__(self) -> None:
            super().__post_init__()
            object.__setattr__(self.contract, "image_size", None)

    engine = AnySize()
    engine.contract.processor.do_resize = False
    try:
        body, headers = form(*((f"{n}.png", png((0, 255, 0), (n, n))) for n in (8, 12, 8, 12)))
        with serving(Predictor(engine), max_wait_ms=200.0) as running:
            results = running.ask("POST", "/v1/classify", body, headers).json["results"]
        assert {r["predictions"][0]["label"] for r in results} == {"bee"}
    finally:
        engine.contract.processor.do_resize = True


def test_an_overloaded_server_merges_tokens_and_says_so(deit_directory) -> None:
    from deit.models.merging.switch import merge_tokens

    folder = deit_directory()
    whole, merged = Predictor.open(folder, engine="torch"), Predictor.open(folder, engine="torch")
    merge_tokens(merged.engine.model, 4)
    gate, calls = threading.Event(), []
    answer = whole.engine.__class__.__call__

    class Gated:
        contract, device, precision, name = whole.engine.contract, "cpu", "fp32", "torch"

        def __call__(self, pixels, /):
            calls.append(len(pixels))
            assert gate.wait(20)
            return answer(whole.engine, pixels)

    gate.set()
    image = png((200, 30, 90), (16, 16))
    options = {"merged": merged, "degrade": 4, "degrade_at": 0.5, "max_queue": 8, "max_images": 8, "max_batch": 4}
    with serving(Predictor(Gated()), **options) as running, ThreadPoolExecutor(8) as clients:
        calm = running.classify(image).json["results"][0]
        gate.clear()
        calls.clear()
        first = clients.submit(running.classify, image)
        until(lambda: calls)
        others = [clients.submit(running.classify, image) for _ in range(6)]
        until(lambda: waiting(running) == 6)
        gate.set()
        results = [each.result().json["results"][0] for each in (first, *others)]
    assert "merged" not in calm
    assert [r.get("merged", 0) for r in results].count(4) >= 4
    wanted = merged.classify(image, top_k=5)
    for result in results:
        if result.get("merged"):
            assert result["calibrated"] is False
            assert [p["score"] for p in result["predictions"]] == pytest.approx([p.score for p in wanted], abs=1e-5)
    assert np.abs(calm["predictions"][0]["score"] - wanted[0].score) > 1e-6

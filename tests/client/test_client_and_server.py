"""The clients against the real server, and its answers against those of `Predictor` itself."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("starlette")

from PIL import Image

import deit
from deit.client.errors import RefusedError
from deit.core.errors import ImageError
from tests.serve.live_server import LiveServer, color_predictor, live_server


def files(count: int) -> list[bytes]:
    found = []
    for seed in range(count):
        levels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).resize((20, 16)).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture(scope="module")
def server():
    with live_server() as running:
        yield running


def address(server: LiveServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def rows(told) -> list[list[tuple[str, float]]]:
    return [[(p.label, pytest.approx(p.score, abs=1e-6)) for p in one] for one in told]


def test_the_answers_are_those_of_the_predictor_in_the_same_order(server, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(files(1)[0])
    array = np.asarray(Image.open(path).convert("RGB"))
    images = [*files(70), path, str(path), Image.open(path), array, np.moveaxis(array, 2, 0)]
    expected = rows(color_predictor().classify(images, top_k=3))
    with deit.Client(address(server)) as client:
        told = client.classify(images, top_k=3)
    assert [[(p.label, p.score) for p in one] for one in told] == expected
    assert told[0].origin.model == "colors"

    async def ask():
        async with deit.AsyncClient(address(server), concurrency=3) as other:
            return await other.classify(images[:70], top_k=3, batch_size=8)

    assert [[(p.label, p.score) for p in one] for one in asyncio.run(ask())] == expected[:70]


def test_unreadable_images_have_their_errors_in_their_places(server):
    images = [files(1)[0], b"no image", files(2)[1], files(1)[0][:60]]
    with deit.Client(address(server)) as client:
        told = client.classify(images)
        both_bad = client.classify([images[1], images[3]])
        with pytest.raises(ImageError, match="standard input is not an image"):
            client.classify(images[1])
    assert [bool(one.error) for one in told] == [False, True, False, True]
    assert [one.error for one in both_bad] == [told[1].error, told[3].error]
    assert told[1].error.startswith("standard input is not an image (known: JPEG")


def test_requests_above_the_limit_of_the_server_are_divided(server):
    with deit.Client(address(server)) as client:
        told = client.classify(files(40), batch_size=40)  # a request holds 32 images
    assert len(told) == 40
    assert not any(one.error for one in told)


def test_what_the_server_does_not_know_is_refused_with_its_reason(server):
    image = files(1)[0]
    for wish, settings, reason in (
        ({"coverage": 95}, {}, "bad_option"),
        ({}, {"model": "cats"}, "unknown_model"),
        ({}, {"version": "9"}, "unknown_version"),
    ):
        with deit.Client(address(server), **settings) as client, pytest.raises(RefusedError) as caught:
            client.classify(image, **wish)
        assert caught.value.reason in (reason, "unknown_model"), caught.value


def test_a_deadline_that_is_over_is_an_error_of_time(server):
    with deit.Client(address(server), deadline=0.0005, retries=0) as client, pytest.raises(TimeoutError):
        client.classify(files(1)[0])


def test_the_models_are_listed_with_their_classes(server):
    with deit.Client(address(server)) as client:
        (model,) = client.models()
    assert (model["name"], model["classes"]) == ("colors", ["red", "green", "blue"])

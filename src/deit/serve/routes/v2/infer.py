"""Classifies images that come as a tensor of the Open Inference Protocol v2."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from deit.core.errors import shown
from deit.serve.answers import Answer, Wants
from deit.serve.http.limited_body import ByteRoom
from deit.serve.http.request_log import note
from deit.serve.http.request_options import deadline_of
from deit.serve.refusals import Refusal
from deit.serve.routes.v2.bodies import inflated, refuse, split
from deit.serve.routes.v2.outputs import LABELS, LOGITS, OUTPUTS, SCORES, Values, Wanted, wanted_outputs, written
from deit.serve.routes.v2.server import model_routes, named
from deit.serve.routes.v2.tensors import Images, Limits, input_kinds, parameters_of, read_images
from deit.serve.served_model import ServedModel
from deit.serve.state import State


def routes(state: State) -> list[BaseRoute]:
    """Returns the routes."""
    settings = state.settings
    limits = Limits(
        images=settings.images_per_request, pixels=settings.max_pixels, image_bytes=settings.max_image_bytes
    )
    room = ByteRoom(settings.max_queue_bytes, settings.full_status)  # of what compressed bodies grow to

    async def infer(request: Request) -> Response:
        name, version = named(request)
        headers = {key.lower(): value for key, value in request.headers.items()}
        with state.models.borrow(name, version) as served:
            note(request, model=served.label)
            sent = await request.body()
            encoding = headers.get("content-encoding", "")
            content = await state.pool.run(partial(inflated, sent, encoding, settings.max_request_bytes))
            grown = len(content) if encoding else 0
            room.take(grown)
            try:
                return await _answered(state, served, request, partial(_read, served, content, headers, limits))
            finally:
                room.give(grown)

    return model_routes("/infer", infer, "POST")


def _read(
    served: ServedModel, content: bytes, headers: Mapping[str, str], limits: Limits
) -> tuple[Images, list[Wanted], dict[str, str], int]:
    """Returns what is left of the JSON, which takes up to 25 times its size while it is in memory."""
    body = split(content, headers)
    contract = served.predictor.engine.contract
    _, images = read_images(body, input_kinds(contract.image_size, contract.num_channels), limits)
    return images, wanted_outputs(body.header, OUTPUTS), _identity(body.header), _timeout(body.header)


async def _answered(state: State, served: ServedModel, request: Request, read: Any) -> Response:
    images, wanted, identity, timeout = await state.pool.run(read)
    note(request, images=len(images))
    deadline = _deadline(request.headers.get("x-deadline-ms"), timeout)
    # An array (1, C, H, W) or (1, H, W, 3) is one image.
    each = images if isinstance(images, list) else [images[place : place + 1] for place in range(len(images))]
    answers = await served.answer(each, Wants(top_k=1), deadline)
    head = {"model_name": served.name, "model_version": served.version, **identity}
    classes = list(served.class_names)
    content, length = await state.pool.run(partial(_write, head, wanted, answers, classes))
    if length is None:
        return Response(content, media_type="application/json")
    return Response(
        content, headers={"Inference-Header-Content-Length": str(length)}, media_type="application/octet-stream"
    )


def _write(
    head: Mapping[str, Any], wanted: list[Wanted], answers: list[Answer], classes: list[str]
) -> tuple[bytes, int | None]:
    for place, answer in enumerate(answers):
        if answer.error is not None:
            error = answer.error
            raise Refusal(
                error.status, error.reason, f"Image {place} of {len(answers)}: {error.message}", error.retry_after
            )
    scores = np.stack([answer.scores for answer in answers if answer.scores is not None])
    logits = np.stack([next(iter(answer.outputs.values())) for answer in answers])
    labels = [classes[best] for best in scores.argmax(1)]
    values: dict[str, Values] = {SCORES: scores, LOGITS: logits, LABELS: labels}
    return written(head, wanted, values, classes)


def _identity(header: Mapping[str, Any]) -> dict[str, str]:
    identity = header.get("id", "")
    if not isinstance(identity, str):
        refuse("bad_id", f"id must be a text. Received: {shown(identity)}.")
    return {"id": identity} if identity else {}


def _timeout(header: Mapping[str, Any]) -> int:
    timeout = parameters_of(header, "the request").get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        refuse("bad_deadline", f"timeout must be a number of microseconds. Received: {shown(timeout)}.")
    return timeout


def _deadline(milliseconds: str | None, timeout: int) -> float | None:
    """Returns the earlier one of the header's deadline and the parameter `timeout`, in microseconds; 0 for none."""
    latest = deadline_of(milliseconds)
    if timeout == 0:
        return latest
    until = time.monotonic() + timeout / 1e6
    return until if latest is None else min(until, latest)

"""`POST /v1/classify`: one image or several, to named predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from deit.serve.answers import Answer
from deit.serve.http.request_images import read_request
from deit.serve.http.request_log import note
from deit.serve.http.request_options import deadline_of, text_of, wants_of
from deit.serve.state import State


def routes(state: State) -> list[BaseRoute]:
    """Returns the routes."""

    async def classify(request: Request) -> JSONResponse:
        started = time.monotonic()
        deadline = deadline_of(request.headers.get("x-deadline-ms"))
        sent = await read_request(request, state.settings, state.pool)
        wants = wants_of(sent.options)
        with state.models.borrow(text_of(sent.options, "model"), text_of(sent.options, "version")) as model:
            note(request, model=model.label, images=len(sent.images))
            answers = await model.answer(sent.images, wants, deadline)
            timing = _timing(answers, time.monotonic() - started)
            note(request, timing_ms=timing)
            body = {
                "model": model.name,
                "version": model.version,
                "results": [answer.to_dict(name) for name, answer in zip(sent.names, answers, strict=True)],
                "timing_ms": timing,
            }
        return JSONResponse(body, _status(answers))

    return [Route("/v1/classify", classify, methods=["POST"])]


def _status(answers: Sequence[Answer]) -> int:
    """Returns 200 if any image has an answer; else the status of the first error."""
    errors = [answer.error for answer in answers if answer.error is not None]
    return errors[0].status if errors and len(errors) == len(answers) else 200


def _timing(answers: Sequence[Answer], total: float) -> dict[str, Any]:
    """Returns milliseconds: of the slowest image in each step, and of the whole request."""
    steps = {step: max(getattr(answer.timing, step) for answer in answers) for step in ("decode", "queue", "compute")}
    return {name: round(1000 * seconds, 2) for name, seconds in {**steps, "total": total}.items()}

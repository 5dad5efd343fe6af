"""`GET /healthz`: the process answers. `GET /readyz`: the model does."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from deit.serve.refusals import Refusal
from deit.serve.state import SERVING, State

_REMEMBERED_SECONDS = 0.5  # so that many probes cost no more than a few images


def routes(state: State) -> list[BaseRoute]:
    """Returns the routes."""
    readiness = Readiness(state)

    async def ready(request: Request) -> JSONResponse:
        problem = await readiness.problem()
        values: dict[str, Any] = {"ready": not problem}
        if request.state.has_token:  # else strangers would learn names and paths of models
            if troubles := state.models.troubles():  # the models answer all the same
                values["warnings"] = troubles
            if problem:
                values["reason"] = problem
        if not problem:
            return JSONResponse(values)
        return JSONResponse(values, 503, headers={"Retry-After": "1"})

    async def healthy(request: Request) -> JSONResponse:
        return JSONResponse({"alive": True})

    return [Route("/healthz", healthy), Route("/readyz", ready)]


class Readiness:
    """Whether the server can answer: it neither starts nor ends, and every model has just answered a gray image.

    Args:
        state: Of the server.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._asking: asyncio.Task[str] | None = None
        self._told = ("", -1.0)

    async def problem(self) -> str:
        """Returns why the server is not ready; empty if it is. Questions at the same time share one image."""
        if self._state.phase != SERVING:
            return self._state.phase
        if problem := self._state.others():
            return problem
        if time.monotonic() - self._told[1] < _REMEMBERED_SECONDS:
            return self._told[0]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> str:
        problem = ""
        try:
            for source in self._state.models.sources():
                with self._state.models.borrow(source.name, source.version) as model:
                    await model.check()
        except Refusal as refusal:
            problem = refusal.message
        self._told = (problem, time.monotonic())
        return problem

"""Answers Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from deit.serve.metrics import Metrics
from deit.serve.state import State


def routes(state: State) -> list[BaseRoute]:
    """Returns the route /metrics, if anything is counted."""
    if not isinstance(state.measures, Metrics):
        return []
    metrics = state.measures

    def answer(request: Request) -> Response:
        # Not async: with several workers it reads their files, which must not hold up the event loop.
        content, content_type = metrics.text(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type, "cache-control": "no-store"})

    return [Route("/metrics", answer, methods=["GET"], name="metrics")]

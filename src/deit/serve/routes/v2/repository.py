"""The model repository of the Open Inference Protocol v2: lists, reloads and unloads models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from deit.core.errors import shown
from deit.serve.hosting.models import Models
from deit.serve.refusals import Refusal
from deit.serve.routes.v2.bodies import json_object, refuse
from deit.serve.routes.v2.tensors import parameters_of
from deit.serve.state import State

_ALLOW = "allow_other_classes"


def routes(state: State) -> list[BaseRoute]:
    """Returns the routes; none for models that stay as they are."""
    if not isinstance(state.models, Models):
        return []
    models, settings = state.models, state.settings

    async def index(request: Request) -> JSONResponse:
        ready = _body(await request.body()).get("ready", False)
        if not isinstance(ready, bool):
            refuse("bad_json", f"ready must be true or false. Received: {shown(ready)}.")
        return JSONResponse([entry for entry in models.index() if not ready or entry["state"] == "READY"])

    async def load(request: Request) -> Response:
        allowed = _allowed(_body(await request.body()))
        _refuse_workers(settings.workers)
        await models.reload(request.path_params["model"], allow_other_classes=allowed)
        return Response()

    async def unload(request: Request) -> Response:
        _body(await request.body())
        name = request.path_params["model"]
        models.sources(name)
        if not settings.allow_unload:
            raise Refusal(
                403, "not_allowed", "Unloading is not allowed. Start the server with allow_unload: true in --settings."
            )
        _refuse_workers(settings.workers)
        await models.unload(name)
        return Response()

    return [
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", unload, methods=["POST"]),
    ]


def _body(content: bytes) -> dict[str, Any]:
    return json_object(content, empty=True)


def _allowed(body: Mapping[str, Any]) -> bool:
    """Returns whether a reload may bring other classes.

    Raises:
        Refusal: The request wants to say what to load; models come from the command line only.
    """
    parameters = parameters_of(body, "the request")
    if foreign := sorted(set(parameters) - {_ALLOW}):
        refuse(
            "unsupported",
            f"A reload takes the files that the server was started with, and the parameter {_ALLOW}. "
            f"Received: {shown(foreign[0])}.",
        )
    allowed = parameters.get(_ALLOW, False)
    if not isinstance(allowed, bool):
        refuse("bad_parameters", f"{_ALLOW} must be true or false. Received: {shown(allowed)}.")
    return allowed


def _refuse_workers(workers: int) -> None:
    if workers > 1:
        raise Refusal(
            409,
            "several_workers",
            f"The server has {workers} worker processes, of which this request reaches one. Send SIGHUP to the server.",
        )

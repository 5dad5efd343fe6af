"""Health and metadata of the server and of its models in the Open Inference Protocol v2."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

import deit
from deit.serve.refusals import Refusal
from deit.serve.routes.health import Readiness
from deit.serve.routes.v2.outputs import OUTPUTS, output_kinds
from deit.serve.routes.v2.tensors import input_kinds
from deit.serve.served_model import ServedModel
from deit.serve.state import State

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository"]


def routes(state: State) -> list[BaseRoute]:
    """Returns the routes."""
    readiness = Readiness(state)

    async def server(request: Request) -> JSONResponse:
        return JSONResponse({"name": "deit", "version": deit.__version__, "extensions": EXTENSIONS})

    async def live(request: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> JSONResponse:
        problem = await readiness.problem()
        return JSONResponse({"ready": not problem}, 503 if problem else 200)

    async def model(request: Request) -> JSONResponse:
        name, version = named(request)
        with state.models.borrow(name, version) as served:
            versions = [source.version for source in state.models.sources() if source.name == name]
            return JSONResponse(metadata(served, versions if version is None else [version]))

    async def model_ready(request: Request) -> JSONResponse:
        name, version = named(request)
        try:
            with state.models.borrow(name, version):
                return JSONResponse({"name": name, "ready": True})
        except Refusal as refusal:
            if refusal.reason.startswith("unknown"):
                raise
            return JSONResponse({"name": name, "ready": False}, 503)

    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *model_routes("", model, "GET"),
        *model_routes("/ready", model_ready, "GET"),
    ]


def model_routes(path: str, endpoint: Any, method: str) -> list[BaseRoute]:
    """Returns the routes of a model, without and with a version.

    Args:
        path: What follows the name.
        endpoint: The handler.
        method: Of HTTP.
    """
    return [
        Route(f"/v2/models/{{model}}{path}", endpoint, methods=[method]),
        Route(f"/v2/models/{{model}}/versions/{{version}}{path}", endpoint, methods=[method]),
    ]


def named(request: Request) -> tuple[str, str | None]:
    """Returns the name and the version in the address of a request."""
    return request.path_params["model"], request.path_params.get("version")


def metadata(served: ServedModel, versions: list[str]) -> dict[str, Any]:
    """Returns what clients may know of a model.

    Args:
        served: The model.
        versions: That the server has of it.
    """
    contract = served.predictor.engine.contract
    return {
        "name": served.name,
        "versions": versions,
        "platform": f"deit_{served.predictor.engine.name}",
        "inputs": [kind.to_dict() for kind in input_kinds(contract.image_size, contract.num_channels)],
        "outputs": output_kinds(len(served.class_names), OUTPUTS),
    }

"""`GET /v1/models`: which models answer, and their classes."""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from deit.serve.refusals import Refusal
from deit.serve.state import State


def routes(state: State) -> list[BaseRoute]:
    """Returns the routes."""
    settings = state.settings
    limits = {  # that clients can keep to
        **{name: getattr(settings, name) for name in ("max_request_bytes", "max_image_bytes", "max_pixels")},
        "max_images": settings.images_per_request,
    }

    async def models(request: Request) -> JSONResponse:
        found = []
        for source in state.models.sources():
            with suppress(Refusal), state.models.borrow(source.name, source.version) as model:
                found.append(model.describe())
        return JSONResponse({"models": found, "limits": limits})

    return [Route("/v1/models", models)]

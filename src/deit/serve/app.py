"""Puts the routes together into a Starlette application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from deit.core.printable import printable
from deit.serve.decoding import DecodingPool
from deit.serve.http.authorization import Token
from deit.serve.http.guard import Guard
from deit.serve.refusals import Refusal
from deit.serve.routes import classify, health, metrics, models as models_route, openapi, page
from deit.serve.routes.v2 import infer, repository, server
from deit.serve.settings import ServeSettings
from deit.serve.state import DRAINING, SERVING, NoMeasures, ServedModels, ServerMeasures, State
from deit.serve.tracing import Traced, open_tracer


def make_app(
    models: ServedModels,
    settings: ServeSettings,
    *,
    pool: DecodingPool | None = None,
    measures: ServerMeasures | None = None,
    token: Token | None = None,
) -> Starlette:
    """Returns the application, whose `State` is `app.state.deit`.

    Args:
        models: The models; the application closes them when it ends. They must be started.
        settings: Limits.
        pool: Threads that decode; new ones when None.
        measures: Takes the measurements; nothing does when None.
        token: That requests must carry; None for none.
    """
    state = State(
        models=models,
        settings=settings,
        pool=pool or DecodingPool(settings.decode_threads),
        measures=measures or NoMeasures(),
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        state.phase = SERVING
        yield
        state.phase = DRAINING
        await state.models.close()
        state.pool.close()

    found = _routes(state)
    paths = {route.endpoint: route.path for route in found if isinstance(route, Route)}
    middleware = [Middleware(Guard, state=state, token=token, paths=paths)]
    if (tracer := open_tracer()) is not None:
        middleware.insert(0, Middleware(Traced, tracer=tracer, paths=paths))
    app = Starlette(routes=found, lifespan=lifespan, middleware=middleware)
    app.add_exception_handler(HTTPException, _not_found)
    app.router.redirect_slashes = False  # it would send a client to whatever host its request names
    app.state.deit = state
    return app


def _routes(state: State) -> list[BaseRoute]:
    modules = (classify, models_route, health, metrics, openapi, page, server, infer, repository)
    return [route for module in modules for route in module.routes(state)]


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    methods = (error.headers or {}).get("Allow", "").split(", ")
    raise Refusal(
        error.status_code,
        reason,
        f"{error.detail}: {request.method} {printable(request.scope['path'], 200)}.",
        allow=", ".join(sorted(methods)),
    )

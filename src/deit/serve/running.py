"""Runs the server: binds the port, opens the models, listens, and ends when it is asked to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deit.core.errors import UserError
from deit.inference.predictor import Predictor
from deit.runtime.packages import require_packages
from deit.serve.settings import ServeSettings

if TYPE_CHECKING:  # needs what `require_serving` asks for
    from deit.serve.models import ModelSource


def require_serving() -> None:
    """Checks that the packages of the server are installed.

    Raises:
        MissingPackageError: One is not.
    """
    require_packages(
        "Serving", "starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client", extra="serve"
    )


def bind(settings: ServeSettings) -> socket.socket:
    """Takes the port, without listening yet: who connects is refused until the models are open.

    Raises:
        UserError: The port is in use, or the address is not of this machine.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"The host {host!r} is no address of this machine ({error.strerror}).") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(
            f"Cannot listen on {host}, port {port} ({error.strerror}). Pass another --port, or end what uses it."
        ) from error
    return bound


def listen(
    sources: Sequence[ModelSource],
    open_predictor: Callable[[str], Predictor],
    settings: ServeSettings,
    bound: socket.socket,
) -> None:
    """Opens models and answers until a signal ends the server.

    Args:
        sources: The models.
        open_predictor: Opens one from its path.
        settings: Limits.
        bound: Result of `bind`.
    """
    import uvicorn

    from deit.serve.app import make_app
    from deit.serve.decoding import DecodingPool
    from deit.serve.metrics import Metrics
    from deit.serve.models import Models, reload_on_hangup
    from deit.serve.served_model import ServedModel

    pool, metrics = DecodingPool(settings.decode_threads), Metrics()

    def open_model(source: ModelSource) -> ServedModel:
        opened = open_predictor(source.path)
        name, version = source.name, source.version
        return ServedModel(opened, settings, pool=pool, measures=metrics, name=name, version=version)

    served = Models(sources, open_model, metrics)
    app = make_app(served, settings, pool=pool, measures=metrics)
    config = uvicorn.Config(app, log_config=None, access_log=False, http="httptools", ws="none")
    server = uvicorn.Server(config)

    async def run() -> None:
        await served.start()
        end_reloading = reload_on_hangup(served)
        watching = asyncio.create_task(served.watch())
        try:
            await server.serve([bound])
        finally:
            watching.cancel()
            end_reloading()

    asyncio.run(run())

"""Runs the server: binds the port, opens the models, listens, and ends when it is asked to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from deit.core.errors import UserError
from deit.inference.predictor import Predictor
from deit.runtime.packages import require_packages
from deit.serve.settings import ServeSettings


def require_serving() -> None:
    """Checks that the packages of the server are installed.

    Raises:
        MissingPackageError: One is not.
    """
    require_packages("Serving", "starlette", "uvicorn", "httptools", "python_multipart", extra="serve")


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


def listen(predictors: Mapping[str, Predictor], settings: ServeSettings, bound: socket.socket) -> None:
    """Answers until a signal ends the server.

    Args:
        predictors: Name -> opened model.
        settings: Limits.
        bound: Result of `bind`.
    """
    import uvicorn

    from deit.serve.app import make_app
    from deit.serve.decoding import DecodingPool
    from deit.serve.served_model import ServedModel
    from deit.serve.state import FixedModels, NoMeasures

    pool = DecodingPool(settings.decode_threads)
    models = [
        ServedModel(predictor, settings, pool=pool, measures=NoMeasures(), name=name)
        for name, predictor in predictors.items()
    ]
    served = FixedModels(models)
    app = make_app(served, settings, pool=pool)
    config = uvicorn.Config(app, log_config=None, access_log=False, http="httptools", ws="none")
    server = uvicorn.Server(config)

    async def run() -> None:
        await served.start()
        await server.serve([bound])

    asyncio.run(run())

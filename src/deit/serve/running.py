"""Runs the server: opens the models, listens, and ends when it is asked to."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deit.core.config.field_checks import height_and_width
from deit.core.errors import UserError
from deit.inference.predictor import Predictor
from deit.runtime.packages import require_packages
from deit.serve.refusals import Refusal
from deit.serve.settings import ServeSettings

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from deit.serve.batcher import Measures
    from deit.serve.decoding import DecodingPool
    from deit.serve.hosting.models import Models
    from deit.serve.hosting.sources import ModelSource
    from deit.serve.http.authorization import Token
    from deit.serve.process.draining import DrainingServer
    from deit.serve.process.workers import Worker
    from deit.serve.served_model import ServedModel
    from deit.serve.state import ServerMeasures


def require_serving() -> None:
    """Checks that the packages of the server are installed.

    Raises:
        MissingPackageError: One is not.
    """
    require_packages(
        "Serving", "starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client", extra="serve"
    )


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How models are opened for the server.

    Attributes:
        settings: Limits.
        pool: Threads that decode.
        measures: Takes the measurements.
        device: See `Predictor.open`.
        engine: See `Predictor.open`.
        head_average: See `Predictor.open`.
    """

    settings: ServeSettings
    pool: DecodingPool
    measures: Measures
    device: str = "cpu"
    engine: str = "auto"
    head_average: str | None = None

    def open(self, source: ModelSource) -> ServedModel:
        """Opens a model, and with `degrade` a second time with merged tokens.

        Args:
            source: Its path and names.

        Raises:
            OSError: See `Predictor.open`.
            UserError: See `Predictor.open`; or tokens cannot be merged in the model.
        """
        from deit.serve.served_model import ServedModel

        options: dict[str, Any] = {"device": self.device, "head_average": self.head_average}
        predictor = Predictor.open(source.path, engine=self.engine, **options)
        merged = None
        if self.settings.degrade:
            from deit.models.merging.switch import merge_tokens

            merged = Predictor.open(source.path, engine="torch", **options)
            model = merge_tokens(getattr(merged.engine, "model", None), self.settings.degrade)
            _check_merging(model.config, self.settings.degrade)
        return ServedModel(
            predictor,
            self.settings,
            pool=self.pool,
            measures=self.measures,
            name=source.name,
            version=source.version,
            merged=merged,
        )


def _check_merging(config: Any, r: int) -> None:
    """Refuses more merged tokens than there are, since answers say the number."""
    from deit.models.merging.matching import most_merged

    height, width = config.grid_image_size
    rows, columns = height_and_width(config.patch_size, "patch_size")
    most = most_merged(r, (height // rows) * (width // columns))
    if r > most:
        raise UserError(f"degrade must be at most {most}, half of the patch tokens of the model. Received: {r}.")


async def run_server(
    models: Models,
    settings: ServeSettings,
    bound: socket.socket,
    *,
    pool: DecodingPool,
    measures: ServerMeasures | None = None,
    token: Token | None = None,
    worker: Worker | None = None,
    on_start: Callable[[DrainingServer], None] = lambda server: None,
) -> DrainingServer:
    """Opens models, then listens, and answers until a signal ends the server.

    Args:
        models: The models.
        settings: Limits.
        bound: The port, see `bind`. Nobody can connect before the models are open.
        pool: Threads that decode.
        measures: Takes the measurements; nothing does when None.
        token: That requests must carry; None for none.
        worker: What a worker process was given; None for the only process.
        on_start: Called once with the server, when it listens.

    Returns:
        The server, which has ended.

    Raises:
        UserError: A model cannot be opened or fails on a gray image, or the port was taken meanwhile.
    """
    from deit.serve.app import make_app
    from deit.serve.hosting.models import reload_on_hangup
    from deit.serve.process.draining import DrainingServer

    try:
        await models.start()
    except Refusal as refusal:
        raise UserError(f"A model cannot answer. {refusal.message}") from refusal
    app = make_app(models, settings, pool=pool, measures=measures, token=token)
    state = app.state.deit
    if worker is not None:
        state.others = worker.board.problem
    server = DrainingServer(
        _configuration(app, settings), state, worker=worker, problem=lambda: problem_of(models), on_start=on_start
    )
    end_reloading = reload_on_hangup(models)
    watching = asyncio.create_task(models.watch())
    try:
        await server.serve([bound])
    except OSError as error:
        raise UserError(f"Cannot listen on {settings.host}, port {settings.port} ({error.strerror}).") from error
    finally:
        watching.cancel()
        end_reloading()
    return server


def _configuration(app: Starlette, settings: ServeSettings) -> uvicorn.Config:
    import uvicorn

    from deit.serve.process.connections import protocol_class

    return uvicorn.Config(
        app,
        http=protocol_class(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(settings.idle_seconds),
        timeout_graceful_shutdown=1,  # what was accepted is answered already, see `DrainingServer`
    )


def problem_of(models: Models) -> str:
    """Returns why a model does not answer any more; empty if all do."""
    for source in models.sources():
        with suppress(Refusal), models.borrow(source.name, source.version) as model:
            if problem := model.problem():
                return f"{model.label}: {problem}"
    return ""

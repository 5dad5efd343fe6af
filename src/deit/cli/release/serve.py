"""`deit serve`: answers over HTTP."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from deit.cli.terminal.console import reports_errors, say
from deit.cli.terminal.parameters import Device, Engine


@reports_errors
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME[@VERSION]=]MODEL...",
            help="Model directory, exported file, name on the Hugging Face Hub, or timm/NAME. The first one answers "
            "requests that name none; a model without a name is called after its path.",
        ),
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; 0 for a free one.")] = 8080,
    device: Device = "auto",
    engine: Engine = "auto",
) -> None:
    """Answer over HTTP: POST an image to /v1/classify."""
    from deit.inference.predictor import Predictor
    from deit.serve.running import bind, listen, require_serving
    from deit.serve.settings import ServeSettings

    require_serving()
    from deit.serve.models import read_sources

    sources = read_sources(models)
    settings = ServeSettings(host=host, port=port)
    bound = bind(settings)
    address = bound.getsockname()
    say(f"Listening on http://{address[0]}:{address[1]}", err=True)
    listen(sources, partial(Predictor.open, device=device, engine=engine), settings, bound)

"""`deit serve`: answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.terminal.console import reports_errors, say
from deit.cli.terminal.parameters import Device, Engine, place


@reports_errors
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Model directory, name on the Hugging Face Hub, or timm/NAME.",
            parser=place,
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
    settings = ServeSettings(host=host, port=port)
    bound = bind(settings)
    predictors = {Path(name).name: Predictor.open(name, device=device, engine=engine) for name in models}
    address = bound.getsockname()
    say(f"Listening on http://{address[0]}:{address[1]}", err=True)
    listen(predictors, settings, bound)

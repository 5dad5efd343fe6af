"""`deit serve`: answers over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import reports_errors, say
from deit.cli.terminal.parameters import Average, Device, Engine, path

if TYPE_CHECKING:
    import socket

    from deit.serve.hosting.sources import ModelSource
    from deit.serve.http.authorization import Token
    from deit.serve.process.workers import Worker
    from deit.serve.settings import ServeSettings

_OF_FILE = "that of --settings, else "


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME[@VERSION]=]MODEL...",
        help="Model directory, exported file, name on the Hugging Face Hub, or timm/NAME. The first one answers "
        "requests that name none; a model without a name is called after its path.",
    ),
]
Host = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Address to listen on.", show_default=f"{_OF_FILE}127.0.0.1"),
]
Port = Annotated[
    int | None,
    typer.Option(metavar="N", help="Port to listen on; 0 for a free one.", show_default=f"{_OF_FILE}8080"),
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Processes that answer, each with its own models.", show_default=f"{_OF_FILE}1"),
]
MaxBatch = Annotated[
    int | None,
    typer.Option(metavar="N", help="Images that go through the model together.", show_default=f"{_OF_FILE}16"),
]
MaxWait = Annotated[
    float | None,
    typer.Option(
        metavar="N", help="Milliseconds that an image waits for others of its batch.", show_default=f"{_OF_FILE}5"
    ),
]
MaxQueue = Annotated[
    int | None,
    typer.Option(metavar="N", help="Images that wait at most; more requests get 429.", show_default=f"{_OF_FILE}96"),
]
Degrade = Annotated[
    int | None,
    typer.Option(metavar="R", help="When overloaded, merge R tokens in each block.", show_default=f"{_OF_FILE}never"),
]
DrainSeconds = Annotated[
    float | None,
    typer.Option(metavar="N", help="Time to finish requests after SIGTERM or Ctrl-C.", show_default=f"{_OF_FILE}30"),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with the token that requests must carry.",
        show_default="DEIT_TOKEN, if set",
        parser=path,
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file with further limits, see docs/serving.md.", parser=path),
]


@reports_errors
def serve(
    models: Sources,
    host: Host = None,
    port: Port = None,
    device: Device = "auto",
    engine: Engine = "auto",
    average: Average = None,
    workers: Workers = None,
    max_batch: MaxBatch = None,
    max_wait_ms: MaxWait = None,
    max_queue: MaxQueue = None,
    degrade: Degrade = None,
    drain_seconds: DrainSeconds = None,
    token_file: TokenFile = None,
    settings: Settings = None,
) -> None:
    """Answer over HTTP: POST an image to /v1/classify.

    Writes one line of JSON for each request to standard output. SIGTERM or Ctrl-C ends the server after it has answered
    what it has accepted.
    """
    from deit.serve.http.authorization import read_token
    from deit.serve.running import require_serving
    from deit.serve.settings import ServeSettings, read_settings

    require_serving()
    from deit.serve.hosting.sources import read_sources

    given = {
        "host": host,
        "port": port,
        "workers": workers,
        "max_batch": max_batch,
        "max_wait_ms": max_wait_ms,
        "max_queue": max_queue,
        "degrade": degrade,
        "drain_seconds": drain_seconds,
    }
    values: dict[str, Any] = {} if settings is None else read_settings(settings)
    limits = ServeSettings(**values | {name: value for name, value in given.items() if value is not None})
    token = read_token(token_file)
    raise typer.Exit(
        _serve(read_sources(models), limits, token, {"device": device, "engine": engine, "head_average": average})
    )


def _serve(sources: list[ModelSource], limits: ServeSettings, token: Token | None, opening: dict[str, Any]) -> int:
    from deit.serve.metrics import counting_workers, forget_worker
    from deit.serve.process.binding import bind
    from deit.serve.process.workers import run_workers, this_worker

    worker = this_worker()
    if worker is not None:
        return _answer(sources, limits, token, worker.bound, opening, worker)
    with bind(limits) as bound:
        _warn_of_host(bound, token)
        if limits.workers == 1:
            return _answer(sources, limits, token, bound, opening, None)
        command = [sys.executable, "-m", "deit", *sys.argv[1:]]
        with counting_workers() as folder:
            return run_workers(
                command,
                limits.workers,
                bound,
                drain_seconds=limits.drain_seconds,
                stuck_seconds=limits.stuck_seconds,
                on_end=lambda process: forget_worker(process, folder),
            )


def _answer(
    sources: list[ModelSource],
    limits: ServeSettings,
    token: Token | None,
    bound: socket.socket,
    opening: dict[str, Any],
    worker: Worker | None,
) -> int:
    """Answers until a signal comes; returns the exit code."""
    import asyncio

    from deit.serve.decoding import DecodingPool
    from deit.serve.hosting.models import Models
    from deit.serve.http.request_log import json_log
    from deit.serve.metrics import Metrics
    from deit.serve.process.binding import address_of
    from deit.serve.process.ending import leave_at_once, still_at_work
    from deit.serve.running import Opening, run_server

    pool, metrics = DecodingPool(limits.decode_threads), Metrics()
    opened = Models(sources, Opening(settings=limits, pool=pool, measures=metrics, **opening).open, metrics)

    def tell(server: object) -> None:
        if worker is None or worker.number == 0:
            say(f"Listening on {address_of(bound)}", err=True)

    with json_log():
        server = asyncio.run(
            run_server(opened, limits, bound, pool=pool, measures=metrics, token=token, worker=worker, on_start=tell)
        )
        code = 1 if server.lost else 0
        if still_at_work():  # Python would wait for it
            leave_at_once(code)
    return code


def _warn_of_host(bound: socket.socket, token: Token | None) -> None:
    from deit.serve.process.binding import is_loopback

    if token is None and not is_loopback(bound):
        say(
            "Note: Everyone who can reach this address may use the server. Set a token (--token-file or DEIT_TOKEN), "
            "or put it behind a proxy that asks who they are.",
            err=True,
        )

"""Puts the commands together. Imports nothing heavy before a command runs, so that help is fast."""

from __future__ import annotations

import sys

import typer

import deit
from deit.cli.demo import demo
from deit.cli.prediction.calibrate import calibrate
from deit.cli.prediction.classify import classify
from deit.cli.prediction.embed import embed
from deit.cli.prediction.evaluate import evaluate
from deit.cli.prediction.explain import explain
from deit.cli.release.benchmark import benchmark
from deit.cli.release.convert import convert
from deit.cli.release.export import export
from deit.cli.release.push import push
from deit.cli.release.quantize import quantize
from deit.cli.release.serve import serve
from deit.cli.terminal.console import say
from deit.cli.terminal.launch import launch
from deit.cli.training.inspect import inspect
from deit.cli.training.pretrain import pretrain
from deit.cli.training.recipes import recipes
from deit.cli.training.train import train

app = typer.Typer(
    name="deit",
    help="Small, fast image classifiers, from a folder of images to a model you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    inspect, train, pretrain, recipes, evaluate, calibrate, classify, embed, explain, convert, export, quantize,
    benchmark, push, serve, demo,
):  # fmt: skip
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"deit {deit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
    processes: int | None = typer.Option(
        None,
        metavar="N",
        help="Run train, pretrain or evaluate in N processes on this machine, one per GPU if there are GPUs.",
    ),
) -> None:
    if processes is None:
        return
    verb = context.invoked_subcommand or ""
    raise typer.Exit(launch(processes, sys.argv[sys.argv.index(verb) :]))

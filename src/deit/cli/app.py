"""Puts the commands together. Imports nothing heavy before a command runs, so that help is fast."""

from __future__ import annotations

import sys

import typer

import deit
from deit.cli.calibrate import calibrate
from deit.cli.classify import classify
from deit.cli.convert import convert
from deit.cli.demo import demo
from deit.cli.embed import embed
from deit.cli.evaluate import evaluate
from deit.cli.inspect import inspect
from deit.cli.pretrain import pretrain
from deit.cli.push import push
from deit.cli.recipes import recipes
from deit.cli.terminal.console import say
from deit.cli.terminal.launch import launch
from deit.cli.train import train

app = typer.Typer(
    name="deit",
    help="Small, fast image classifiers, from a folder of images to a model you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (inspect, train, pretrain, recipes, evaluate, calibrate, classify, embed, convert, push, demo):
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

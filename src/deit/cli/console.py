"""Printing: errors in one line, tables, progress."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

P = ParamSpec("P")


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, text: str = "", /) -> None: ...  # noqa: D102


# Without markup: brackets in the names of files and classes are text.
OUT = Console(markup=False)
ERR = Console(stderr=True, markup=False)

USER_ERROR = 2
PARTLY = 3  # some images were left out; not 1, with which Python ends at a bug
INTERRUPTED = 130  # 128 + SIGINT, as shells count

# Which extra brings a package that is missing; "train" brings all others.
_EXTRAS = {"sklearn": "demo", "pyarrow": "parquet", "datasets": "datasets"}


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turns the library's errors into one line on standard error and exit code 2.

    With the environment variable DEIT_TRACEBACK set, the traceback is shown as well.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        notes = logging.StreamHandler()
        notes.addFilter(lambda record: record.name != "deit.data.sources")  # `report_skipped` says it with names
        logging.basicConfig(level=logging.WARNING, format="Note: %(message)s", handlers=[notes])
        try:
            command(*args, **kwargs)
        except (ValueError, TypeError, OSError, ArithmeticError, ModuleNotFoundError) as error:
            if os.environ.get("DEIT_TRACEBACK"):
                raise
            if type(error).__name__ != "FirstProcessError":  # that one is told by the first process
                typer.echo(f"Error: {' '.join(_explain(error).split())}", err=True)
            raise typer.Exit(USER_ERROR) from error

    return wrapped


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("deit"):
        extra = _EXTRAS.get(error.name.partition(".")[0], "train")
        return f'This command needs the {error.name!r} package. Install it with: pip install "deit[{extra}]"'
    return str(error)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns after the first are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    OUT.print(table)


def report_skipped(skipped: Sequence[Any]) -> None:
    """Says which files were left out and why, at most five by name."""
    if not skipped:
        return
    typer.echo(f"Left out {len(skipped)} file(s) that cannot be used:", err=True)
    for file in skipped[:5]:
        typer.echo(f"  {file.path}: {file.reason}", err=True)
    if len(skipped) > 5:
        typer.echo(f"  ... and {len(skipped) - 5} more", err=True)


@contextmanager
def progress_bar(label: str, *, shown: bool = True) -> Iterator[Update]:
    """Shows a bar with count and time left while a block runs, on a terminal only.

    Args:
        label: In front of the bar.
        shown: Whether to show it at all: of several processes, one does.

    Yields:
        A function to call with (done, total, text to show behind the bar).
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not (shown and ERR.is_terminal)) as progress:
        task = progress.add_task(label, total=None, text="")

        def update(done: int, total: int, text: str = "", /) -> None:
            progress.update(task, completed=done, total=total, text=text)

        yield update

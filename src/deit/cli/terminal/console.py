"""Prints errors, notes, tables and progress bars."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
import os
import re
import signal
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deit.cli.terminal.endings import (
    SignalError,
    ended_by_signals,
    is_lost_process,
    is_told,
    leave_time_to_speak,
    speaks,
    speaks_of_signal,
)
from deit.cli.terminal.wording import in_options
from deit.core.errors import UserError, shown
from deit.core.printable import counted as counted, printable, printable_lines
from deit.core.writing import why_unwritten
from deit.runtime.together.watch import LOST_EXIT_CODE

if TYPE_CHECKING:
    from deit.data.storage.image_search import SkippedFile

P = ParamSpec("P")


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, text: str = "", /) -> None: ...  # noqa: D102


# For tables and progress. Without markup: brackets and colons in the names of files and classes are text.
OUT = Console(markup=False, emoji=False)
ERR = Console(stderr=True, markup=False, emoji=False)

_MOST_IN_A_CELL = 200
_LINE_SECONDS, _MOST_LINE_SECONDS = 30.0, 600.0  # between two lines about progress in a file or a pipe
_WIDTH_ELSEWHERE = 4000  # more than a table of a few columns has

USER_ERROR = 2
PARTLY = 3  # some images were left out; not 1, with which a bug ends

# Which extra brings a package that is missing; "train" brings all others.
_EXTRAS = {"sklearn": "demo", "pyarrow": "parquet", "datasets": "datasets"}


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints a user's errors as one line on standard error and exits with code 2.

    All other errors are bugs and pass: `deit.cli.main` prints their traceback and exits with code 1. With the
    environment variable DEIT_TRACEBACK set, a user's error has its traceback printed as well.
    """
    taken = inspect.signature(command).parameters.values()
    parameters = tuple(each.name for each in taken if each.default is not each.empty or each.name == "out")

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        notes = _Notes()
        notes.setFormatter(_OneLine("%(message)s", parameters))
        notes.addFilter(lambda record: record.name != "deit.data.sources")  # `report_skipped` says it with names
        notes.addFilter(_Once())
        logging.basicConfig(level=logging.WARNING, handlers=[notes])
        warnings.formatwarning = _warning_line
        try:
            with ended_by_signals():
                _refuse_zero_bytes(kwargs)
                command(*args, **kwargs)
        except BrokenPipeError:  # who reads what is printed has seen enough: typer ends the process quietly
            raise
        except (KeyboardInterrupt, SignalError) as error:
            stop = error if isinstance(error, SignalError) else SignalError(signal.SIGINT)
            if speaks_of_signal(stop):
                say(f"Stopped ({signal.Signals(stop.number).name}).", err=True)
            raise typer.Exit(128 + stop.number) from error
        except Exception as error:
            if is_lost_process(error):
                raise typer.Exit(LOST_EXIT_CODE) from error
            if not _is_of_user(error):
                raise
            if not speaks(error):
                leave_time_to_speak()
            if not is_told(error):
                if os.environ.get("DEIT_TRACEBACK"):
                    say_lines("".join(traceback.format_exception(error)), err=True)
                say(f"Error: {in_options(' '.join(_explain(error).split()), parameters)}", err=True)
            raise typer.Exit(USER_ERROR) from error

    return wrapped


def _refuse_zero_bytes(arguments: Mapping[str, object]) -> None:
    """Rejects arguments with a zero byte: no file name has one, and Python's error does not name the argument."""
    for name, value in arguments.items():
        for text in map(str, value if isinstance(value, list) else [value]):
            if "\0" in text:
                raise UserError(f"{name} must not hold a zero byte. Received: {shown(text)}.")


def _is_of_user(error: Exception) -> bool:
    """Whether an error comes from the input or the machine; any other is a bug."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("deit")
    return isinstance(error, (UserError, OSError)) or why_unwritten(error) is not None or _lacks_memory(error)


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # of PyTorch


class _Notes(logging.Handler):
    """Prints log records. Looks up the stream for each, so that they go above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


class _Once:
    """Drops repeated notes: a command may open a file twice, to check it and to use it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in self._told
        self._told.add(text)
        return is_new


class _OneLine(logging.Formatter):
    def __init__(self, form: str, parameters: Collection[str]) -> None:
        super().__init__(form)
        self._parameters = parameters

    def format(self, record: logging.LogRecord) -> str:
        what = "Error" if record.levelno >= logging.ERROR else "Note"
        return f"{what}: " + printable(in_options(super().format(record), self._parameters))


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return printable(f"Note: {' '.join(str(message).split())}") + "\n"


def say(text: object, *, err: bool = False) -> None:
    """Prints one line, with control characters escaped. On a terminal, breaks it between words."""
    typer.echo(_broken_to_fit(printable(text), ERR if err else OUT), err=err)


def _broken_to_fit(line: str, console: Console) -> str:
    if not console.is_terminal or len(line) <= console.width:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    whole = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", line)  # a number and its unit stay together
    broken = textwrap.fill(
        whole, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # a path stays one word, so that it can be copied
    return broken.replace("\N{NO-BREAK SPACE}%", " %")


def say_lines(text: str, *, err: bool = False) -> None:
    """Prints several lines, with control characters escaped."""
    typer.echo(printable_lines(text.removesuffix("\n")), err=err)


def say_cells(cells: Iterable[str], most_characters: int) -> None:
    """Prints cells separated by tabs, with control characters escaped."""
    typer.echo("\t".join(printable(cell, most_characters) for cell in cells))


def say_json(value: Any) -> None:
    """Prints JSON. NaN and infinity become null."""
    typer.echo(json_text(value))


@contextmanager
def json_array() -> Iterator[Callable[[Any], None]]:
    """Prints one JSON array; yields a function that prints its next item."""
    begun = False

    def say_item(value: Any) -> None:
        nonlocal begun
        typer.echo(("," if begun else "[") + "\n" + textwrap.indent(json_text(value), "  "), nl=False)
        begun = True

    yield say_item
    typer.echo("\n]" if begun else "[]")


def json_text(value: Any) -> str:
    """Returns JSON as `say_json` prints it."""
    return json.dumps(_without_nan(value), indent=2)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("deit"):
        extra = _EXTRAS.get(error.name.partition(".")[0], "train")
        return f'This command needs the {error.name!r} package. Install it with: pip install "deit[{extra}]"'
    text = str(error)
    if _lacks_memory(error):
        text = f"{text.partition('. ')[0] or 'There is not enough memory'}. Use smaller batches or smaller images."
    return " ".join([text, *getattr(error, "__notes__", ())])


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns after the first are aligned to the right. No cell is cut.

    On a terminal a long cell is broken to several lines; in a file or a pipe a row is a line.
    """
    table = Table(title=printable(title), title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(printable(column, _MOST_IN_A_CELL), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell, _MOST_IN_A_CELL) for cell in row))
    console = OUT if OUT.is_terminal else Console(markup=False, emoji=False, width=_WIDTH_ELSEWHERE)
    console.print(table)


def report_skipped(skipped: Sequence[SkippedFile]) -> None:
    """Prints which files were skipped and why: at most five by name, and one of those that are not images."""
    from deit.data.storage.image_search import NOT_IMAGES

    broken = [file for file in skipped if file.kind != NOT_IMAGES]
    others = [file for file in skipped if file.kind == NOT_IMAGES]
    if broken:
        say(f"Left out {len(broken)} file(s) that cannot be used:", err=True)
    for file in broken[:5]:
        say(f"  {file.path}: {file.reason}", err=True)
    if len(broken) > 5:
        say(f"  ... and {len(broken) - 5} more", err=True)
    if others:
        first = f"{others[0].path}: {others[0].reason}"
        say(f"Left out {len(others)} file(s) that are not images; the first is {first}", err=True)


def report_found(
    used: int,
    skipped: Sequence[SkippedFile],
    ignored: Mapping[str, int],
    *,
    others: Sequence[SkippedFile] = (),
    unit: str = "files",
) -> None:
    """Prints skipped files, and one line that counts everything that was found, unless all of it is used.

    Args:
        used: Number of images that are used.
        skipped: Skipped files, to be printed.
        ignored: Counts of files that are not data, such as hidden ones, by kind.
        others: Skipped files that were printed already.
        unit: Noun for what is counted.
    """
    from deit.data.storage.image_search import describe_found

    report_skipped(skipped)
    if skipped or others or any(ignored.values()):
        say(describe_found(used, [*skipped, *others], ignored, unit), err=True)


@contextmanager
def progress_bar(label: str, *, shown: bool = True) -> Iterator[Update]:
    """Shows a progress bar with count and time left while a block runs; in a file or a pipe, occasional lines.

    Args:
        label: In front of the bar.
        shown: Whether to show it at all: of several processes, one does.

    Yields:
        A function to call with (done, total, text to show behind the bar).
    """
    if not (shown and ERR.is_interactive):  # a bar that is switched off still prints an empty line in rich 13
        yield _ProgressLines(label) if shown else lambda done, total, text="", /: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    # What is printed while the bar is shown must go above it, unless it goes elsewhere: into a file, a pipe.
    options: dict[str, Any] = {"transient": True, "redirect_stdout": OUT.is_terminal}
    with Progress(*columns, console=ERR, **options) as progress:
        task = progress.add_task(printable(label), total=None, text="")

        def update(done: int, total: int, text: str = "", /) -> None:
            progress.update(task, completed=done, total=total, text=printable(text, _MOST_IN_A_CELL))

        yield update


class _ProgressLines:
    """Prints progress as lines: the first after half a minute, then less and less often, at last every ten minutes.

    A minute gives one line, an hour sixty, a day two hundred.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = self._told = time.monotonic()
        self._first: int | None = None
        self._last = 0

    def __call__(self, done: int, total: int, text: str = "", /) -> None:
        now = time.monotonic()
        if self._first is None or done < self._last:  # what an earlier run did, or a cache knew, took no time
            self._first, self._started = done, now
        self._last = done
        since = now - self._started
        if now - self._told < min(max(_LINE_SECONDS, since / 20), _MOST_LINE_SECONDS) or done >= total:
            return
        self._told = now
        pace = (done - self._first) / since if since else 0.0
        left = f", about {duration((total - done) / pace)} left" if pace else ""
        say(f"{self._label}: {done} of {total}{left}{text and ', '}{text}", err=True)


def duration(seconds: float) -> str:
    """Returns seconds as a text: seconds below a minute, minutes, or hours and minutes."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

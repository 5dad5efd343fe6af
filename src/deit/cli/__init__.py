"""The `deit` command. One module for each verb: parse, one library call, print."""

from __future__ import annotations

import io
import sys
import traceback
from types import TracebackType


def main() -> None:
    """Runs the command line; errors of the user's making end with one line and exit code 2."""
    try:
        from deit.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"Error: The deit command needs the {error.name!r} package. Install it with: "
            'pip install "deit[cli]" (or "deit[train]" to train)',
            file=sys.stderr,
        )
        sys.exit(2)
    sys.excepthook = _show_mistake
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal has no letters for
    try:
        sys.exit(app(standalone_mode=False))
    except Exception as error:  # whose classes are those of click or of typer's copy of it, by version
        if type(error).__name__ == "Abort":
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)  # 128 + SIGINT, as shells count
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        _show_usage(error)
        sys.exit(error.exit_code)


def _show_usage(error: Exception) -> None:
    """Prints what is wrong with the command line; its words may be names of files that a shell put there."""
    from deit.cli.terminal.console import say_lines
    from deit.cli.terminal.endings import speaks

    if not speaks():
        return
    text = io.StringIO()
    error.show(text)  # type: ignore[attr-defined]
    say_lines(text.getvalue(), err=True)


def _show_mistake(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback, whose last line may quote anything."""
    from deit.core.printable import printable_lines

    print(printable_lines("".join(traceback.format_exception(kind, error, trace)).rstrip()), file=sys.stderr)

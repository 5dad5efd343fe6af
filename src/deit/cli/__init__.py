"""The `deit` command. One module for each verb: parse, one library call, print."""

from __future__ import annotations

import atexit
import io
import os
import sys
import traceback

_PLEASE_REPORT = "This is a bug in deit, not a mistake of yours. Please report it with the text above."


def command() -> None:
    """Runs the command line in a process that does nothing else, and ends that process when all is done.

    What Python does after all exit handlers, it leaves out: taking PyTorch apart needs a second and 130 MB.
    """
    from deit.runtime.threads import prepare_threads

    prepare_threads()  # before PyTorch is loaded
    codes: list[int] = []

    def leave() -> None:
        if not codes:
            return  # a mistake, which Python is about to show or has shown
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # nobody reads any more: Python's own way
        os._exit(codes[0])

    atexit.register(leave)  # the first one registered is the last one called
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            codes.append(end.code or 0)
        raise


def main() -> None:
    """Runs the command line: a user's error ends in one line and exit code 2, a bug in a traceback and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal has no letters for
    try:
        sys.exit(_run())
    except Exception as error:  # noqa: BLE001  # click's classes, or those of typer's copy of it, by version
        if type(error).__name__ == "Abort":
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)  # 128 + SIGINT, as shells count
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            _show_usage(error)
            sys.exit(error.exit_code)
        _show_bug(error)
        sys.exit(1)


def _run() -> int | None:
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
        return 2
    code: int | None = app(standalone_mode=False)
    return code


def _show_usage(error: Exception) -> None:
    """Prints what is wrong with the command line; its words may be names of files that a shell put there."""
    from deit.cli.terminal.console import say_lines
    from deit.cli.terminal.endings import leave_time_to_speak, speaks

    if not speaks():
        leave_time_to_speak()
        return
    text = io.StringIO()
    error.show(text)  # type: ignore[attr-defined]
    say_lines(text.getvalue(), err=True)


def _show_bug(error: Exception) -> None:
    """Prints a traceback, whose last line may quote anything, and asks to report it."""
    from deit.cli.terminal.endings import leave_time_to_speak, speaks
    from deit.core.printable import printable_lines

    if not speaks(error):
        leave_time_to_speak()
    print(printable_lines("".join(traceback.format_exception(error)).rstrip()), file=sys.stderr)
    print(_PLEASE_REPORT, file=sys.stderr)

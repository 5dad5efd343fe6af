"""The `deit` command. One module for each verb: parse, one library call, print."""

from __future__ import annotations

import sys


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
    app()

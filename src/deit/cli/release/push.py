"""`deit push`: uploads a model directory to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.terminal.console import counted, reports_errors, say
from deit.cli.terminal.parameters import path
from deit.core.printable import some_of


@reports_errors
def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory to upload.", parser=path)],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name on the hub, such as me/my-deit. Created if it does not exist.")
    ],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of a new repository.", show_default="that of your account"),
    ] = None,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Commit message.")] = "Upload model",
    branch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch to upload to. It must exist. [default: main]"),
    ] = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Open a pull request instead of committing directly.")
    ] = False,
) -> None:
    """Upload a model to the Hugging Face Hub.

    Uploads the model and its card, without training states and other files. Uses the token of `hf auth login` or of the
    environment variable HF_TOKEN.
    """
    from deit.core.hub import upload_folder
    from deit.core.model_directory import files_to_publish

    files, left = files_to_publish(model)
    address = upload_folder(
        model,
        name,
        files=files,
        commit_message=message,
        private=private,
        revision=branch,
        create_pr=propose,
    )
    say(f"Uploaded {counted(len(files), 'file')}: {', '.join(files)}")
    if left:
        say(f"Left out, as no part of a model directory: {some_of(left)}")
    say(f"{model} is on the hub: {address}")

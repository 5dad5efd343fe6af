"""`deit push`: a model directory on the model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.terminal.console import counted, reports_errors, say
from deit.cli.terminal.parameters import path

_MOST_NAMED = 10


@reports_errors
def push(
    model: Annotated[Path, typer.Argument(help="Model directory.", parser=path)],
    name: Annotated[str, typer.Argument(help="On the hub, such as me/my-deit; made if it is missing.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who may see a new one; your default without.")
    ] = None,
    message: Annotated[str, typer.Option(help="Says what the upload is.")] = "Upload model",
    branch: Annotated[str | None, typer.Option(help="Another branch than the main one; it must exist.")] = None,
    propose: Annotated[bool, typer.Option("--propose", help="Open a pull request in place of a commit.")] = False,
) -> None:
    """Upload a model with its card to the model hub; training states and all other files stay here.

    The token is that of `hf auth login`, or of the environment variable HF_TOKEN.
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
        more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
        say(f"Left out, as no part of a model directory: {', '.join(left[:_MOST_NAMED])}{more}")
    say(f"{model} is on the hub: {address}")

"""`deit convert`: a checkpoint in another dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.terminal.console import reports_errors, say
from deit.cli.terminal.parameters import path, place


@reports_errors
def convert(
    source: Annotated[
        str,
        typer.Argument(help="Folder, weight file, hub name or timm/NAME, in any dialect.", parser=place),
    ],
    destination: Annotated[
        Path,
        typer.Argument(help="Folder to write; for original a file that ends in .pth.", parser=path),
    ],
    to: Annotated[str, typer.Option(help="huggingface, timm or original.")] = "huggingface",
    variant: Annotated[
        str | None, typer.Option(help="Architecture of a file that does not say it, see deit.list_models().")
    ] = None,
) -> None:
    """Write a checkpoint in another dialect and check that outputs agree."""
    from deit.models.conversion import convert as convert_checkpoint

    result = convert_checkpoint(source, destination, to=to, variant=variant)
    say(f"{result.model}, from {result.source_dialect} to {result.target}: {result.path}")
    say(f"Preprocessing: {result.preprocessing}.")
    say(f"Largest difference on random pixels, opened with {result.checked_with}: {result.largest_difference:.2e}")

"""`deit convert`: writes a checkpoint in another format."""

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
        typer.Argument(
            metavar="SOURCE", help="Checkpoint to read: folder, weight file, hub name or timm/NAME.", parser=place
        ),
    ],
    destination: Annotated[
        Path,
        typer.Argument(metavar="DESTINATION", help="Folder to write; with --to original, a .pth file.", parser=path),
    ],
    to: Annotated[
        str,
        typer.Option(metavar="FORMAT", help="Format to write: huggingface, timm, or original (the DeiT authors')."),
    ] = "huggingface",
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Architecture, a name of deit.list_models(), for weights whose shapes do not tell it.",
            show_default="read from the checkpoint",
        ),
    ] = None,
    token_merging: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Similar patch tokens that each block of the copy merges, for speed; 0 for none. Answers change a "
            "little: run deit evaluate on the copy. Only with --to huggingface.",
            show_default="as the checkpoint",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint to another format and compare the outputs."""
    from deit.models.conversion import convert as convert_checkpoint

    result = convert_checkpoint(source, destination, to=to, variant=variant, token_merging=token_merging)
    say(f"{result.model}, from {result.source_dialect} to {result.target}: {result.path}")
    if token_merging:
        say(f"The copy merges up to {token_merging} patch tokens in each block but the last. Calibrate it anew.")
    say(f"Preprocessing: {result.preprocessing}.")
    say(f"Largest difference on random pixels, opened with {result.checked_with}: {result.largest_difference:.2e}")

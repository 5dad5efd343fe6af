"""What the arguments and options of several commands have in common: their types, and what help says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def path(text: str) -> Path:
    """Reads a path of this machine; a ~ at its beginning is the home folder."""
    return Path(place(str(text)))


def place(text: str) -> str:
    """Reads what may be a path, or a name, pattern or address of another kind."""
    from deit.core.files import at_home

    return at_home(text)


Model = Annotated[str, typer.Argument(help="Model directory, name on the model hub, or timm/NAME.", parser=place)]
LabelledImages = Annotated[
    str, typer.Argument(help="Labelled images of any kind that deit train takes; their val part.", parser=place)
]
Average = Annotated[str | None, typer.Option(help="Of two heads: logits or probabilities.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")]
Column = Annotated[str, typer.Option(help="Of a table, where it is not plain.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first file that is not an image.")]
ValueRange = Annotated[tuple[float, float] | None, typer.Option(help="Black and white beyond 8 bits.")]

# Of the two commands that train.
RunFolder = Annotated[Path, typer.Option(help="Folder for the run and the model; new or empty.", parser=path)]
InitialWeights = Annotated[
    str | None,
    typer.Option(help="Weights to begin with: model directory, hub name, timm/NAME or weight file.", parser=place),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(help="Images in a step, over all processes.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the input in pixels; the variant's without.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")]

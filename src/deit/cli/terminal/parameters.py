"""Defines the arguments and options that several commands have: their types and their help texts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer


def path(text: str) -> Path:
    """Returns a path; a leading ~ is the home folder."""
    return Path(place(str(text)))


def place(text: str) -> str:
    """Returns a path, name, pattern or address; a leading ~ is the home folder."""
    from deit.core.files import at_home

    return at_home(text)


def use_cache_size(size: str | None) -> None:
    """Sets the size of the cache of streams for this process and those that it starts; None leaves it.

    Raises:
        UserError: It is no size.
    """
    from deit.data.streams.disk_cache import SIZE_SWITCH, parse_size

    if size is not None:
        parse_size(size)
        os.environ[SIZE_SWITCH] = size


def command_line(context: typer.Context, without: Collection[str] = ()) -> str:
    """Returns the command line, without options at their defaults and those of some names. Pairs are numbers.

    Addresses come without their queries, which may be keys.
    """
    from deit.data.streams.addresses import named

    words = ["deit", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in without:
            continue
        if parameter.param_type_name == "argument":
            words.append(named(str(value)))
        elif value is True:
            words.append(parameter.opts[0])
        elif value != parameter.default and value is not None:
            pair = isinstance(value, tuple)
            words += [parameter.opts[0], *([f"{each:.12g}" for each in value] if pair else [str(value)])]
    return shlex.join(words)


_OF_RECIPE = "that of the recipe"

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Model directory, name on the Hugging Face Hub, or timm/NAME.", parser=place),
]
LabeledImages = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Labeled images: a folder with one sub-folder per class, Parquet, CSV or tar files. Of data with splits, "
        "the validation split.",
        parser=place,
    ),
]
Average = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="What to average over two heads: logits or probabilities.",
        show_default="that of the model",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", help="Device to run on: auto, cpu, cuda, cuda:1, ... auto uses a GPU if there is one."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What runs the model: torch, torch-compiled, cuda, openvino, onnxruntime, or auto (the fastest one).",
    ),
]
InferenceBatchSize = Annotated[int, typer.Option(metavar="N", help="Number of images per forward pass.")]
ImageColumn = Annotated[
    str, typer.Option(metavar="NAME", help="Column of a table that holds the images.", show_default="found by its type")
]
LabelColumn = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Column of a table that holds the labels.", show_default="found by type and name"
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first unreadable file instead of skipping and reporting it.")
]
ValueRange = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="BLACK WHITE",
        help="Pixel values of black and white in images of more than 8 bits, such as 0 4095.",
        show_default="those of the model",
    ),
]

# Of the two commands that train.
RunFolder = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Folder to write the model and the logs to. Must be new or empty, except with --resume.",
        parser=path,
    ),
]
InitialWeights = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Weights to start from: model directory, hub name, timm/NAME or weight file.",
        show_default="random weights",
        parser=place,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of passes over the training images.", show_default=_OF_RECIPE),
]
BatchSize = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of images per step, over all processes.", show_default=_OF_RECIPE),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Random seed for weights, order, augmentation and dropout.", show_default=_OF_RECIPE
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS", help="Height and width of the model's input, in pixels.", show_default="that of the model"
    ),
]
DetectAnomaly = Annotated[
    bool,
    typer.Option(
        "--detect-anomaly",
        help="End at the first number that is infinite or NaN, and name the module where it arose. Slow.",
    ),
]
Sharding = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="Many machines: fsdp divides weights, gradients and optimizer among the processes (FSDP2); "
        "none gives each process all.",
    ),
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        help="Many machines: save memory, keep only the inputs of blocks and compute the blocks again in the backward "
        "pass.",
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Use only kernels of a GPU that give the same bits each time. Slower; a CPU always does so.",
    ),
]
CacheSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Many machines: disk space for parts of shards that are elsewhere (https://, s3://, ...), such as 20GB; 0 "
        "for none.",
        show_default="DEIT_CACHE_SIZE, or 10GB",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its newest saved state.")]
AutoResume = Annotated[
    bool,
    typer.Option(
        "--auto-resume",
        help="Many machines: continue the run in --out if there is one, and begin it otherwise. For commands that "
        "torchrun or a scheduler starts again.",
    ),
]
NoticeFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="DEIT_NOTICE_FILE",
        help="Many machines: file that a scheduler makes before it takes the machine away. The run saves its state and "
        "exits with code 138.",
        show_default="none",
        parser=path,
    ),
]

"""`deit quantize`: makes an 8-bit model, and keeps it if it agrees with the original and is faster here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.terminal.console import counted, print_table, progress_bar, reports_errors, say
from deit.cli.terminal.parameters import Model, path, place

if TYPE_CHECKING:
    from deit.export.quantization.quantizing import Quantized

_MOST_FLIPS = 10


@reports_errors
def quantize(
    model: Model,
    calibrate: Annotated[
        list[str],
        typer.Option(
            metavar="IMAGES",
            help="Images like those that the model will see, 100 or more, without labels: files, folders or patterns. "
            "Repeat it for several.",
            parser=place,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New or empty folder to write to.", parser=path)],
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Engine that will run the model: openvino or onnxruntime.")
    ] = "openvino",
    agreement: Annotated[
        float, typer.Option(metavar="PERCENT", help="Share of the images that must keep their answer.")
    ] = 99.0,
    allow_slower: Annotated[
        bool, typer.Option("--allow-slower", help="Keep the model even if it is not faster on this machine.")
    ] = False,
) -> None:
    """Quantize a model to 8-bit integers, and keep it if it agrees with the original and is faster here.

    Compares the answers on images that it was not calibrated with, and the speed in turns. Otherwise it writes nothing
    and exits with code 2. Lists the images whose answer changes, and writes them to label_flips.csv.
    """
    from deit.data.storage.image_search import find_images
    from deit.export.quantization.quantizing import QuantizationRefusedError, quantize as quantized

    images = [found for found in find_images(calibrate).paths if found is not None]
    try:
        with progress_bar("Quantizing") as update:
            result = quantized(
                model,
                out,
                calibrate=images,
                engine=engine,
                agreement=agreement,
                allow_slower=allow_slower,
                progress=lambda what, done, total: update(done, total, what),
            )
    except QuantizationRefusedError as refused:
        _tell(refused.result)
        raise
    _tell(result)
    say(f"Written: {out}, which deit classify and Predictor.open take as a model.")


def _tell(result: Quantized) -> None:
    if result.unreadable:
        left = counted(len(result.unreadable), "image")
        say(f"Left out {left} that cannot be read; the first: {result.unreadable[0]}", err=True)
    say(result.describe_images())
    which = "The best" if result.refusal and result.speed is None else "Taken"
    for words, share in result.tried:
        say(f"Tried: {words}: {share:.2f} % of the answers are the same.")
    say(
        f"{which}: {result.kept}: {result.agreement:.2f} % of the answers are the same, "
        f"largest difference of a logit {result.largest_difference:.3g}."
    )
    if result.speed is not None:
        say(f"Speed here, in turns: {result.speed.describe()}.")
    if result.flips:
        rows = [
            [
                each.image,
                f"{each.original} ({each.original_score:.2f})",
                f"{each.quantized} ({each.quantized_score:.2f})",
            ]
            for each in result.flips[:_MOST_FLIPS]
        ]
        more = f", the first {_MOST_FLIPS}" if len(result.flips) > _MOST_FLIPS else ""
        answers = counted(len(result.flips), "answer changes", "answers change")
        print_table(f"{answers}{more}", ["image", "original", "quantized"], rows)

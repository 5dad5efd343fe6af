"""`deit export`: writes a model for other programs, and checks it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.terminal.console import counted, progress_bar, reports_errors, say
from deit.cli.terminal.parameters import Model, path, place

if TYPE_CHECKING:
    from deit.export.exporting import Exported


@reports_errors
def export(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder to write to: new, empty, the model directory itself, or one with other formats of the model.",
            parser=path,
        ),
    ],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="Format: onnx, openvino or torch.")] = "onnx",
    precision: Annotated[
        str,
        typer.Option(metavar="TYPE", help="fp32, fp16 (half the size), or bf16 (torch, and openvino where it runs)."),
    ] = "fp32",
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGES",
            help="Images to compare with the model: files, folders or patterns. Repeat it for several.",
            show_default="100 pictures made for it",
            parser=place,
        ),
    ] = None,
    opset: Annotated[int, typer.Option(metavar="N", help="Version of ONNX's operators, 18 to 23.")] = 18,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Largest difference of a logit.",
            show_default="0.001 in fp32, 0.05 in fp16, 0.3 in bf16",
        ),
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Leave out the preprocessing: write only the file that takes pixels.")
    ] = False,
) -> None:
    """Export a model to ONNX, OpenVINO or PyTorch, and compare the result with the model.

    Writes a file from 8-bit images of any size to calibrated probabilities, a file from pixels to logits, and
    export.json. Writes nothing if the results differ.
    """
    from deit.data.storage.image_search import find_images
    from deit.export.exporting import CHECKED_IMAGES, export_model

    images = None if not check else [found for found in find_images(check).paths if found is not None]
    total = CHECKED_IMAGES if images is None else len(images)
    with progress_bar("Comparing") as update:
        done = export_model(
            model,
            out,
            to=to,
            precision=precision,
            check=images,
            opset=opset,
            tolerance=tolerance,
            preprocessing=not pixels,
            on_image=lambda number: update(number, total),
        )
    _tell(done, "your images" if images else "made pictures; --check compares with your own photos")


def _tell(done: Exported, kind: str) -> None:
    written, compared = done.written, done.check
    say(f"Compared on {counted(compared.images, 'image')} ({kind}), run with {written.checked_with}:")
    say(
        f"  same answer: {100 * compared.agreement:.2f} %, "
        f"largest difference of a logit: {compared.largest_difference:.2e}"
    )
    if compared.equal_pixels is not None:
        say(f"  equal pixels: {100 * compared.equal_pixels:.4f} %")
    for name in (written.classifier, written.model):
        if name:
            takes = "images to probabilities" if name == written.classifier else "pixels to logits"
            say(f"{done.folder / name}: {takes}")

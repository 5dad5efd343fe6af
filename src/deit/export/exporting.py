"""Exports models: writes the files of a format, checks them against the original, and describes them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from deit.core.errors import UserError, shown
from deit.core.export_file import ONNX, OPENVINO, TORCH, Check, Export, ExportedFormat, read_export
from deit.core.file_names import CALIBRATION_NAME, CLOUDS_NAME
from deit.core.files import replace_folder_content, sha256_of_file
from deit.core.images.image_inputs import items_of
from deit.core.model_directory import is_model_directory
from deit.core.printable import counted, some_of
from deit.export.checking import checked
from deit.export.formats.written_format import Format, Wanted
from deit.export.original import Original, open_original
from deit.export.sample_photos import sample_photos
from deit.runtime.packages import installed_versions

logger = logging.getLogger(__name__)

CHECKED_IMAGES = 100
DEFAULT_OPSET = 18

# Format -> its module, which imports its packages only when it works.
_FORMATS = {
    ONNX: "deit.export.formats.onnx_format",
    OPENVINO: "deit.export.formats.openvino_format",
    TORCH: "deit.export.formats.torch_format",
}
# Formats that are made from others, and where that is described.
_ELSEWHERE = ("executorch", "tensorrt", "coreml", "litert", "tflite", "savedmodel")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: Where it is.
        told: The content of `export.json`.
        written: What was added.
        unreadable: Why images were left out of the check.
    """

    folder: Path
    told: Export
    written: ExportedFormat
    unreadable: tuple[str, ...]

    @property
    def check(self) -> Check:
        """The comparison with the original."""
        return self.written.check


def export_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = ONNX,
    precision: str = "fp32",
    check: Any = None,
    opset: int = DEFAULT_OPSET,
    tolerance: float | None = None,
    preprocessing: bool = True,
    on_image: Callable[[int], None] | None = None,
) -> Exported:
    """Exports a model to run without this package, and compares the result with the model on images.

    Writes a file from pixels to logits, and one from 8-bit images of any size to calibrated probabilities, which
    docs/export.md describes. If they disagree with the model, nothing is written.

    Args:
        model: A model directory, or a name; see `Predictor.open`.
        out: A new or empty folder; the model directory itself; or a folder with another format of the same model.
        to: "onnx", "openvino" or "torch" (a program of `torch.export`).
        precision: "fp32"; "fp16" for half the size; "bf16" for PyTorch, and for OpenVINO on processors that have it.
        check: Images to compare on: paths or PIL images. None takes 100 pictures that are made for it; photos say more.
        opset: Version of ONNX's operators, 18 to 23.
        tolerance: Largest difference of a logit; None is 0.001 in fp32, 0.05 in fp16 and 0.3 in bf16.
        preprocessing: Whether to write the file that takes images.
        on_image: Called with the number of images that were compared.

    Returns:
        Where it is, and how it compared.

    Raises:
        FileExistsError: The folder holds something else.
        MissingPackageError: The package of the format is not installed.
        UserError: The format, precision or opset is unknown; the preprocessing cannot be exported; or the export
            disagrees with the model.

    Examples:
        >>> deit.export_model("runs/pets", "exported", to="onnx", check=["cat.jpg"])  # doctest: +SKIP
    """
    kind, wanted = _format(to), Wanted(precision=precision, opset=opset)
    _refuse_tolerance(tolerance)
    kind.require(wanted)
    folder = Path(out)
    before = _before(folder, kind, preprocessing=preprocessing, model=model)
    original = open_original(model, preprocessing=preprocessing)
    _refuse_other_model(folder, before, original)
    images = sample_photos(CHECKED_IMAGES) if check is None else _images(check)
    with replace_folder_content(folder) as temporary:
        kind.write(original, wanted, temporary)
        opened = kind.opened(original, wanted, temporary)
        compared, unreadable = checked(
            original, opened, images, precision=precision, tolerance=tolerance, on_image=on_image
        )
        written = _described(kind, wanted, temporary, opened.name, compared, is_onnx=to == ONNX)
        told = original.described({**(before.formats if before is not None else {}), to: written})
        _add_calibration(original, folder, temporary)
        told.write(temporary)
    _warn_of(unreadable)
    return Exported(folder=folder, told=told, written=written, unreadable=tuple(unreadable))


def _refuse_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise UserError(f"The tolerance must be a number of at least 0. Received: {tolerance}.")


def _warn_of(unreadable: list[str]) -> None:
    if unreadable:
        left = counted(len(unreadable), "image was", "images were")
        logger.warning("%s left out of the check: %s", left, some_of(unreadable, 5))


def _format(name: str) -> Format:
    if name in _ELSEWHERE:
        raise UserError(f"{name} is not written directly. docs/export.md describes the way there from another format.")
    if name not in _FORMATS:
        raise UserError(f"The format must be {', '.join(_FORMATS)}. Received: {shown(name)}.")
    return cast("Format", import_module(_FORMATS[name]))


def _before(folder: Path, kind: Format, *, preprocessing: bool, model: Any) -> Export | None:
    """Returns what a folder holds of other formats.

    Raises:
        FileExistsError: It holds something else, or this format.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Pass a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    names = [kind.MODEL, *([kind.CLASSIFIER] if preprocessing else [])]
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise FileExistsError(f"{folder} already holds {some_of(there)}. Remove it, or pass a new folder.")
    before = read_export(folder)
    is_model = is_model_directory(folder) and Path(model).exists() and folder.resolve() == Path(model).resolve()
    if before is None and not is_model:
        raise FileExistsError(f"{folder} holds other files. Pass a new or empty folder, or the model directory itself.")
    return before


def _refuse_other_model(folder: Path, before: Export | None, original: Original) -> None:
    """Raises an error if a folder holds exports of another model.

    Raises:
        FileExistsError: It does.
    """
    if before is None:
        return
    now = original.described({})
    names = {"weights": "other weights", "preprocessing": "another preprocessing", "classes": "other classes"}
    differs = [words for name, words in names.items() if before.identity[name] != now.identity[name]]
    if not differs and before.temperature != now.temperature:
        differs = ["another calibration"]
    if differs:
        raise FileExistsError(f"{folder} holds exports of another model ({', '.join(differs)}). Pass a new folder.")


def _images(check: Any) -> Iterable[Any]:
    found = items_of(check)
    return [found] if isinstance(found, (str, bytes, os.PathLike)) else found


def _described(
    kind: Format, wanted: Wanted, folder: Path, checked_with: str, check: Check, *, is_onnx: bool
) -> ExportedFormat:
    files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
    return ExportedFormat(
        precision=wanted.precision,
        model=kind.MODEL,
        classifier=kind.CLASSIFIER if kind.CLASSIFIER in files else "",
        files=files,
        checked_with=checked_with,
        check=check,
        opset=wanted.opset if is_onnx else None,
        versions=installed_versions(("deit", *kind.PACKAGES)),
    )


def _add_calibration(original: Original, folder: Path, temporary: Path) -> None:
    """Copies the calibration beside the exports, so that engines of this package use it."""
    source = original.contract.folder
    if original.predictor.calibration is None or source is None or source.resolve() == folder.resolve():
        return
    for name in (CALIBRATION_NAME, CLOUDS_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, temporary / name)

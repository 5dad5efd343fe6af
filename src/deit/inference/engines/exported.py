"""Finds exported models, and reads from the directory around one what its answers mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deit.core.errors import DamagedFileError, UserError
from deit.core.export_file import ONNX, OPENVINO, Export, read_export
from deit.core.file_names import CONFIG_NAME, EXPORT_NAME, PREPROCESSOR_NAME
from deit.core.files import sha256_of_file
from deit.core.labels import names_in_order
from deit.core.model_directory import is_model_directory, read_image_processor, read_known_images
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import SINGLE_LABEL
from deit.inference.contract import Contract

FORMATS = {"openvino": OPENVINO, "onnxruntime": ONNX}  # engine -> the format that it opens
ENDINGS = {"openvino": ".xml", "onnxruntime": ".onnx"}


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """An exported model that an engine can open.

    Attributes:
        engine: Name of the engine.
        file: From pixels to the logits of each head.
        contract: What it takes and what its answers mean.
        precision: "fp32", "fp16", "bf16" or "int8".
    """

    engine: str
    file: Path
    contract: Contract
    precision: str


def find_export(path: Path, engine: str) -> ExportedModel | None:
    """Returns the exported model that a path stands for; None if it stands for something else.

    That is the path of a file, or of a directory that holds exported models and no weights.

    Args:
        path: A file or a directory.
        engine: Preferred, where a directory has several formats.

    Raises:
        UserError: A directory has no format for an engine of this package, or a file is damaged.
        FileNotFoundError: What says what the answers mean is missing.
    """
    if path.is_file():
        for name, ending in ENDINGS.items():
            if path.suffix.lower() == ending:
                return _opened(path.parent, name, path)
        return None
    if not path.is_dir() or is_model_directory(path) or (export := read_export(path)) is None:
        return None
    names = [name for name, kind in FORMATS.items() if kind in export.formats]
    if not names:
        raise UserError(
            f"{path} holds no weights, and an export that no engine here opens: {', '.join(export.formats)}."
        )
    name = engine if engine in names else names[0]
    return _opened(path, name, path / export.formats[FORMATS[name]].model)


def _opened(folder: Path, engine: str, file: Path) -> ExportedModel:
    export = read_export(folder)
    told = None if export is None else export.formats.get(FORMATS[engine])
    if export is None or told is None or file.name not in told.files:
        return ExportedModel(engine=engine, file=file, contract=_of_configuration(file), precision="fp32")
    if file.name == told.classifier:
        raise UserError(
            f"{file} takes images of any size, not the pixels that an engine is given. Pass {folder / told.model}."
        )
    _compare_hashes(folder, told.files)
    return ExportedModel(engine=engine, file=file, contract=_of_export(folder, export), precision=told.precision)


def _compare_hashes(folder: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        if sha256_of_file(folder / name) != expected:
            raise DamagedFileError(
                f"{folder / name} is damaged or was changed after the export: its SHA-256 differs from that in "
                f"{EXPORT_NAME}. Export again."
            )


def _of_export(folder: Path, export: Export) -> Contract:
    saved = (folder / PREPROCESSOR_NAME).is_file()
    return Contract(
        processor=read_image_processor(folder) if saved else DeiTImageProcessor.from_dict(dict(export.preprocessing)),
        label_names=list(export.classes),
        head_names=export.heads,
        problem_type=export.problem_type,
        image_size=export.image_size,
        num_channels=export.num_channels,
        folder=folder,
        head_average=export.identity["head_average"] or None,
        known_images=read_known_images(folder),
    )


def _of_configuration(file: Path) -> Contract:
    """Returns the contract of a file that no `export.json` describes."""
    from deit.models.auto_openers import AutoConfig
    from deit.models.classifier import BOTH, CLASS, DISTILLATION

    folder = file.parent
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"Neither {EXPORT_NAME} nor {CONFIG_NAME} lies beside {file.name} in {folder}, so the names of its classes "
            "are unknown. Export the model again with deit export, or copy the file to its model directory."
        )
    config = AutoConfig.from_pretrained(folder)
    two = any("WithTeacher" in str(name) for name in config.architectures or ())
    return Contract(
        processor=read_image_processor(folder),
        label_names=names_in_order(config.id2label),
        head_names=(BOTH, CLASS, DISTILLATION) if two else (CLASS,),
        problem_type=config.problem_type or SINGLE_LABEL,
        image_size=config.grid_image_size,
        num_channels=config.num_channels,
        folder=folder,
        head_average=config.head_average if two else None,
        known_images=read_known_images(folder),
    )

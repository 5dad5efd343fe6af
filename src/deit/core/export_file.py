"""Reads and writes `export.json`: what was exported from a model, and how it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deit.core.config.field_checks import MOST_LABELS
from deit.core.config.file_fields import FileFields
from deit.core.errors import DamagedFileError, parsing, read_json, shown
from deit.core.file_names import EXPORT_NAME, EXPORTED_FILES
from deit.core.files import write_json_atomically

ONNX, OPENVINO, TORCH = "onnx", "openvino", "torch"
FORMATS = (ONNX, OPENVINO, TORCH)
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

_FORMAT = 1
_KIND = "the description of an export"
_MOST_IMAGES = 10**9
_IDENTITY = ("weights", "preprocessing", "classes", "head_average")


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an exported model was compared with the original, on real images.

    Attributes:
        images: How many.
        largest_difference: Of any logit.
        agreement: Share of images with the same answer, between 0 and 1.
        tolerance: Largest difference that was allowed.
        largest_score_difference: Of any probability, from images; 0 if the preprocessing was not exported.
        equal_pixels: Share of pixels that are equal to those of the image processor; None likewise.
    """

    images: int
    largest_difference: float
    agreement: float
    tolerance: float
    largest_score_difference: float = 0.0
    equal_pixels: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExportedFormat:
    """One format of an export.

    Attributes:
        precision: One of `PRECISIONS`.
        model: The file from pixels, float32 (B, C, H, W) named "pixels", to the logits (B, K) of each head, named like
            the heads.
        classifier: The file from images, uint8 (B, H, W, 3) named "images", to "probabilities" (B, K) (of a
            regression: "values"); empty if there is none.
        files: All files of the format -> SHA-256.
        checked_with: Name and version of the engine that it was checked with.
        check: The comparison.
        opset: Version of ONNX's operators; None for other formats.
        versions: Package -> version that wrote it.
    """

    precision: str
    model: str
    classifier: str
    files: Mapping[str, str]
    checked_with: str
    check: Check
    opset: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exported directory holds. One model, in one format or several.

    Attributes:
        identity: Of the model, the fields of `deit.core.scores.calibration_file.Identity`.
        preprocessing: Settings of the image processor, as in `preprocessor_config.json`.
        classes: Class names in the order of the logits.
        heads: Names of the heads; the first one is the answer.
        problem_type: One of `PROBLEM_TYPES`.
        image_size: (height, width) of the pixels.
        num_channels: Channels of the pixels.
        temperature: What the logits of the answer are divided by before softmax or sigmoid; None without calibration.
        formats: One of `FORMATS` -> what there is of it.
    """

    identity: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    classes: list[str]
    heads: tuple[str, ...]
    problem_type: str
    image_size: tuple[int, int]
    num_channels: int
    temperature: float | None
    formats: Mapping[str, ExportedFormat]

    def write(self, folder: Path) -> None:
        """Writes `export.json` into a folder, whole or not at all."""
        write_json_atomically(folder / EXPORT_NAME, {"format": _FORMAT, **asdict(self)})


def read_export(folder: Path) -> Export | None:
    """Reads the description of an exported directory. Returns None if there is none.

    Does not compare the hashes of the files.

    Raises:
        DamagedFileError: It is damaged, hostile or of a later version, or a file that it names is missing.
    """
    path = folder / EXPORT_NAME
    if not path.exists():
        return None
    values = read_json(path, _KIND)
    if values.get("format") != _FORMAT:
        raise DamagedFileError(
            f"{path} is of format {shown(values.get('format'))}; this version reads {_FORMAT}. Export again."
        )
    fields = FileFields(path, advice="Export again")
    with parsing(path, _KIND):
        found = _parsed(values, fields)
    for name in (name for each in found.formats.values() for name in each.files):
        if not (folder / name).is_file():
            raise DamagedFileError(f"{path} names {name}, which is missing beside it. Export again.")
    return found


def _parsed(values: Mapping[str, Any], fields: FileFields) -> Export:
    size = fields.listed(values, "image_size", int, 2)
    fields.require(len(size) == 2 and min(size) > 0, "image_size", "a height and a width")
    temperature = values.get("temperature")
    identity = fields.table(values, "identity")
    formats = fields.table(values, "formats")
    fields.require(bool(formats) and set(formats) <= set(FORMATS), "formats", f"some of {', '.join(FORMATS)}")
    heads = tuple(fields.listed(values, "heads", str, 3))
    fields.require(bool(heads), "heads", "a list with a name")
    return Export(
        identity={name: fields.text(identity, name) for name in _IDENTITY},
        preprocessing=fields.table(values, "preprocessing"),
        classes=fields.listed(values, "classes", str, MOST_LABELS),
        heads=heads,
        problem_type=fields.text(values, "problem_type"),
        image_size=(size[0], size[1]),
        num_channels=fields.whole(values, "num_channels", 1, 1000),
        temperature=None if temperature is None else fields.number(values, "temperature", 1e-6, 1e6),
        formats={name: _format(fields.table(formats, name), fields) for name in formats},
    )


def _format(values: Mapping[str, Any], fields: FileFields) -> ExportedFormat:
    files = fields.table(values, "files")
    for name in files:
        fields.text(files, name)
    fields.require(bool(files) and set(files) <= set(EXPORTED_FILES), "files", "names of exported files")
    told = fields.table(values, "check")
    versions = fields.table(values, "versions")
    opset, equal = values.get("opset"), told.get("equal_pixels")
    return ExportedFormat(
        precision=fields.text(values, "precision", PRECISIONS),
        model=fields.text(values, "model", files),
        classifier=fields.text(values, "classifier", ("", *files)),
        files=files,
        checked_with=fields.text(values, "checked_with"),
        check=Check(
            images=fields.whole(told, "images", 0, _MOST_IMAGES),
            largest_difference=fields.number(told, "largest_difference", 0, 1e30),
            agreement=fields.number(told, "agreement", 0, 1),
            tolerance=fields.number(told, "tolerance", 0, 1e30),
            largest_score_difference=fields.number(told, "largest_score_difference", 0, 1e30),
            equal_pixels=None if equal is None else fields.number(told, "equal_pixels", 0, 1),
        ),
        opset=None if opset is None else fields.whole(values, "opset", 1, 1000),
        versions={name: fields.text(versions, name) for name in versions},
    )

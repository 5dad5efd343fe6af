"""Reads and writes `calibration.json`: what held-out images say about how far a model's answers can be trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deit.core.config.config_file import read_config
from deit.core.config.file_fields import FileFields
from deit.core.errors import DamagedFileError, parsing, read_bytes, read_json, shown
from deit.core.export_file import read_export
from deit.core.file_names import CALIBRATION_NAME, CLOUDS_NAME, CONFIG_NAME
from deit.core.files import replaced_file, sha256_of_file, write_text_atomically
from deit.core.model_directory import weight_files
from deit.core.printable import counted
from deit.core.processing.settings import ImageProcessor
from deit.core.scores.calibration import TEMPERATURE_RANGE
from deit.core.scores.conformal import RESIDUAL, SETS
from deit.core.scores.metrics import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL, Floats, Integers
from deit.core.scores.operating_points import PRECISION, RECALL, OperatingPoint
from deit.core.scores.outliers import FeatureClouds

MOST_CALIBRATION_IMAGES = 50_000  # ImageNet's validation images: 2 MiB; from more, so many are taken, evenly spaced
MOST_CLOUD_BYTES = 512 * 2**20

_FORMAT = 1
_KIND = "a calibration"
_MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class HeadCalibration:
    """The temperature of one head.

    Attributes:
        temperature: Divide the logits by it before softmax or sigmoid.
        interval: Its 95 % interval.
        raw_error: Expected calibration error without it, between 0 and 1; of several labels, of yes and no.
        error: The same with it, each fifth of the images at the temperature of the other four.
    """

    temperature: float
    interval: tuple[float, float]
    raw_error: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a calibration belongs to: it says nothing about other weights, classes or preprocessing.

    Attributes:
        weights: SHA-256 of the weight files; empty for a model that is no directory.
        preprocessing: SHA-256 of the settings of the processor.
        classes: SHA-256 of the class names and the problem type.
        head_average: How two heads answer together; empty for one head.
    """

    weights: str
    preprocessing: str
    classes: str
    head_average: str

    def difference(self, other: Identity) -> str:
        """Returns what differs in words; empty if nothing does."""
        names = {
            "weights": "other weights or another merging of tokens",
            "preprocessing": "another preprocessing",
            "classes": "other classes",
            "head_average": "another average of the heads",
        }
        return ", ".join(words for name, words in names.items() if getattr(self, name) != getattr(other, name))


def identity_of(
    folder: Path | None, processor: ImageProcessor, classes: list[str], problem_type: str, head_average: str | None
) -> Identity:
    """Returns the identity of an opened model; see `identity_of_weights`.

    Args:
        folder: The model directory, if there is one.
        processor: The preprocessing in use. Its `value_range` does not count: it depends on the images.
        classes: Class names, in the order of the logits.
        problem_type: One of `PROBLEM_TYPES`.
        head_average: See `Contract`.
    """
    settings = {k: v for k, v in processor.to_dict().items() if k not in ("value_range", "image_processor_type")}
    return Identity(
        weights="" if folder is None else identity_of_weights(folder),
        preprocessing=hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(),
        classes=hashlib.sha256("\0".join([problem_type, *classes]).encode("utf-8", "surrogatepass")).hexdigest(),
        head_average=head_average or "",
    )


def identity_of_weights(folder: Path) -> str:
    """Returns the hash of the weights of a model directory, with how it merges tokens; empty without weights.

    A folder of exports without weights has those that it was made from.

    Args:
        folder: The model directory.
    """
    files = weight_files(folder) if folder.is_dir() else []
    if not files:
        export = read_export(folder)
        return "" if export is None else export.identity["weights"]
    weights = hashlib.sha256(b"".join(bytes.fromhex(sha256_of_file(file)) for file in files))
    merging = read_config(folder).get("token_merging") if (folder / CONFIG_NAME).is_file() else None
    if merging:  # only then, so that other identities stay as they were: the same weights, but other answers
        weights.update(json.dumps(merging, sort_keys=True).encode())
    return weights.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Outliers:
    """From which distance on an image counts as unlike the training images.

    Attributes:
        clouds: Features of the training images.
        threshold: Distance up to which 95 of 100 held-out images lie.
        images: Training images that the clouds are from.
    """

    clouds: FeatureClouds
    threshold: float
    images: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What held-out images say about a model.

    Attributes:
        problem_type: One of `PROBLEM_TYPES`.
        classes: Class names.
        heads: Head -> its temperature, the answer first; empty for a regression.
        images: Held-out images, n.
        fingerprint: Hash of their contents and labels.
        measured: Those of them that the training scored the model on; None if that is not recorded.
        identity: The model.
        labels: (n,) true classes; empty unless each image has one.
        scores: One of `SETS`, or "residual" -> (n,) conformal scores of the true answers.
        points: From which score on a class is named, of binary and multi-label models.
        outliers: None without training images.
        notes: Sentences that a reader should know; not written.
    """

    problem_type: str
    classes: list[str]
    heads: dict[str, HeadCalibration]
    images: int
    fingerprint: str
    measured: int | None
    identity: Identity
    labels: Integers
    scores: dict[str, Floats]
    points: tuple[OperatingPoint, ...] = ()
    outliers: Outliers | None = None
    notes: tuple[str, ...] = ()

    def temperature(self, head: str) -> float:
        """Returns the temperature of a head; 1 where there is none."""
        return self.heads[head].temperature if head in self.heads else 1.0

    def describe(self) -> str:
        """Returns a sentence that says what scores are divided by, and where it is from."""
        if not self.heads:
            return f"Calibrated on {counted(self.images, 'held-out image')}."
        head, fitted = next(iter(self.heads.items()))
        low, high = fitted.interval
        return (
            f"Scores are calibrated on {counted(self.images, 'held-out image')} (temperature of the head {head}: "
            f"{fitted.temperature:.2f}, 95 % interval {low:.2f} to {high:.2f})."
        )

    def write(self, folder: Path) -> None:
        """Writes `calibration.json`, and `calibration.safetensors` where there are features, into a model directory."""
        values: dict[str, Any] = {"format": _FORMAT, "problem_type": self.problem_type, "images": self.images}
        values |= {"fingerprint": self.fingerprint, "measured": self.measured, "identity": asdict(self.identity)}
        values |= {"heads": {name: asdict(head) for name, head in self.heads.items()}, "classes": self.classes}
        values["points"] = [asdict(point) for point in self.points]
        if self.outliers is not None:
            digest = _write_clouds(folder / CLOUDS_NAME, self.outliers.clouds)
            values["outliers"] = {
                "threshold": self.outliers.threshold,
                "images": self.outliers.images,
                "sha256": digest,
            }
        values["labels"] = self.labels.tolist()
        values["scores"] = {name: [float(f"{s:.9g}") for s in scores] for name, scores in self.scores.items()}
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        write_text_atomically(folder / CALIBRATION_NAME, "{\n" + ",\n".join(lines) + "\n}\n")
        if self.outliers is None:
            (folder / CLOUDS_NAME).unlink(missing_ok=True)


def read_calibration(folder: Path) -> Calibration | None:
    """Reads the calibration of a model directory. Returns None if there is none.

    Does not check that it belongs to the model: `Identity.difference` does.

    Raises:
        DamagedFileError: A file is damaged, hostile, of a later version, or one of two is missing.
    """
    path = folder / CALIBRATION_NAME
    if not path.exists():
        return None
    values = read_json(path, _KIND)
    if values.get("format") != _FORMAT:
        raise DamagedFileError(
            f"{path} is of format {shown(values.get('format'))}; this version reads {_FORMAT}. Calibrate again."
        )
    fields = FileFields(path, advice="Calibrate again, or remove the file")
    with parsing(path, _KIND):
        found = _parsed(values, fields)
    told = values.get("outliers")
    if told is None:
        return found
    return replace(found, outliers=_read_outliers(folder, told, fields))


def _parsed(values: Mapping[str, Any], fields: FileFields) -> Calibration:
    kind = fields.text(values, "problem_type", PROBLEM_TYPES)
    classes = fields.listed(values, "classes", str, _MOST_CLASSES)
    images = fields.whole(values, "images", 1, MOST_CALIBRATION_IMAGES)
    heads = {}
    for name, head in fields.table(values, "heads").items():
        ends = fields.listed(head, "interval", float, 2)
        low, high = TEMPERATURE_RANGE
        heads[name] = HeadCalibration(
            temperature=fields.number(head, "temperature", low, high),
            interval=(ends[0], ends[1]),
            raw_error=fields.number(head, "raw_error", 0, 1),
            error=fields.number(head, "error", 0, 1),
        )
    labels = np.array(fields.listed(values, "labels", int, images), np.int64)
    fields.require(kind != SINGLE_LABEL or len(labels) == images, "labels", "one for each image")
    fields.require(not len(labels) or 0 <= labels.min() <= labels.max() < len(classes), "labels", "class numbers")
    scores = {}
    for name in {SINGLE_LABEL: SETS, REGRESSION: (RESIDUAL,), MULTI_LABEL: ()}[kind]:
        scores[name] = np.array(fields.listed(fields.table(values, "scores"), name, float, images))
        fields.require(len(scores[name]) == images, f"scores of {name}", "one for each image")
    points = [_point(each, classes, fields) for each in fields.listed(values, "points", dict, 2 * _MOST_CLASSES)]
    fields.require(kind != SINGLE_LABEL or len({point.label for point in points}) < 2, "points", "of one class")
    measured = values.get("measured")
    identity = fields.table(values, "identity")
    return Calibration(
        problem_type=kind,
        classes=classes,
        heads=heads,
        images=images,
        fingerprint=fields.text(values, "fingerprint"),
        measured=None if measured is None else fields.whole(values, "measured", 0, images),
        identity=Identity(**{name: fields.text(identity, name) for name in Identity.__dataclass_fields__}),
        labels=labels,
        scores=scores,
        points=tuple(points),
    )


def _point(values: Mapping[str, Any], classes: list[str], fields: FileFields) -> OperatingPoint:
    most = MOST_CALIBRATION_IMAGES
    return OperatingPoint(
        label=fields.text(values, "label", classes),
        aim=fields.text(values, "aim", (PRECISION, RECALL)),
        asked=fields.number(values, "asked", 0, 1),
        threshold=fields.number(values, "threshold", 0, 1),
        **{name: fields.whole(values, name, 0, most) for name in ("positives", "named", "right")},
    )


def _write_clouds(path: Path, clouds: FeatureClouds) -> str:
    from safetensors.numpy import save_file

    with replaced_file(path) as temporary:
        save_file({"means": clouds.means, "whitening": clouds.whitening}, temporary)
    return sha256_of_file(path)


def _read_outliers(folder: Path, told: Any, fields: FileFields) -> Outliers:
    from safetensors.numpy import load

    path = folder / CLOUDS_NAME
    fields.require(isinstance(told, dict), "outliers", "a table")
    if not path.is_file():
        raise DamagedFileError(f"{folder / CALIBRATION_NAME} needs {CLOUDS_NAME} beside it, which is missing.")
    content = read_bytes(path, "the features of a calibration", MOST_CLOUD_BYTES)
    if hashlib.sha256(content).hexdigest() != fields.text(told, "sha256"):
        raise DamagedFileError(f"{path} is damaged or of another calibration. Calibrate again, or remove both files.")
    with parsing(path, "the features of a calibration"):
        tensors = load(content)
        means, whitening = tensors["means"], tensors["whitening"]
        is_right = means.ndim == whitening.ndim == 2 and whitening.shape == (means.shape[1],) * 2 and len(means) > 0
        is_right = is_right and means.dtype == whitening.dtype == np.float32
        if not is_right or not (np.isfinite(means).all() and np.isfinite(whitening).all()):
            raise DamagedFileError(f"{path} is damaged: its tensors are of other shapes or not finite.")
    return Outliers(
        clouds=FeatureClouds(means=means, whitening=whitening),
        threshold=fields.number(told, "threshold", 0, 1e30),
        images=fields.whole(told, "images", 1, 10**9),
    )

"""What stands beside a model: `calibration.json` with its features, `export.json`, `training.json`, `images.npy`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.changes import of_json, of_one_file
from tests.fuzz.driver import Target, joined, separated, write_files
from tests.fuzz.targets.models import good_model, of_safetensors

CALIBRATION, CLOUDS, EXPORT, TRAINING, IMAGES = (
    "calibration.json", "calibration.safetensors", "export.json", "training.json", "images.npy"
)  # fmt: skip
_NOTHING = hashlib.sha256(b"").hexdigest()
_NAMES = (CALIBRATION, CLOUDS, EXPORT, TRAINING, IMAGES)


def _read(data: bytes, folder: Path) -> None:
    from deit.core.export_file import read_export
    from deit.core.model_directory import read_known_images, read_training_record
    from deit.core.scores.calibration_file import read_calibration
    from deit.inference.engines.exported import find_export

    files = write_files(_with_right_hash(data), folder, _NAMES)
    if CALIBRATION in files:
        found = read_calibration(folder)
        assert found is not None
        found.write(folder)
    if EXPORT in files:
        for name in ("model.onnx", "classifier.onnx"):
            (folder / name).write_bytes(b"")
        read_export(folder)
        find_export(folder, "onnxruntime")
    if TRAINING in files:
        read_training_record(folder)
    read_known_images(folder)


def _with_right_hash(data: bytes) -> bytes:
    """Writes the hash of changed features into the calibration, which would be refused before they are read."""
    files = separated(data)
    try:
        values = json.loads(files[CALIBRATION])
        values["outliers"]["sha256"] = hashlib.sha256(files[CLOUDS]).hexdigest()
    except (KeyError, TypeError, ValueError, RecursionError):
        return data
    return joined(files | {CALIBRATION: json.dumps(values).encode()})


def _seeds() -> Mapping[str, bytes]:
    import io

    from safetensors.numpy import save

    clouds = save({"means": np.zeros((3, 4), np.float32), "whitening": np.eye(4, dtype=np.float32)})
    head = {"temperature": 1.5, "interval": [1.0, 2.0], "raw_error": 0.1, "error": 0.05}
    point = {"label": "ant", "aim": "precision", "asked": 0.9, "threshold": 0.5, "positives": 1, "named": 1, "right": 1}
    identity = {"weights": "a", "preprocessing": "b", "classes": "c", "head_average": "logits"}
    calibration: dict[str, Any] = {
        "format": 1, "problem_type": "single_label_classification", "classes": ["ant", "bee", "cow"], "images": 3,
        "fingerprint": "f", "measured": None, "identity": identity, "heads": {"class": head}, "points": [point],
        "labels": [0, 1, 2], "scores": {name: [0.1, 0.2, 0.3] for name in ("lac", "aps", "raps")},
    }  # fmt: skip
    outliers = {"outliers": {"sha256": "", "threshold": 3.0, "images": 3}}
    check = {
        "images": 1,
        "largest_difference": 0.0,
        "agreement": 1.0,
        "tolerance": 0.1,
        "largest_score_difference": 0.0,
    }
    format_ = {
        "precision": "fp32", "model": "model.onnx", "classifier": "", "files": {"model.onnx": _NOTHING},
        "checked_with": "onnxruntime 1", "check": check, "opset": 18, "versions": {"torch": "2"},
    }  # fmt: skip
    export = {
        "format": 1, "identity": identity,
        "preprocessing": json.loads((good_model() / "preprocessor_config.json").read_text()),
        "classes": ["ant", "bee", "cow"], "heads": ["class"], "problem_type": "single_label_classification",
        "image_size": [8, 8], "num_channels": 3, "temperature": None, "formats": {"onnx": format_},
    }  # fmt: skip
    training = {
        "data": {"val_fraction": 0.2}, "images": {"unrecorded": ["a"]}, "recipe": {"data": {"val_fraction": 0.2}},
        "scores": {"class": {"top1": 50.0}},
    }  # fmt: skip
    known = io.BytesIO()
    np.save(known, np.array([(1, 1), (7, 4)], dtype=[("hash", "<u8"), ("role", "u1")]))

    def as_json(values: Any) -> bytes:
        return json.dumps(values).encode()

    return {
        "calibration": joined({CALIBRATION: as_json(calibration)}),
        "outliers": joined({CALIBRATION: as_json(calibration | outliers), CLOUDS: clouds}),
        "export": joined({EXPORT: as_json(export)}),
        "training": joined({TRAINING: as_json(training), IMAGES: known.getvalue()}),
    }


_CHANGE = of_one_file(json=of_json, safetensors=of_safetensors)
TARGETS = (Target(name="records", read=_read, change=_CHANGE, seeds=_seeds, prepare=good_model),)

"""`calibration.json`: what is written is read again, and what is damaged, hostile or of another model is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from deit.core.errors import DamagedFileError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.calibration_file import (
    Calibration,
    HeadCalibration,
    Identity,
    Outliers,
    identity_of,
    read_calibration,
)
from deit.core.scores.operating_points import OperatingPoint
from deit.core.scores.outliers import FeatureClouds

IDENTITY = Identity(weights="a", preprocessing="b", classes="c", head_average="logits")
POINT = OperatingPoint(label="bee", aim="recall", asked=0.9, threshold=0.4, positives=30, named=40, right=27)


def example(**changes):
    random = np.random.default_rng(0)
    clouds = FeatureClouds.fit(random.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 2)
    values = {
        "problem_type": "single_label_classification",
        "classes": ["ant", "bee"],
        "heads": {"both": HeadCalibration(temperature=1.5, interval=(1.2, 1.9), raw_error=0.2, error=0.05)},
        "images": 60,
        "fingerprint": "d",
        "measured": 3,
        "identity": IDENTITY,
        "labels": np.arange(60) % 2,
        "scores": {name: random.uniform(size=60) for name in ("lac", "aps", "raps")},
        "points": (POINT,),
        "outliers": Outliers(clouds=clouds, threshold=3.5, images=30),
    }
    return Calibration(**{**values, **changes})


def test_what_is_written_is_read_again(tmp_path):
    written = example()
    written.write(tmp_path)
    read = read_calibration(tmp_path)
    for name in ("problem_type", "classes", "heads", "images", "fingerprint", "measured", "identity", "points"):
        assert getattr(read, name) == getattr(written, name)
    assert read.labels.tolist() == written.labels.tolist()
    assert all(read.scores[name] == pytest.approx(written.scores[name], rel=1e-8) for name in written.scores)
    assert read.outliers.threshold == 3.5
    assert np.array_equal(read.outliers.clouds.means, written.outliers.clouds.means)
    assert np.array_equal(read.outliers.clouds.whitening, written.outliers.clouds.whitening)


def test_a_new_calibration_without_outliers_takes_the_features_of_the_old_one_away(tmp_path):
    example().write(tmp_path)
    example(outliers=None).write(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["calibration.json"]
    assert read_calibration(tmp_path).outliers is None


def test_without_a_file_there_is_no_calibration(tmp_path):
    assert read_calibration(tmp_path) is None


BAD = {
    "format": 2,
    "problem_type": "guessing",
    "classes": [1, 2],
    "images": 10**9,
    "fingerprint": 7,
    "measured": 61,
    "identity": {"weights": "a"},
    "labels": [0] * 59 + [2],
    "scores": {"lac": [0.5] * 60},
    "heads": {"both": {"temperature": 0, "interval": [1, 2], "raw_error": 0, "error": 0}},
    "points": [{"label": "cow"}],
    "outliers": {"threshold": 1, "images": 3, "sha256": "0"},
}


@pytest.mark.parametrize("name", BAD)
def test_a_field_that_is_damaged_is_refused_in_one_line(tmp_path, name):
    example().write(tmp_path)
    path = tmp_path / "calibration.json"
    values = json.loads(path.read_text())
    for bad in (BAD[name], None if name not in ("measured", "outliers") else [], {"": []}, "x" * 10_000):
        path.write_text(json.dumps({**values, name: bad}))
        if name == "fingerprint" and isinstance(bad, str):
            continue
        with pytest.raises(DamagedFileError, match="calibration") as found:
            read_calibration(tmp_path)
        assert "\n" not in str(found.value)
        assert len(str(found.value)) < 600


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"format": 1}', "\0" * 100, '{"format": NaN}'])
def test_what_is_no_calibration_is_refused(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(DamagedFileError):
        read_calibration(tmp_path)


def test_numbers_that_are_not_finite_and_a_huge_file_are_refused(tmp_path):
    example(scores={name: np.full(60, np.nan) for name in ("lac", "aps", "raps")}).write(tmp_path)
    with pytest.raises(DamagedFileError, match="its lac must be a list"):
        read_calibration(tmp_path)
    (tmp_path / "calibration.json").write_text(" " * 17 * 2**20)
    with pytest.raises(DamagedFileError, match="more than"):
        read_calibration(tmp_path)


def test_features_of_another_calibration_or_none_are_refused(tmp_path):
    example().write(tmp_path)
    features = tmp_path / "calibration.safetensors"
    features.write_bytes(features.read_bytes()[:-4] + b"abcd")
    with pytest.raises(DamagedFileError, match="of another calibration"):
        read_calibration(tmp_path)
    features.unlink()
    with pytest.raises(DamagedFileError, match=r"needs calibration\.safetensors beside it"):
        read_calibration(tmp_path)


def test_an_identity_changes_with_weights_preprocessing_classes_and_average(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    processor = DeiTImageProcessor()
    first = identity_of(tmp_path, processor, ["a", "b"], "single_label_classification", None)
    assert first == identity_of(tmp_path, DeiTImageProcessor(), ["a", "b"], "single_label_classification", None)
    assert replace(first, head_average="logits").difference(first) == "another average of the heads"
    other = identity_of(tmp_path, DeiTImageProcessor(crop_size=100), ["a", "c"], "single_label_classification", None)
    assert first.difference(other) == "another preprocessing, other classes"
    (tmp_path / "calibration.json").write_text("{}")  # is no weight file
    (tmp_path / "calibration.safetensors").write_bytes(b"features")
    assert identity_of(tmp_path, processor, ["a", "b"], "single_label_classification", None) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert identity_of(tmp_path, processor, ["a", "b"], "single_label_classification", None).weights != first.weights
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    assert identity_of(tmp_path, processor, ["a", "b"], "single_label_classification", None).weights


def test_the_same_weights_that_merge_tokens_are_another_model(tmp_path):
    def weights(**fields):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **fields}))
        return identity_of(tmp_path, DeiTImageProcessor(), ["ant"], "single_label_classification", None).weights

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    plain = weights()
    assert weights(token_merging={}) == plain
    (tmp_path / "config.json").unlink()
    assert identity_of(tmp_path, DeiTImageProcessor(), ["ant"], "single_label_classification", None).weights == plain
    assert len({plain, weights(token_merging={"r": 3}), weights(token_merging={"r": 4})}) == 3

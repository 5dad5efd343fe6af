"""`deit calibrate` and what the other commands, the pipeline and transformers make of a calibrated directory."""

from __future__ import annotations

import csv
import json
import logging
import shutil

import numpy as np
import pytest
import torch

import deit as package
from deit.core.images.known_images import CALIBRATED, KnownImages
from deit.core.model_directory import published_files
from deit.core.scores.calibration_file import read_calibration
from deit.inference.predictor import Predictor
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused, succeeds
from tests.data.pictures import fill, picture


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """train/ and val/ with 20 images of each of three colours, and new/ with some to classify."""
    root = tmp_path_factory.mktemp("album")
    fill(root / "train", 20)
    fill(root / "val", 20, seed=100)
    (root / "new").mkdir()
    for name in ("red", "green", "blue"):
        picture(name, seed=999).save(root / "new" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def raw_model(album, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "raw"
    succeeds("train", album, "--student", VARIANT, "--image-size", 32, *SHORT, "--out", out)
    return out


@pytest.fixture(scope="module")
def calibrated(raw_model, album, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "calibrated"
    shutil.copytree(raw_model, out)
    result = succeeds("calibrate", out, album)
    assert "Sets hold the true class for at least 95 of 100 images" in result.stdout
    assert "Outliers are judged by 60 training images." in result.stdout
    assert "Training scored the model on 60 of these images." in result.stdout
    return out


def test_classify_uses_the_calibration_and_says_so(calibrated, raw_model, album):
    result = succeeds("classify", calibrated, album / "new", "--json")
    found = read_calibration(calibrated)
    assert (
        f"Scores are calibrated on 60 held-out images (temperature of the head both: {found.temperature('both'):.2f}"
        in (result.stderr)
    )
    answers = json.loads(result.stdout)
    assert all(one["calibrated"] and 0 < one["outlier_score"] < 100 for one in answers)
    raw = succeeds("classify", calibrated, album / "new", "--json", "--raw")
    assert "calibrated" not in raw.output
    assert json.loads(raw.stdout) == json.loads(succeeds("classify", raw_model, album / "new", "--json").stdout)
    for one, other in zip(answers, json.loads(raw.stdout), strict=True):
        logits = np.log([p["score"] for p in other["predictions"]]) / found.temperature("both")
        order = {
            p["label"]: float(np.exp(v) / np.exp(logits).sum())
            for p, v in zip(other["predictions"], logits, strict=True)
        }
        assert {p["label"]: p["score"] for p in one["predictions"]} == pytest.approx(order, rel=1e-4)


def test_classify_prints_and_writes_sets_and_abstains(calibrated, album, tmp_path):
    shown = succeeds("classify", calibrated, album / "new", "--coverage", 90, "--sets", "raps")
    assert shown.stdout.count("\tset: ") == 3
    assert "at least 90 of 100 images" in shown.stderr
    for ending in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"answers.{ending}"
        succeeds("classify", calibrated, album / "new", "--abstain", "--out", out)
        assert out.stat().st_size
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [json.loads(row["set"]) for row in rows] == [line["set"] for line in lines]
    assert [row["abstained"] for row in rows] == [line.get("abstained", "") for line in lines]
    assert all(bool(row["label_1"]) == (not row["abstained"]) for row in rows)
    assert "as_json" not in shown.output


def test_per_class_coverage_needs_images_of_each_class(calibrated, album):
    assert "of each class" in succeeds("classify", calibrated, album / "new", "--coverage", 95, "--per-class").stderr
    refused = deit("classify", calibrated, album / "new", "--coverage", 98.5, "--per-class")
    is_refused(refused, "needs at least 66 held-out images of each class", "(20)")
    shared = succeeds("classify", calibrated, album / "new", "--coverage", 97, "--per-class")
    assert "these share one threshold: blue, green, red." in shared.stderr


@pytest.mark.parametrize("coverage", ["100", "0", "1e9", "-1", "nan"])
def test_what_is_no_coverage_is_refused(calibrated, album, coverage):
    is_refused(deit("classify", calibrated, album / "new", "--coverage", coverage), "above 1 and below 100")


def test_contradicting_options_and_a_missing_calibration_are_refused(calibrated, raw_model, album):
    new = album / "new"
    is_refused(deit("classify", raw_model, new, "--coverage", 95), "need a calibration", "deit calibrate")
    is_refused(deit("classify", raw_model, new, "--abstain"), "need a calibration")
    is_refused(deit("classify", calibrated, new, "--raw", "--abstain"), "--raw leaves the calibration aside")
    is_refused(deit("classify", calibrated, new, "--per-class"), "Pass --coverage with them")
    is_refused(deit("classify", calibrated, new, "--coverage", 99.9), "needs at least 999", "has 60")
    is_refused(deit("classify", calibrated, new, "--coverage", 95, "--sets", "best"), "lac, aps, raps")


def test_a_calibration_of_other_weights_preprocessing_or_average_is_left_aside_with_a_line(
    calibrated, album, copied, caplog
):
    other = copied(calibrated)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = succeeds("classify", other, album / "new")
    assert "was made for other weights or another merging of tokens, so scores are not calibrated" in caplog.text
    assert "Scores are calibrated" not in result.stderr
    is_refused(deit("classify", other, album / "new", "--coverage", 95), "was made for other weights")
    succeeds("classify", calibrated, album / "new", "--average", "probabilities")
    assert "another average" in caplog.text
    shutil.copy(calibrated / "model.safetensors", weights)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.2, 0.3]}))
    succeeds("classify", other, album / "new")
    assert "another preprocessing" in caplog.text


def test_a_damaged_calibration_is_an_error_that_raw_passes_over(calibrated, album, copied):
    other = copied(calibrated)
    (other / "calibration.json").write_text("{")
    is_refused(deit("classify", other, album / "new"), "calibration.json is damaged")
    succeeds("classify", other, album / "new", "--raw")
    succeeds("calibrate", other, album)
    succeeds("classify", other, album / "new")


def test_images_that_the_model_learned_from_are_left_out(raw_model, album, copied, tmp_path):
    model = copied(raw_model)
    is_refused(deit("calibrate", model, album / "train"), "at least 50 images", "not learned from", "Received: 0")
    together = tmp_path / "together"
    for part in ("train", "val"):
        shutil.copytree(album / part, together, dirs_exist_ok=True, copy_function=_renaming(part))
    result = json.loads(succeeds("calibrate", model, together, "--json").stdout)
    assert result["images"] == 60
    assert result["outliers"]
    assert any("the model learned from them: 60 of 120 images" in note for note in result["notes"])


def _renaming(part):
    from pathlib import Path

    return lambda source, target: shutil.copy(source, Path(target).with_name(f"{part}-{Path(target).name}"))


def test_the_record_of_images_says_which_the_calibration_is_from(calibrated, album):
    known = KnownImages.read(calibrated)
    assert (known.roles & CALIBRATED != 0).sum() == 60
    assert "The calibration was made from 60 of these 60 images" in succeeds("evaluate", calibrated, album).stdout


def test_calibration_on_few_images_one_class_or_wrong_options_is_refused(raw_model, album, copied, photos, tmp_path):
    model = copied(raw_model)
    is_refused(deit("calibrate", model, photos), "at least 50 images", "Received: 12")
    one = tmp_path / "one" / "red"
    shutil.copytree(album / "val" / "red", one)
    for i in range(40):
        picture("red", seed=2000 + i).save(one / f"more-{i}.png")
    is_refused(deit("calibrate", model, one.parent), "All 60 held-out images are of the class red")
    is_refused(deit("calibrate", model, album, "--precision", 95), "--precision must be a share", "Did you mean 0.95?")
    is_refused(deit("calibrate", model, album, "--recall", 0.9), "models of two classes or of several labels")
    assert not (model / "calibration.json").exists()


def test_the_pipeline_uses_the_calibration_and_says_so_in_each_answer(calibrated, raw_model, album):
    image = str(album / "new" / "red.png")
    plain = package.pipeline("image-classification", str(raw_model))(image)
    pipe = package.pipeline("image-classification", str(calibrated))
    found = pipe(image)
    assert all(entry["calibrated"] is True for entry in found)
    (expected,) = Predictor.open(calibrated).classify([image], top_k=5)
    assert [(e["label"], e["score"]) for e in found] == [(p.label, pytest.approx(p.score, rel=1e-4)) for p in expected]
    assert all(set(entry) == {"label", "score"} for entry in plain)
    assert [set(e) for e in pipe(image, function_to_apply="softmax")] == [{"label", "score"}] * 3
    for one, other in zip(pipe(image, function_to_apply="softmax"), plain, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)


def test_the_pipeline_says_that_it_leaves_a_calibration_of_other_weights_aside(calibrated, album, copied, caplog):
    other = copied(calibrated)
    model = package.DeiTForImageClassificationWithTeacher.from_pretrained(other)
    with torch.no_grad():
        model.cls_classifier.weight += 1
    model.save_pretrained(other)
    with caplog.at_level(logging.WARNING):
        (first, *_) = package.pipeline("image-classification", str(other))(str(album / "new" / "red.png"))
    assert set(first) == {"label", "score"}
    assert "was made for other weights" in caplog.text


def test_transformers_opens_a_calibrated_directory_and_answers_as_without(calibrated, raw_model):
    transformers = pytest.importorskip("transformers")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for folder in (raw_model, calibrated):
        model = transformers.AutoModelForImageClassification.from_pretrained(folder)
        with torch.no_grad():
            logits.append(model(pixels).logits)
    assert torch.equal(*logits)
    assert transformers.AutoImageProcessor.from_pretrained(calibrated) is not None


def test_a_calibration_is_uploaded_with_its_model(calibrated):
    assert {"calibration.json", "calibration.safetensors"} <= set(published_files(calibrated)[0])


def test_python_calibrates_paths_as_the_command_does(raw_model, album, copied):
    model = copied(raw_model)
    result = package.calibrate(model, album)
    assert (result.images, result.outliers.images) == (60, 60)
    read = read_calibration(model)
    assert read.heads == result.heads
    assert read.identity == result.identity
    plain = package.calibrate(Predictor.open(model), album)
    assert plain.heads == result.heads  # from raw logits, whatever calibration is there


def test_a_model_of_timm_is_calibrated_too(teacher, album, copied):
    model = copied(teacher)
    told = succeeds("calibrate", model, album).stdout
    assert "needs 50 of the training images, and 24 were given" in told  # its own 24 are among those of the album
    assert "Scores are calibrated" in succeeds("classify", model, album / "new", "--coverage", 95).stderr

"""`deit evaluate`: scores that can be counted by hand, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from tests.cli.conftest import deit, is_refused, succeeds
from tests.data.pictures import fill, write_text, write_truncated_jpeg


def classified(model: Path, folder: Path) -> list[tuple[str, dict[str, float]]]:
    """For each image the name of its folder and the score of each class, through `deit classify`."""
    results = json.loads(succeeds("classify", model, folder, "--json", "--top-k", 99).stdout)
    return [(Path(r["image"]).parent.name, {p["label"]: p["score"] for p in r["predictions"]}) for r in results]


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_scores_equal_those_counted_by_hand_from_classify(request, photos, kind):
    model = request.getfixturevalue(kind)
    scores = json.loads(succeeds("evaluate", model, photos, "--json").stdout)
    by_hand = classified(model, photos / "val")
    right = [max(found, key=found.__getitem__) == name for name, found in by_hand]
    head = scores["both" if kind == "student" else "class"]
    assert len(by_hand) == head["images"] == 12
    assert head["top1"] == pytest.approx(100 * sum(right) / 12)
    assert head["top5"] == 100
    assert head["loss"] == pytest.approx(sum(-math.log(found[name]) for name, found in by_hand) / 12, abs=1e-5)
    assert list(scores) == (["both", "class", "distillation"] if kind == "student" else ["class"])


def test_scores_equal_those_of_training(photos, student):
    scores = json.loads(succeeds("evaluate", student, photos, "--json").stdout)
    recorded = json.loads((student / "training.json").read_text())["scores"]
    for head, values in recorded.items():
        assert scores[head] == pytest.approx(values, abs=1e-5)


def test_the_table_shows_what_json_does(photos, student):
    scores = json.loads(succeeds("evaluate", student, photos, "--json", "--batch-size", 5).stdout)
    shown = succeeds("evaluate", student, photos / "val").stdout
    for head, s in scores.items():
        row = rf"{head} +│ +{s['top1']:.2f} │ +{s['top5']:.2f} │ +{s['loss']:.3f} │ +12 │"
        assert re.search(row, shown)


def test_classes_are_matched_by_name_even_when_some_are_absent(tmp_path, student):
    data = fill(tmp_path, 3, ["red"])
    scores = json.loads(succeeds("evaluate", student, data, "--json").stdout)
    right = [max(found, key=found.__getitem__) == "red" for _, found in classified(student, data)]
    assert scores["both"]["images"] == 3
    assert scores["both"]["top1"] == pytest.approx(100 * sum(right) / 3)


def test_broken_files_are_left_out_with_a_report(tmp_path, student):
    data = fill(tmp_path, 2)
    write_truncated_jpeg(data / "red" / "half.jpg")
    result = succeeds("evaluate", student, data, "--json")
    assert json.loads(result.stdout)["both"]["images"] == 6
    assert result.stderr.startswith("Left out 1 file(s) that cannot be used:\n")
    assert str(data / "red" / "half.jpg") in result.stderr


def test_strict_stops_at_a_broken_file(tmp_path, student):
    data = fill(tmp_path, 2)
    write_text(data / "red" / "letter.png")
    is_refused(deit("evaluate", student, data, "--strict"), "letter.png", "is not an image", "strict is on.")


def test_data_that_cannot_be_used_is_refused(tmp_path, student):
    is_refused(deit("evaluate", student, tmp_path / "nowhere"), f"No folder at {tmp_path / 'nowhere'}.")
    is_refused(deit("evaluate", student, tmp_path), "has no class folders.")
    (tmp_path / "red").mkdir()
    is_refused(deit("evaluate", student, tmp_path), "No usable image in", "red")
    (fill(tmp_path, 1) / "red").rename(tmp_path / "pink")
    is_refused(deit("evaluate", student, tmp_path), "that the training images lack: pink. Known: blue, green, red.")


def test_a_model_that_cannot_be_used_is_refused(tmp_path, photos, student, copied):
    is_refused(deit("evaluate", tmp_path / "nowhere", photos), f"No config.json at {tmp_path / 'nowhere'}.")
    broken = copied(student)
    (broken / "preprocessor_config.json").unlink()
    is_refused(deit("evaluate", broken, photos), "No preprocessor_config.json at")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    is_refused(deit("evaluate", broken, photos), "model.safetensors cannot be read as safetensors", "truncated")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "gpu"), "The device 'gpu' cannot be used"),
        (("--batch-size", 0), "batch_size must be at least 1. Received: 0."),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(photos, student, options, message):
    is_refused(deit("evaluate", student, photos, *options), message)

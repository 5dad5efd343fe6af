"""`deit evaluate`: scores that can be counted by hand, and what it refuses."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import SHORT, VARIANT, deit, is_refused, succeeds
from tests.data.pictures import fill, write_text, write_truncated_jpeg


def classified(model: Path, folder: Path) -> list[tuple[str, dict[str, float]]]:
    """For each image the name of its folder and the score of each class, through `deit classify`."""
    results = json.loads(succeeds("classify", model, folder, "--json", "--top-k", 99).stdout)
    return [(Path(r["image"]).parent.name, {p["label"]: p["score"] for p in r["predictions"]}) for r in results]


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_scores_equal_those_counted_by_hand_from_classify(request, photos, kind):
    model = request.getfixturevalue(kind)
    scores = json.loads(succeeds("evaluate", model, photos, "--json").stdout)["heads"]
    by_hand = classified(model, photos / "val")
    right = [max(found, key=found.__getitem__) == name for name, found in by_hand]
    head = scores["both" if kind == "student" else "class"]
    assert len(by_hand) == head["images"] == 12
    assert head["top1"] == pytest.approx(100 * sum(right) / 12)
    assert head["top5"] == 100
    assert head["loss"] == pytest.approx(sum(-math.log(found[name]) for name, found in by_hand) / 12, abs=1e-5)
    assert list(scores) == (["both", "class", "distillation"] if kind == "student" else ["class"])


def test_scores_equal_those_of_training_and_the_command_says_so(photos, student):
    found = json.loads(succeeds("evaluate", student, photos, "--json").stdout)
    recorded = json.loads((student / "training.json").read_text())["scores"]
    for head, values in recorded.items():
        assert {name: found["heads"][head][name] for name in values} == pytest.approx(values, abs=1e-5)
    assert found["notes"] == [
        f"Recorded at training, on these images: both: top-1 {recorded['both']['top1']:.2f} %, "
        f"loss {recorded['both']['loss']:.3f}. Seen now is the same."
    ]
    training = succeeds("evaluate", student, photos / "train").stdout
    assert training.count("The model was trained on") == 1  # said once
    assert "so the scores are too good." in training


def test_scores_that_differ_from_those_of_training_are_shown(photos, student, copied):
    changed = copied(student)
    record = json.loads((changed / "training.json").read_text())
    record["scores"]["both"]["top1"] = 12.34
    (changed / "training.json").write_text(json.dumps(record))
    shown = succeeds("evaluate", changed, photos).stdout
    assert "Seen now is something else (both: top-1 12.34 % then, " in shown


def test_the_table_shows_what_json_does(photos, student, teacher):
    arguments = ("evaluate", student, photos, "--batch-size", 5, "--teacher", teacher)
    found = json.loads(succeeds(*arguments, "--json").stdout)
    shown = succeeds(*arguments).stdout
    for head, s in {**found["heads"], "teacher": found["teacher"]}.items():
        row = rf"{head} +│ +{s['top1']:.2f} │ +{s['top5']:.2f} │ +{s['loss']:.3f} │ +[0-9.]+ │ +12 │"
        assert re.search(row, shown)
    for head, s in found["heads"].items():
        assert re.search(rf"{head} .*│ +{100 * s['calibration_error']:.2f} │", shown)
    worst = min(found["heads"]["both"]["per_class"], key=lambda row: row["accuracy"])
    assert f"Worst classes (accuracy): {worst['class']} {worst['accuracy']:.1f} % of 4" in shown
    assert f"class and teacher {found['agreement']['class, teacher']:.2f} %" in shown
    assert f"best temperature, {found['temperature']['temperature']:.3f}: " in shown
    assert re.search(r"Throughput: [0-9.]+ images/s, .*CPU, 1 thread, batches of 5\)", shown)


def test_a_report_shows_the_scores_the_mistakes_and_the_command(tmp_path, photos, student):
    report = tmp_path / "report.html"
    arguments = ("evaluate", student, photos, "--head", "distillation", "--report", report, "--json", "--strict")
    found = json.loads(succeeds(*arguments).stdout)
    page = html.unescape(report.read_text(encoding="utf-8"))
    assert f"{found['heads']['distillation']['top1']:.2f} %" in page
    assert page.count("<figcaption>") == len(found["mistakes"])
    assert shlex.join(["deit", *map(str, arguments)]) in page
    assert f"Report: {report}" in succeeds("evaluate", student, photos, "--report", report).stdout


@pytest.mark.parametrize("seed", [0, 7])
def test_a_held_out_part_is_scored_alone_where_training_divided_the_images(seed, tmp_path):
    data, model = fill(tmp_path / "data", 5), tmp_path / "model"
    divided = ("--set", "data.val_fraction=0.4", "--set", f"data.split_seed={seed}")
    trained = ("--student", VARIANT, "--image-size", 32, *SHORT, *divided)
    succeeds("train", data, *trained, "--out", model)
    whole = json.loads(succeeds("evaluate", model, data, "--json").stdout)
    assert whole["images"] == 15
    assert whole["notes"] == [
        "The model was trained on 9 of these 15 images, so the scores are too good.",
        "Pass --held-out to score the images that training kept for validation.",
    ]
    part = json.loads(succeeds("evaluate", model, data, "--json", "--held-out").stdout)
    assert part["images"] == 6
    assert part["notes"][0].endswith("Seen now is the same.")
    is_refused(deit("evaluate", model, fill(tmp_path / "other", 2), "--held-out"), "cannot be told")


def test_classes_are_matched_by_name_even_when_some_are_absent(tmp_path, student):
    data = fill(tmp_path, 3, ["red"])
    scores = json.loads(succeeds("evaluate", student, data, "--json").stdout)["heads"]
    right = [max(found, key=found.__getitem__) == "red" for _, found in classified(student, data)]
    assert scores["both"]["images"] == 3
    assert scores["both"]["top1"] == pytest.approx(100 * sum(right) / 3)
    assert [row["accuracy"] for row in scores["both"]["per_class"]][:2] == [None, None]


def test_classes_that_the_model_lacks_are_named_in_a_line_that_can_be_read(tmp_path, student, photos):
    image = next(photos.rglob("*.png"))
    for i in range(300):
        (tmp_path / f"class {i:04d}").mkdir()
        shutil.copy(image, tmp_path / f"class {i:04d}")
    result = deit("evaluate", student, tmp_path)
    is_refused(result, "class 0000, class 0001")
    assert "and 290 more" in " ".join(result.output.split())
    assert len(result.output) < 600


def test_bfloat16_gives_nearly_the_same_scores(photos, student):
    exact, rounded = (
        json.loads(succeeds("evaluate", student, photos, "--json", "--precision", p).stdout)["heads"]["both"]["loss"]
        for p in ("fp32", "bf16")
    )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_logits_that_are_no_numbers_are_counted_and_said(photos, student, copied):
    from safetensors.torch import load_file, save_file

    broken = copied(student)
    weights = load_file(broken / "model.safetensors")
    weights["cls_classifier.weight"][:] = 3e38  # finite, and too large for products
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    found = json.loads(succeeds("evaluate", broken, photos, "--json").stdout)
    assert found["heads"]["class"]["unanswered"] == found["heads"]["both"]["unanswered"] == 12
    assert found["heads"]["class"]["top1"] == 0
    assert found["heads"]["class"]["loss"] is None
    assert found["heads"]["distillation"]["unanswered"] == 0
    shown = succeeds("evaluate", broken, photos).stdout
    assert "Images whose logits are NaN or infinite: both 12, class 12 of 12. They count as wrong." in shown


def test_a_table_of_several_labels_is_scored_by_what_the_model_is_for(tmp_path, student, copied):
    model = copied(student)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    fill(tmp_path / "images", 3)
    rows = [f"images/{name}/{i}.png,{label}" for name, label in
            [("blue", "blue"), ("green", "green;blue"), ("red", "red;green;blue")] for i in range(3)]  # fmt: skip
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\n" + "\n".join(rows) + "\n")
    found = json.loads(succeeds("evaluate", model, table, "--json").stdout)
    assert found["problem_type"] == "multi_label_classification"
    assert [row["images"] for row in found["per_class"]] == [9, 6, 3]
    assert set(found["heads"]["both"]) == {
        "images", "unanswered", "micro_f1", "macro_f1", "exact_match", "exact_match_interval", "loss",
    }  # fmt: skip
    report = tmp_path / "r.html"
    shown = succeeds("evaluate", model, table, "--report", report).stdout
    assert f"Mean average precision: {100 * found['mean_average_precision']:.2f} %" in shown
    assert "average precision %" in report.read_text(encoding="utf-8")


def test_broken_files_are_left_out_with_a_report(tmp_path, student):
    data = fill(tmp_path, 2)
    write_truncated_jpeg(data / "red" / "half.jpg")
    result = succeeds("evaluate", student, data, "--json")
    assert json.loads(result.stdout)["images"] == 6
    assert result.stderr.startswith("Left out 1 file(s) that cannot be used:\n")
    assert str(data / "red" / "half.jpg") in result.stderr


def test_strict_stops_at_a_broken_file(tmp_path, student):
    data = fill(tmp_path, 2)
    write_text(data / "red" / "letter.png")
    is_refused(deit("evaluate", student, data, "--strict"), "letter.png", "is not an image", "strict is on.")


def test_data_that_cannot_be_used_is_refused(tmp_path, student):
    is_refused(deit("evaluate", student, tmp_path / "nowhere"), f"There is nothing at {tmp_path / 'nowhere'}.")
    is_refused(deit("evaluate", student, tmp_path), "has no class folders.")
    (tmp_path / "red").mkdir()
    is_refused(deit("evaluate", student, tmp_path), "No image in", "red (empty)")
    (fill(tmp_path, 1) / "red").rename(tmp_path / "pink")
    is_refused(deit("evaluate", student, tmp_path), "that are not among the 3 classes: pink. Known: blue, green, red.")


def test_a_model_that_cannot_be_used_is_refused(tmp_path, photos, student, copied):
    is_refused(deit("evaluate", tmp_path / "nowhere", photos), f"No model directory at {tmp_path / 'nowhere'}.")
    broken = copied(student)
    (broken / "preprocessor_config.json").unlink()
    is_refused(deit("evaluate", broken, photos), "No preprocessor_config.json at")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    is_refused(deit("evaluate", broken, photos), "model.safetensors cannot be read as safetensors", "truncated")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "gpu"), "Unknown device 'gpu'"),
        (("--batch-size", 0), "--batch-size must be at least 1. Received: 0."),
        (("--precision", "fp8"), "The precision must be auto or fp32 or bf16. Received: 'fp8'."),
        (("--head", "teacher"), "The model has no head 'teacher'. Known: both, class, distillation."),
        (("--report", "nowhere/r.html"), "The folder nowhere for the report does not exist."),
        (("--teacher", "nowhere"), "No model directory at nowhere."),
        (("--label-column", "kind"), "has no columns"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(photos, student, options, message):
    is_refused(deit("evaluate", student, photos, *options), message)


def test_a_model_that_says_numbers_is_scored_by_their_errors(tmp_path, student):
    import deit as package

    config = package.DeiTConfig.from_pretrained(student)
    config.update({"id2label": {0: "age"}, "label2id": {"age": 0}, "problem_type": "regression"})
    model = tmp_path / "model"
    package.DeiTForImageClassification(config).save_pretrained(model)
    shutil.copy(student / "preprocessor_config.json", model)
    fill(tmp_path / "images", 4)
    ages = {f"images/{name}/{i}.png": 10 * k + i for k, name in enumerate(("blue", "green", "red")) for i in range(4)}
    table = tmp_path / "ages.csv"
    table.write_text("image,age\n" + "".join(f"{name},{age}\n" for name, age in ages.items()))
    report = tmp_path / "r.html"
    arguments = ("evaluate", model, table, "--label-column", "age")
    found = json.loads(succeeds(*arguments, "--report", report, "--json").stdout)
    assert (found["problem_type"], found["images"], found["classes"]) == ("regression", 12, ["age"])
    by_hand = [abs(float(m["said"]) - float(m["true"])) for m in found["mistakes"]]
    assert sorted(float(m["true"]) for m in found["mistakes"]) == sorted(ages.values())
    head = found["heads"]["class"]
    assert head["mean_absolute_error"] == pytest.approx(sum(by_hand) / 12, rel=1e-2)
    assert head["root_mean_squared_error"] ** 2 == pytest.approx(head["loss"])
    assert f"│ {head['mean_absolute_error']:.3f} │" in re.sub(" +", " ", succeeds(*arguments).stdout)
    assert "Largest errors" in report.read_text(encoding="utf-8")
    is_refused(deit(*arguments, "--teacher", student), "needs one class for each image")

"""An evaluation says how many of its images the model has met before, whatever they are called."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.core.file_names import IMAGES_NAME
from deit.core.images.known_images import KnownImages
from deit.data.open_data import open_labelled
from deit.evaluate.evaluation import evaluate_model
from deit.evaluate.features import evaluate_features
from deit.inference.embedder import Embedder
from deit.inference.predictor import Predictor
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused, succeeds
from tests.data.pictures import COLOURS, fill, picture, write_parquet


def evaluated(model: Path, data: Path, *options: object) -> dict[str, Any]:
    return json.loads(succeeds("evaluate", model, data, "--json", *options).stdout)


def copy_of_all(photos: Path, place: Path) -> Path:
    return Path(shutil.copytree(photos / "train", place / "copy"))


def two_classes(photos: Path, place: Path) -> Path:
    for colour in COLOURS[:2]:
        shutil.copytree(photos / "train" / colour, place / "two" / colour)
    return place / "two"


def all_and_one(photos: Path, place: Path) -> Path:
    root = Path(shutil.copytree(photos / "train", place / "more"))
    picture("red", 999).save(root / "red" / "new.png")
    return root


def other_names(photos: Path, place: Path) -> Path:
    for i, file in enumerate(sorted((photos / "train").rglob("*.png"))):
        target = place / "renamed" / "val" / file.parent.name / f"IMG_{900 - i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return place / "renamed"


def table_of_half(photos: Path, place: Path) -> Path:
    files = sorted((photos / "train").rglob("*.png"))[::2]
    rows = "\n".join(f"{file},{file.parent.name}" for file in files)
    (place / "half.csv").write_text(f"path,label\n{rows}\n")
    return place / "half.csv"


def same_bytes(photos: Path, place: Path) -> Path:
    files = sorted((photos / "train").rglob("*.png"))
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    return write_parquet(place / "same.parquet", columns)


@pytest.mark.parametrize(
    ("make", "learnt", "images"),
    [
        (copy_of_all, 24, 24),
        (two_classes, 16, 16),
        (all_and_one, 24, 25),
        (other_names, 24, 24),
        (table_of_half, 12, 12),
        (same_bytes, 24, 24),
    ],
)
def test_images_that_the_model_was_trained_on_are_counted(make, learnt, images, photos, student, tmp_path):
    found = evaluated(student, make(photos, tmp_path))
    assert (found["overlap"]["learnt"], found["overlap"]["images"]) == (learnt, images)
    note = f"The model was trained on {learnt} of these {images} images, so the scores are too good."
    assert note in found["notes"]


def test_the_table_and_the_report_say_it_as_well(photos, student, tmp_path):
    data, report = all_and_one(photos, tmp_path), tmp_path / "report.html"
    said = succeeds("evaluate", student, data, "--report", report).stdout
    note = "The model was trained on 24 of these 25 images, so the scores are too good."
    assert note in said
    assert note in html.unescape(report.read_text(encoding="utf-8"))


def test_new_images_are_said_to_be_none(photos, student, tmp_path):
    found = evaluated(student, fill(tmp_path / "new", 3, seed=500))
    assert found["overlap"] == {
        "images": 9, "learnt": 0, "initial": 0, "taught": 0, "measured": 0, "unrecorded": [], "calibrated": 0,
    }  # fmt: skip
    assert found["notes"] == []
    assert evaluated(student, photos)["overlap"]["measured"] == 12


def test_from_python_the_result_says_it(photos, student, tmp_path):
    source = open_labelled(all_and_one(photos, tmp_path), classes=list(COLOURS))
    result = evaluate_model(Predictor.open(student), source)
    assert (result.overlap.learnt, result.overlap.images) == (24, 25)
    assert result.as_dict()["overlap"]["learnt"] == 24


def test_what_initial_weights_and_teachers_were_trained_on_counts_too(photos, student, tmp_path, caplog):
    """A model that is fine-tuned on other images, from weights that learnt from these and had a teacher."""
    other = fill(tmp_path / "other", 5, seed=300)
    tuned = tmp_path / "tuned"
    succeeds("train", other, "--init", student, "--image-size", 32, *SHORT, "--out", tuned)
    assert "validation images" not in caplog.text
    found = evaluated(tuned, photos / "train")
    assert (found["overlap"]["learnt"], found["overlap"]["initial"]) == (0, 24)
    assert found["notes"] == [
        "The weights that the model began with were trained on 24 of these 24 images: the scores may be too good."
    ]
    whole = shutil.copytree(photos, tmp_path / "whole")  # whose val holds what the weights learnt from
    shutil.rmtree(whole / "val")
    shutil.copytree(photos / "train", whole / "val")
    shutil.rmtree(whole / "train")
    shutil.copytree(other, whole / "train")
    again = tmp_path / "again"
    succeeds("train", whole, "--student", VARIANT, "--image-size", 32, "--teacher", tuned, *SHORT, "--out", again)
    assert "A teacher was trained on 24 of the 24 validation images" in caplog.text
    assert json.loads((again / "training.json").read_text())["images"]["validation"]["taught"] == 24
    assert "24 of which its teacher was trained on" in (again / "README.md").read_text()
    found = evaluated(again, whole)
    assert any(note.startswith("Its teacher was trained on 24 of these 24 images") for note in found["notes"])


def test_what_was_learnt_from_without_labels_counts(photos, tmp_path):
    model = tmp_path / "pretrained"
    succeeds("pretrain", photos, "--student", VARIANT, *SHORT, "--set", "masking.patch=8", "--out", model)
    found = evaluated(model, photos, "--knn", fill(tmp_path / "known", 3, seed=700))
    assert found["overlap"]["learnt"] == 0
    found = evaluated(model, copy_of_all(photos, tmp_path), "--knn", fill(tmp_path / "others", 3, seed=700))
    assert found["overlap"]["learnt"] == 24
    assert "The model was trained on 24 of these 24 images, so the scores are too good." in found["notes"]


def test_queries_that_are_among_the_known_images_are_left_out(student, tmp_path):
    """Noise, which no features can tell: images that are their own neighbours would score 100 %."""
    random = np.random.default_rng(0)
    known, asked = fill(tmp_path / "known", 8, seed=800), tmp_path / "asked"
    for colour in COLOURS:  # the labels of copies are right, those of new images are drawn
        shutil.copytree(known / colour, asked / colour)
        for i in range(4):
            picture(COLOURS[random.integers(3)], 900 + i * 7 + len(colour)).save(asked / colour / f"new {i}.png")
    found = evaluated(student, asked, "--knn", known)
    assert [score["images"] for score in found["scores"]] == [12] * 6
    assert [score["left_out"] for score in found["scores"]] == [24] * 6
    assert "Left out, since they are among the known ones: 24 images." in found["notes"]
    assert "among the known ones: 24 images." in succeeds("evaluate", student, asked, "--knn", known).stdout
    some = Path(shutil.copytree(known / "red", tmp_path / "some" / "red")).parent
    is_refused(deit("evaluate", student, some, "--knn", known), "hold the same images")
    source = open_labelled(some, classes=list(COLOURS))
    with pytest.raises(ValueError, match="All 8 images to be asked about are among the known ones"):
        evaluate_features(Embedder.open(student), open_labelled(known, classes=list(COLOURS)), source)


def test_the_held_out_part_is_found_by_contents(tmp_path):
    """Of other names, in another layout, and with more images beside it."""
    data, model = fill(tmp_path / "data", 5), tmp_path / "model"
    succeeds("train", data, "--student", VARIANT, "--image-size", 32, *SHORT, "--out", model)
    moved = tmp_path / "moved"
    for i, file in enumerate(sorted(data.rglob("*.png"))):
        (moved / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, moved / file.parent.name / f"{99 - i}.png")
    picture("red", 999).save(moved / "red" / "new.png")
    found = evaluated(model, moved)
    assert (found["overlap"]["learnt"], found["overlap"]["measured"], found["images"]) == (12, 3, 16)
    assert "Pass --held-out to score the images that training kept for validation." in found["notes"]
    part = evaluated(model, moved, "--held-out")
    assert (part["images"], part["overlap"]["learnt"], part["overlap"]["measured"]) == (3, 0, 3)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"something else " * 20, None])
def test_a_damaged_list_of_images_is_one_line(damage, photos, student, copied):
    model = copied(student)
    path = model / IMAGES_NAME
    if damage is None:
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(damage)
    is_refused(deit("evaluate", model, photos), f"{path} is")
    path.unlink()
    assert evaluated(model, photos)["overlap"] is None


def test_the_list_of_images_is_compact_and_sorted(student):
    values = np.load(student / IMAGES_NAME, allow_pickle=False)
    assert values.dtype.itemsize == 9
    known = KnownImages.read(student)
    assert len(known.hashes) == 36
    assert (np.diff(known.hashes.astype(object)) > 0).all()


def test_a_converted_model_remembers_and_so_does_the_comparison_with_a_teacher(photos, student, teacher, tmp_path):
    succeeds("convert", student, tmp_path / "converted", "--to", "huggingface")
    assert evaluated(tmp_path / "converted", photos / "train")["overlap"]["learnt"] == 24
    found = evaluated(student, photos / "train", "--teacher", teacher)
    assert found["teacher_overlap"]["learnt"] == 24
    assert "The teacher was trained on 24 of these 24 images, so its scores are too good." in found["notes"]


def test_the_hint_at_held_out_is_given_where_that_works(photos, student, tmp_path):
    files = sorted(photos.glob("*/*/*.png"))
    measured = [file for file in files if file.parent.parent.name == "val"]
    for name, taken in (("whole", files), ("part", [file for file in files if file != measured[0]])):
        rows = ["file,label", *(f"{file},{file.parent.name}" for file in taken)]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    notes = " ".join(json.loads(succeeds("evaluate", student, tmp_path / "whole.csv", "--json").stdout)["notes"])
    assert "--held-out" in notes
    assert json.loads(succeeds("evaluate", student, tmp_path / "whole.csv", "--json", "--held-out").stdout)
    notes = " ".join(json.loads(succeeds("evaluate", student, tmp_path / "part.csv", "--json").stdout)["notes"])
    assert "The model was trained on 24 of these 35 images" in notes
    assert "--held-out" not in notes
    is_refused(deit("evaluate", student, tmp_path / "part.csv", "--held-out"), "cannot be told")

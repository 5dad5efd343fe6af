"""`inspect_data` on data with planted faults: exact counts, files that it writes, every reader."""

import csv
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deit.core.errors import DamagedFileError, UserError
from deit.core.scores.out_of_fold import OutOfFold
from deit.data.exclusions import IMAGES_LIST
from deit.inspection.files import FIX_COLUMNS, FIX_NAME, IMAGE_COLUMNS, JSON_NAME, REPORT_NAME
from deit.inspection.inspecting import inspect_data, write_inspection
from deit.inspection.wrong_labels import wrong_labels
from tests.cli.conftest import deit, succeeds
from tests.data.pictures import encoded, write_parquet
from tests.inspection.planted import cropped, digits, save, scenes, write_digits


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Two parts and two classes, with one fault of each kind."""
    root = tmp_path_factory.mktemp("faulty") / "photos"
    pictures = scenes(60)
    for i, picture in enumerate(pictures):
        part = "val" if i % 5 == 0 else "train"
        save(picture, root / part / ("cat" if i % 2 else "dog") / f"{i}.png")
    save(pictures[1], root / "train/cat/exact copy.png")
    save(pictures[0], root / "train/dog/exact leak.png")
    save(pictures[3], root / "train/dog/exact contradiction.png")
    save(pictures[7].resize((40, 40)), root / "train/cat/near copy.jpg", quality=60)
    save(cropped(pictures[10], 0.05, 0.02, 0, 0), root / "train/dog/near leak.png")
    save(pictures[4].resize((50, 50)), root / "train/cat/near contradiction.png")
    save(Image.new("RGB", (64, 64)), root / "train/cat/black.png")
    save(scenes(3, 9)[2].resize((9, 9)), root / "train/dog/tiny.png")
    save(scenes(3, 9)[1].resize((400, 60)), root / "train/dog/long.png")
    (root / "train/cat/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (root / "train/cat/notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def found(faulty):
    return inspect_data(str(faulty))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_planted_fault_is_found_and_no_other(found):
    named = {(each.kind, each.part, each.file, each.action, each.other) for each in found.findings}
    assert named == {
        ("exact leak", "train", "train/dog/exact leak.png", "drop", "val/dog/0.png"),
        ("near leak", "train", "train/dog/near leak.png", "drop", "val/dog/10.png"),
        ("exact contradiction", "train", "train/dog/exact contradiction.png", "check", "train/cat/3.png"),
        ("near contradiction", "train", "train/cat/near contradiction.png", "check", "train/dog/4.png"),
        ("exact copy", "train", "train/cat/exact copy.png", "drop", "train/cat/1.png"),
        ("near copy", "train", "train/cat/near copy.jpg", "drop", "train/cat/7.png"),
        ("constant", "train", "train/cat/black.png", "drop", ""),
        ("tiny", "train", "train/dog/tiny.png", "check", ""),
        ("long", "train", "train/dog/long.png", "check", ""),
        ("unreadable", "", "train/cat/broken.png", "check", ""),
        ("not images", "", "train/cat/notes.txt", "check", ""),
    }


def test_the_summary_counts_what_is_there(found):
    summary = found.summary()
    assert {name: part["images"] for name, part in summary["parts"].items()} == {"train": 57, "val": 12}
    assert summary["classes"] == {"cat": {"train": 28, "val": 6}, "dog": {"train": 29, "val": 6}}
    assert sum(kind["images"] for kind in summary["formats"]) == 69
    assert {"format": "JPEG", "mode": "RGB", "images": 1} in summary["formats"]
    assert (summary["sizes"]["width"]["least"], summary["sizes"]["width"]["most"]) == (9, 400)
    assert summary["counts"]["exact leak"] == 1
    assert any("Labels were not judged" in note for note in summary["notes"])


def test_what_is_written_can_be_read_and_the_page_needs_no_network(found, tmp_path):
    write_inspection(tmp_path / "report", found)
    told = json.loads((tmp_path / "report" / JSON_NAME).read_text())
    assert told["counts"] == found.counts()
    assert len(told["findings"]) == len(found.findings)
    fix = rows_of(tmp_path / "report" / FIX_NAME)
    assert tuple(fix[0]) == FIX_COLUMNS
    assert len(fix) == len(found.findings)
    images = rows_of(tmp_path / "report" / IMAGES_LIST)
    assert tuple(images[0]) == IMAGE_COLUMNS
    assert len(images) == 69
    page = (tmp_path / "report" / REPORT_NAME).read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/") == 6 * 2 + 3
    with pytest.raises(FileExistsError, match="holds a report already"):
        write_inspection(tmp_path / "report", found)


def test_wrong_labels_of_digits_are_named_first(tmp_path):
    true = write_digits(tmp_path / "digits", 400, wrong=20)
    told = inspect_data(str(tmp_path / "digits"))
    named = [each for each in told.findings if each.kind == "wrong label"]
    planted = set(list(true)[:20])
    assert len(planted & {each.file for each in named[:20]}) >= 18
    right = [each.suggested_label == true[each.file] for each in named if each.file in planted]
    assert sum(right) >= 18
    assert all(each.action == "check" for each in named)


def test_confident_learning_equals_the_rule_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 0])
    # Mean of class 0 among images labeled 0: (0.9 + 0.8 + 0.1 + 0.45) / 4 = 0.5625; of class 1: 0.75.
    found = wrong_labels(probabilities, labels)
    assert found.numbers.tolist() == [2]  # image 5 leans to class 1, but 0.55 < 0.75
    assert found.suggested.tolist() == [1]
    assert found.margins.tolist() == pytest.approx([-0.8])


def test_predictions_are_matched_by_name(tmp_path):
    root = tmp_path / "digits"
    write_digits(root, 60, wrong=2)
    files = sorted(root.rglob("*.png"))
    right = digits()[1][[int(file.stem) for file in files]]
    values = np.full((len(files), 10), 0.01, np.float32)
    values[np.arange(len(files)), right] = 0.91
    answers = OutOfFold(
        names=np.array([str(file) for file in files]),
        labels=np.array([int(file.parent.name) for file in files], np.int64),
        probabilities=values,
        classes=[str(i) for i in range(10)],
        folds=np.ones(len(files), np.int64),
    )
    answers.write(tmp_path)
    told = inspect_data(str(root), predictions=tmp_path / "out_of_fold.npz")
    assert {each.file for each in told.findings if each.kind == "wrong label"} == {"1/0.png", "2/1.png"}
    classes = ["zebra", *answers.classes[1:]]
    (tmp_path / "other").mkdir()
    replace(answers, classes=classes).write(tmp_path / "other")
    with pytest.raises(UserError, match="zebra"):
        inspect_data(str(root), predictions=tmp_path / "other")
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    with pytest.raises(DamagedFileError):
        inspect_data(str(root), predictions=tmp_path / "broken.npz")
    with pytest.raises(UserError, match="not both"):
        inspect_data(str(root), predictions=tmp_path / "other", model="here")


def test_tables_shards_lists_and_objects_are_inspected_alike(tmp_path):
    images = [encoded(colour, seed) for seed in range(4) for colour in ("red", "green")]
    images[5] = images[1]
    labels = ["red", "green"] * 4
    write_parquet(tmp_path / "table.parquet", {"image": [{"bytes": each} for each in images], "label": labels})
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            for name, content in ((f"{i:03}.png", image), (f"{i:03}.txt", label.encode())):
                (tmp_path / name).write_bytes(content)
                shard.add(tmp_path / name, name)
    lines = [f"{i:03}.png,{label}" for i, label in enumerate(labels)]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *lines]))
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=str(tmp_path / "table.parquet"), split="train", cache_dir=str(tmp_path))
    found = [inspect_data(str(tmp_path / name)) for name in ("table.parquet", "shard.tar", "list.csv")]
    for each in [*found, inspect_data(data)]:
        assert [(f.kind, f.action) for f in each.findings if "exact" in f.kind] == [("exact copy", "drop")]
        assert (
            each.summary()["classes"] == {"green": {"all": 4}, "red": {"all": 4}} or "train" in each.summary()["parts"]
        )
    assert [f.file for f in found[0].findings if "exact" in f.kind] == ["table.parquet row 5"]
    assert [f.file for f in found[1].findings if "exact" in f.kind] == ["shard.tar: 005.png"]
    assert [f.file for f in found[2].findings if "exact" in f.kind] == ["list.csv line 7 (005.png)"]


def test_strange_names_survive_the_list_and_are_escaped_on_the_page(tmp_path):
    root = tmp_path / "=photos"
    names = ['<script>"', "=1+1", "a,b", "new\nline", "ünï\u202e", "plain"]
    for i, name in enumerate(names):
        save(scenes(20)[i], root / "=cat" / f"{name}.png")
        save(scenes(20)[i + 8], root / "dog" / f"{i}.png")
        save(scenes(20)[i], root / "=cat" / f"{name} copy.png")
    told = inspect_data(str(root))
    write_inspection(tmp_path / "report", told)
    fix = rows_of(tmp_path / "report" / FIX_NAME)
    assert len(fix) == len(names)
    assert all(not row["file"].startswith("=") for row in fix)
    page = (tmp_path / "report" / REPORT_NAME).read_text()
    assert "<script>" not in page
    assert "\u202e" not in page
    from deit.data.open_data import open_data

    kept = open_data(str(root), exclude=tmp_path / "report" / FIX_NAME)
    assert len(kept.train.labels) + len(kept.val.labels) == 12


def test_a_class_of_broken_files_does_not_stop_the_inspection(tmp_path):
    for i in range(3):
        save(scenes(20)[i], tmp_path / "photos/cat" / f"{i}.png")
    (tmp_path / "photos/dog").mkdir()
    (tmp_path / "photos/dog/1.png").write_bytes(b"nothing")
    told = inspect_data(str(tmp_path / "photos"))
    assert told.counts() == {"unreadable": 1}
    assert any("Classes without an image" in note and "dog" in note for note in told.notes)


def test_the_command_prints_counts_and_writes_the_report(faulty, tmp_path):
    text = succeeds("inspect", str(faulty), "--out", str(tmp_path / "report")).output
    assert "57 images in train, 12 images in val; 2 classes." in text
    assert "exact leak" in text
    again = deit("inspect", str(faulty), "--out", str(tmp_path / "report"))
    assert (again.exit_code, again.stdout) == (2, "")
    assert "holds a report already" in again.stderr
    inside = deit("inspect", str(faulty), "--out", str(faulty / "report"))
    assert inside.exit_code == 2
    assert "lies in the folder of the images" in inside.stderr
    printed = json.loads(succeeds("inspect", str(faulty), "--out", str(tmp_path / "other"), "--json").stdout)
    assert printed["counts"]["near leak"] == 1
    nothing = deit("inspect", str(tmp_path / "nothing"), "--out", str(tmp_path / "x"))
    assert nothing.exit_code == 2

"""`deit embed`, and `deit evaluate --knn`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.conftest import deit, is_refused, succeeds
from tests.data.pictures import encoded, fill
from tests.ranks import run_on_ranks


def test_features_are_written_and_counted(student, photos, tmp_path):
    out = tmp_path / "features.parquet"
    said = succeeds("embed", student, photos / "val", "--out", out, "--token", "distillation", "--block", 2).output
    assert said == f"Features of 12 images: {out}\n"
    table = pq.read_table(out)
    assert (len(table), table.column("features").type.list_size) == (12, 64)
    assert table.schema.metadata == {b"model": str(student).encode(), b"token": b"distillation", b"block": b"2"}


def test_features_are_scored_with_neighbours_and_a_linear_classifier(student, photos):
    said = succeeds("evaluate", student, photos, "--knn", photos).output
    assert said.count("nearest neighbours") == said.count("linear") == 3
    assert "Known: 24 images" in said
    values = json.loads(succeeds("evaluate", student, photos / "val", "--knn", photos, "--json").output)
    assert (values["known_images"], [s["images"] for s in values["scores"]]) == (24, [12] * 6)
    assert [s["token"] for s in values["scores"][::2]] == ["class", "distillation", "mean"]


def scored(model: Path, data: object, known: object) -> dict:
    return json.loads(succeeds("evaluate", model, data, "--knn", known, "--json").output)


def parquet(path: Path, colours: list[str], count: int, *, seed: int = 0) -> Path:
    """Writes a table of pictures whose labels are names."""
    pictures = [{"bytes": encoded(colour, seed + i), "path": None} for colour in colours for i in range(count)]
    pq.write_table(pa.table({"image": pictures, "label": [colour for colour in colours for _ in range(count)]}), path)
    return path


@pytest.mark.parametrize("spelled", ["noise/", "./noise", "{root}/noise", "link", "noise/../noise"])
def test_one_data_set_however_it_is_spelled_is_divided_and_not_compared_with_itself(
    spelled, student, tmp_path, monkeypatch
):
    fill(tmp_path / "noise", 5)
    (tmp_path / "link").symlink_to(tmp_path / "noise")
    monkeypatch.chdir(tmp_path)
    expected = scored(student, "noise", "noise")
    assert (expected["known_images"], expected["scores"][0]["images"]) == (12, 3)
    for names in ((spelled.format(root=tmp_path), "noise"), ("noise", spelled.format(root=tmp_path))):
        found = scored(student, *names)
        assert (found["known_images"], found["scores"]) == (12, expected["scores"])


def test_copies_of_the_same_images_are_refused(student, photos, tmp_path):
    first, second = fill(tmp_path / "first", 2), fill(tmp_path / "second", 2)
    is_refused(deit("evaluate", student, first, "--knn", second), f"{second} and {first} hold the same images")
    is_refused(deit("evaluate", student, photos / "train", "--knn", photos), "hold the same images")
    tables = [parquet(tmp_path / f"{name}.parquet", ["red", "blue"], 2) for name in "ab"]
    is_refused(deit("evaluate", student, tables[0], "--knn", tables[1]), "hold the same images")


def test_other_pictures_of_the_same_names_and_sizes_are_no_copies(student, tmp_path):
    for number, root in enumerate((tmp_path / "first", tmp_path / "second")):
        for name in ("dark", "light"):
            (root / name).mkdir(parents=True)
            noise = np.random.default_rng([number, len(name)]).integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / "0.bmp")
    assert scored(student, tmp_path / "first", tmp_path / "second")["known_images"] == 2


def test_all_of_another_data_set_is_known_or_its_train_part(student, photos, tmp_path):
    assert scored(student, photos, fill(tmp_path / "one-each", 1, seed=50))["known_images"] == 3
    fill(tmp_path / "trained" / "train", 2, seed=50)
    assert scored(student, photos, tmp_path / "trained")["known_images"] == 6
    fill(tmp_path / "trained" / "val", 1, seed=70)
    assert scored(student, photos, tmp_path / "trained")["known_images"] == 6
    (tmp_path / "tables").mkdir()
    parquet(tmp_path / "tables" / "train.parquet", ["blue", "green", "red"], 3, seed=50)
    parquet(tmp_path / "tables" / "test.parquet", ["blue", "green", "red"], 1, seed=70)
    assert scored(student, photos, tmp_path / "tables")["known_images"] == 9
    assert scored(student, photos, tmp_path / "tables" / "test.parquet")["known_images"] == 3
    shutil.move(tmp_path / "tables" / "train.parquet", tmp_path / "tables" / "val.parquet")
    is_refused(deit("evaluate", student, photos, "--knn", tmp_path / "tables"), "None of the parts", "is for training")


def test_classes_that_known_images_lack_are_refused_in_words_that_fit(student, photos, tmp_path):
    known = fill(tmp_path / "known", 2, ["blue", "green"], seed=50)
    said = deit("evaluate", student, photos, "--knn", known)
    is_refused(said, "class folders that are not among the 2 classes: red. Known: blue, green.")
    table = parquet(tmp_path / "labels.parquet", ["green", "red"], 2, seed=70)
    said = deit("evaluate", student, table, "--knn", known)
    is_refused(said, "not among the 2 classes: red.", "deit evaluate: --label-column NAME")


def test_two_processes_share_the_images_and_print_once(student, tmp_path):
    """15 and 9 images, which 2 does not divide."""
    data, known = fill(tmp_path / "data", 3, seed=50), fill(tmp_path / "known", 5)
    ran = run_on_ranks("deit", "evaluate", student, data, "--knn", known, "--batch-size", 2, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == scored(student, data, known)
    refused = run_on_ranks("deit", "evaluate", student, data, "--knn", tmp_path / "nowhere")
    assert refused.returncode != 0
    assert refused.stderr.count("There is nothing at") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("embed", "STUDENT", "PHOTOS", "--out", "OUT", "--token", "patch"),
            "--token must be one of class, distillation",
        ),
        (("embed", "STUDENT", "PHOTOS", "--out", "OUT", "--block", 9), "--block must lie between 0"),
        (("embed", "STUDENT", "-", "--out", "OUT"), "Received: standard input"),
        (("embed", "TEACHER", "PHOTOS", "--out", "OUT"), "is a model of timm"),
        (("evaluate", "STUDENT", "PHOTOS", "--knn", "PHOTOS", "--held-out"), "Received also: --held-out"),
        (("evaluate", "STUDENT", "PHOTOS", "--knn", "nowhere"), "There is nothing at nowhere"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, student, teacher, photos, tmp_path):
    names = {"STUDENT": student, "TEACHER": teacher, "PHOTOS": photos, "OUT": tmp_path / "features.parquet"}
    is_refused(deit(*(names.get(word, word) for word in arguments)), message)
    assert not list(tmp_path.iterdir())

"""`deit embed`, and `deit evaluate --knn`."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import deit, is_refused, succeeds


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("embed", "STUDENT", "PHOTOS", "--out", "OUT", "--token", "patch"),
            "token must be one of class, distillation",
        ),
        (("embed", "STUDENT", "PHOTOS", "--out", "OUT", "--block", 9), "block must lie between 0"),
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

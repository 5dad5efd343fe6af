"""Notes about classes without images, one class spelled in two ways, and parts that paths alone name."""

from __future__ import annotations

import pytest

from deit.data.labels.class_notes import alike_classes
from deit.data.open_data import open_data
from tests.data.pictures import COLOURS, encoded, fill, write_parquet, write_shard


@pytest.mark.parametrize(
    "other", ["Cat", "CAT", "fire-truck", "Fire  Truck", "cafe\u0301", "01", "\uff43\uff41\uff54", "stra\u00dfe"]
)
def test_names_that_differ_in_spelling_alone_are_found(other):
    names = ["1", "caf\u00e9", "cat", "dog", "fire_truck", "strasse"]
    found = alike_classes([*names, other])
    assert len(found) == 1
    assert found[0][1] == other
    assert found[0][0] in names


def test_equal_names_numbers_and_other_words_are_no_spellings():
    assert alike_classes(["crane", "crane", "cranes", "1", "10", "0", "00x", "-", "_", "+", "a b", "ab"]) == []


def test_two_spellings_of_one_class_are_noted_in_a_table(tmp_path, caplog):
    fill(tmp_path, 4)
    rows = [f"{c}/{i}.png,{c.upper() if i % 2 else c}" for c in COLOURS for i in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label", *rows]))
    data = open_data(tmp_path / "a.csv")
    assert len(data.train.classes) == 6
    assert caplog.messages == [
        "These classes differ only in spelling and are different classes: 'BLUE' and 'blue'; 'GREEN' and 'green'; "
        "'RED' and 'red'. If they are one, give all of its images the same name."
    ]


def test_a_class_that_is_never_measured_is_noted(tmp_path, caplog):
    fill(tmp_path / "train", 3)
    fill(tmp_path / "val", 1, ["blue", "red"], seed=10)
    open_data(tmp_path)
    assert caplog.messages == ["1 of 3 classes have no validation image, the first is 'green'."]


def test_paths_in_parts_without_a_column_of_parts_are_noted(tmp_path, caplog):
    rows = []
    for part in ("train", "val"):
        fill(tmp_path / part, 2, seed=len(rows))
        rows += [f"{part}/{c}/{i}.png,{c}" for c in COLOURS for i in range(2)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label", *rows]))
    open_data(tmp_path / "a.csv")
    assert len(caplog.messages) == 1
    assert "are in folders of the parts train, val, but no column or key divides them" in caplog.messages[0]
    (tmp_path / "b.csv").write_text("\n".join(["path,label,split", *(f"{row},{row.split('/')[0]}" for row in rows)]))
    caplog.clear()
    open_data(tmp_path / "b.csv")
    assert caplog.messages == []


@pytest.mark.parametrize("kind", ["paths of the images", "a column of paths"])
def test_paths_of_a_parquet_file_in_parts_without_a_column_of_parts_are_noted(tmp_path, caplog, kind):
    images = [encoded(COLOURS[i % 3], i) for i in range(12)]
    paths = [f"{('train', 'val')[i % 2]}/{COLOURS[i % 3]}/{i}.png" for i in range(12)]
    columns = {"image": images, "path": paths}
    if kind == "paths of the images":
        columns = {"image": [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]}
    columns["label"] = [COLOURS[i % 3] for i in range(12)]
    open_data(write_parquet(tmp_path / "a.parquet", columns))
    assert len(caplog.messages) == 1
    assert "are in folders of the parts train, val, but no column or key divides them" in caplog.messages[0]
    caplog.clear()
    open_data(write_parquet(tmp_path / "b.parquet", columns | {"split": [path.split("/")[0] for path in paths]}))
    assert caplog.messages == []


def test_members_of_a_shard_in_parts_without_a_key_of_parts_are_noted(tmp_path, caplog):
    members = {
        f"{part}/{i}.{ending}": content
        for part in ("train", "val")
        for i in range(6)
        for ending, content in (("png", encoded(COLOURS[i % 3], i + len(part))), ("cls", str(i % 3).encode()))
    }
    open_data(write_shard(tmp_path / "a.tar", members))
    assert len(caplog.messages) == 1
    assert "are in folders of the parts train, val" in caplog.messages[0]

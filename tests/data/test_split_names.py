"""The parts of a data set: one table of names, obeyed in folders, tables, Parquet, shards and saved data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.data.labels.split_names import divide_rows, name_splits, split_of, split_within
from deit.data.open_data import open_data, open_labelled, open_unlabelled
from tests.data.pictures import (
    COLOURS,
    colour_members,
    encoded,
    fill,
    picture,
    write_colours,
    write_parquet,
    write_shard,
)

pytest.importorskip("pyarrow")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(
            (name, "train")
            for name in ("train", "Train", "TRAINING", "train_images", "Training Set", "train2017", "trainset")
        ),
        *((name, "val") for name in ("val", "VALID", "Validation", "dev", "valImages", "val-split")),
        *((name, "test") for name in ("test", "Testing", "eval", "evaluation", "TestSet", "test_data")),
        *((name, "") for name in ("cat", "test_tube", "bullet train", "seg_train", "pretrain", "train_val", "", "12")),
    ],
)
def test_which_names_are_parts(name, part):
    assert split_of(name) == part


def test_one_word_within_a_name_is_enough_where_names_are_compared():
    assert split_within("imagenet-train-000012") == "train"
    assert split_within("cifar10_train_and_test") == ""
    assert name_splits(["seg_train", "seg_test", "seg_pred"], "x") == {"train": "seg_train", "test": "seg_test"}
    assert name_splits(["bullet_train", "sports_car", "test_tube"], "x") == {}
    assert name_splits(["train", "train_small", "dev"], "x") == {"train": "train", "val": "dev"}
    with pytest.raises(ValueError, match=r"x has 'valid' and 'validation', which are both for val"):
        name_splits(["train", "valid", "validation"], "x")


# --- folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("Train", "Test"), ("TRAINING", "Validation"), ("seg_train", "seg_test"), ("train_images", "val_images")],
)
def test_folders_of_any_spelling_are_parts_and_no_classes(tmp_path, train, held_out):
    fill(tmp_path / train, 2)
    fill(tmp_path / held_out, 1, seed=50)
    data = open_data(tmp_path)
    assert data.train.classes == list(COLOURS)
    assert (len(data.train.labels), len(data.val.labels)) == (6, 3)
    assert len(open_labelled(tmp_path).labels) == 3
    assert len(open_labelled(tmp_path, part="train").labels) == 6
    assert len(open_unlabelled(tmp_path).val.labels) == 3


def test_a_folder_within_one_of_its_own_name_is_gone_into(tmp_path):
    fill(tmp_path / "seg_train" / "seg_train", 2)
    fill(tmp_path / "seg_test" / "seg_test", 1, seed=50)
    fill(tmp_path / "seg_pred" / "seg_pred", 1, ("red",), seed=90)
    data = open_data(tmp_path)
    assert data.train.classes == list(COLOURS)
    assert data.ignored == {"in folders that are not used": 1}


def test_val_is_measured_on_and_test_is_said_to_be_unused(tmp_path, caplog):
    for name, count in (("train", 2), ("val", 1), ("test", 3)):
        fill(tmp_path / name, count, seed=10 * count)
    data = open_data(tmp_path)
    assert len(data.val.labels) == 3
    assert data.ignored == {"in the part test": 9}
    assert f"Training measures on {tmp_path / 'val'}. Not used: {tmp_path / 'test'}." in caplog.text
    assert len(open_labelled(tmp_path).labels) == 3
    assert "Measured on the part val. There is a part test too" in caplog.text


def test_a_class_may_be_called_test(tmp_path, caplog):
    for name in ("test", "cat", "dog"):
        fill(tmp_path, 3, ("red",))
        (tmp_path / "red").rename(tmp_path / name)
    assert open_data(tmp_path).train.classes == ["cat", "dog", "test"]
    assert "test/ beside other folders is taken as a class" in caplog.text


def test_a_test_folder_with_classes_beside_class_folders_is_refused(tmp_path):
    fill(tmp_path, 2)
    fill(tmp_path / "test", 1)
    with pytest.raises(ValueError, match=r"has class folders \(blue/\) and test/ with class folders of its own"):
        open_data(tmp_path)


def test_part_folders_without_class_folders_are_no_classes(tmp_path):
    for name in ("Train", "Test"):
        (tmp_path / name).mkdir()
        for i in range(3):
            picture("red", i).save(tmp_path / name / f"{i}.png")
    with pytest.raises(ValueError, match="Train/, Test/ without class folders, so the classes are unknown"):
        open_data(tmp_path)
    assert len(open_unlabelled(tmp_path).val.labels) == 3


@pytest.mark.parametrize("name", ["test", "Val"])
def test_a_held_out_part_alone_is_measured_on_and_not_trained_on(tmp_path, name):
    fill(tmp_path / name, 2)
    assert len(open_labelled(tmp_path).labels) == 6
    with pytest.raises(FileNotFoundError, match=rf"has {name}/ but no train/\. Add it, or pass .*{name} to divide it"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        (
            ("siteA", "siteB"),
            COLOURS,
            "folders with the same sub-folders .*: blue, green, red.* If those are the classes",
        ),
        (("cat", "dog"), ("train", "val"), "Put the parts outside and the classes inside"),
        (("photos",), ("train", "test"), "holds one folder .*Pass .*photos"),
    ],
)
def test_class_folders_with_the_same_sub_folders_are_refused(tmp_path, outer, inner, message):
    for folder in outer:
        for name in inner:
            (tmp_path / folder / name).mkdir(parents=True)
            picture("red").save(tmp_path / folder / name / "1.png")
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path)


def test_classes_of_a_model_are_trusted_whatever_their_sub_folders(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name, 1, ("red", "blue"))
    assert open_labelled(tmp_path, classes=["cat", "dog"]).labels.tolist() == [0, 0, 1, 1]


# --- a column that divides ----------------------------------------------------------------------------

ROWS = [(colour, i) for colour in COLOURS for i in range(4)]
SPELLINGS: dict[str, list[Any]] = {
    "split": ["train", "Training", "dev", "TEST"],
    "Subset": ["train", "train", "valid", "test"],
    "set": ["train_set", "train", "val", "eval"],
    "partition": ["TRAIN", "TRAIN", "VAL", "TEST"],
}
SWITCHES: dict[str, tuple[list[Any], set[str]]] = {
    "is_valid": ([False, False, True, False], {"train", "val"}),
    "is_train": ([1, 1, 0, 1], {"train", "val"}),
    "isTestImage": (["no", "no", "yes", "no"], {"train", "test"}),
}


def stored(kind: str, folder: Path, column: str, values: list[Any]) -> Any:
    """Twelve images with a column of parts, as a file or data set of some kind."""
    images = [encoded(colour, i) for colour, i in ROWS]
    columns = {"image": images, "label": [colour for colour, _ in ROWS], column: [values[i] for _, i in ROWS]}
    if kind == "parquet":
        return write_parquet(folder / "train-00000-of-00001.parquet", columns)
    if kind == "datasets":
        datasets = pytest.importorskip("datasets")
        features = datasets.Dataset.from_dict({**columns, "image": [{"bytes": b, "path": None} for b in images]})
        return features.cast_column("image", datasets.Image())
    if kind == "tar":
        members = {}
        for (colour, i), image in zip(ROWS, images, strict=True):
            members[f"{colour}{i}.png"] = image
            members[f"{colour}{i}.json"] = json.dumps({"label": colour, column: values[i]}).encode()
        return write_shard(folder / "all.tar", members)
    fill(folder / "images", 4)
    comma = {"csv": ",", "tsv": "\t"}[kind]
    lines = [comma.join((f"images/{c}/{i}.png", c, str(values[i]))) for c, i in ROWS]
    path = folder / f"all.{kind}"
    path.write_text("\n".join([comma.join(("path", "label", column)), *lines]), encoding="utf-8")
    return path


every_kind = pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "datasets", "tar"])


@every_kind
@pytest.mark.parametrize("column", SPELLINGS)
def test_a_column_divides_the_rows_of_every_kind(tmp_path, kind, column, caplog):
    path = stored(kind, tmp_path, column, SPELLINGS[column])
    data = open_data(path)
    assert (len(data.train.labels), len(data.val.labels)) == (6, 3)
    assert [data.val.image(i).tobytes() for i in range(3)] == [picture(c, 2).tobytes() for c in COLOURS]
    assert data.train.classes == list(COLOURS)
    assert "Training measures on the part val. Not used: test." in caplog.text
    assert len(open_unlabelled(path).val.labels) == 3


@pytest.mark.parametrize("kind", ["csv", "parquet", "tar"])
@pytest.mark.parametrize("column", SWITCHES)
def test_a_column_of_truth_values_divides_the_rows(tmp_path, kind, column, caplog):
    values, parts = SWITCHES[column]
    data = open_data(stored(kind, tmp_path, column, values))
    assert (len(data.train.labels), len(data.val.labels)) == (9, 3)
    assert f"divides the rows: 9 train, 3 {parts.difference({'train'}).pop()}." in caplog.text


@pytest.mark.parametrize("kind", ["csv", "parquet", "tar"])
@pytest.mark.parametrize(("column", "value"), [("split", "holdout"), ("subset", "holdout"), ("is_valid", "perhaps")])
def test_a_value_that_is_no_part_is_refused_by_name(tmp_path, kind, column, value):
    values = ["no", "no", "yes", value] if column == "is_valid" else ["train", "train", "val", value]
    with pytest.raises(ValueError, match=rf"has .*'{value}'"):
        open_data(stored(kind, tmp_path, column, values))


@every_kind
def test_a_column_called_so_that_holds_something_else_divides_nothing(tmp_path, kind, caplog):
    data = open_data(stored(kind, tmp_path, "fold", ["a", "b", "c", "d"]))
    assert (len(data.train.labels), len(data.val.labels)) == (9, 3)
    assert "Column 'fold' of " in caplog.text
    assert "names no parts ('a', ...) and divides nothing." in caplog.text


def test_columns_that_divide_differently_are_refused():
    options: dict[str, Any] = {"origin": "t", "place": str}
    both = {"split": ["train", "val"], "is_valid": [0, 1]}
    assert divide_rows(both, **options)[0] == ["train", "val"]
    with pytest.raises(ValueError, match="Columns 'split' and 'is_valid' of t divide the rows differently"):
        divide_rows({"split": ["train", "val"], "is_valid": [1, 1]}, **options)
    with pytest.raises(ValueError, match="1 belongs to no part or to two"):
        divide_rows({"is_train": [1, 1], "is_test": [0, 1]}, **options)
    assert divide_rows({"is_train": [1, 0, 0], "is_test": [0, 1, 0]}, **options)[0] == ["train", "test", "val"]
    with pytest.raises(ValueError, match="0 has the split None"):
        divide_rows({"split": [None, "val"]}, **options)


def test_a_label_column_that_is_asked_for_divides_nothing(tmp_path):
    path = stored("parquet", tmp_path, "set", ["train", "val", "train", "val"])
    assert open_data(path, label_column="set").train.classes == ["train", "val"]


# --- files and keys -----------------------------------------------------------------------------------


def test_files_and_shards_named_after_parts(tmp_path):
    for number in range(2):
        write_shard(tmp_path / f"imagenet-train-{number:04d}.tar", colour_members(1, seed=number))
    write_shard(tmp_path / "imagenet-dev-0000.tar", colour_members(1, seed=9))
    data = open_data(f"{tmp_path}/imagenet-{{train-{{0000..0001}},dev-0000}}.tar")
    assert (len(data.train.labels), len(data.val.labels)) == (6, 3)
    write_colours(tmp_path / "p" / "Training" / "0.parquet", 2)
    write_colours(tmp_path / "p" / "Testing" / "0.parquet", 1)
    data = open_data(tmp_path / "p")
    assert (len(data.train.labels), len(data.val.labels)) == (6, 3)


def test_keys_of_a_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [encoded(c) for c in COLOURS], "label": list(COLOURS)})
    data = open_data(datasets.DatasetDict({"Train": rows, "dev": rows.select([0, 1])}))
    assert (len(data.train.labels), len(data.val.labels)) == (3, 2)
    assert np.array_equal(data.train.labels, [0, 1, 2])
    with pytest.raises(ValueError, match="'valid' and 'validation', which are both for val"):
        open_data(datasets.DatasetDict({"train": rows, "valid": rows, "validation": rows}))


def test_a_test_part_that_is_trained_on_is_said_to_be(tmp_path, caplog):
    open_data(write_colours(tmp_path / "test.parquet", 3))
    assert "There is one part, test: it is divided" in caplog.text

"""Data sets of every kind: what is recognised, how it is divided, and what is refused."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.core.labels import NO_LABEL
from deit.data.open_data import open_data, open_labelled, open_unlabelled
from deit.data.readers.image_folder import ImageFolder
from deit.data.readers.image_stores import StoredImages
from deit.data.sources import Data, Subset
from tests.data.pictures import (
    COLOURS,
    colour_members,
    encoded,
    fill,
    picture,
    write_colours,
    write_parquet,
    write_shard,
    write_text,
    write_truncated_jpeg,
)

pytest.importorskip("pyarrow")

MULTI, REGRESSION = "multi_label_classification", "regression"


def colour_of(image: Any) -> str:
    return COLOURS[2 - int(np.asarray(image).mean((0, 1)).argmax())]


def check_labels(source: Any, names: dict[str, str] | None = None) -> None:
    """Each image has the colour that its label names."""
    for i, label in enumerate(source.labels):
        name = source.classes[int(label)]
        assert colour_of(source.image(i)) == (names or {}).get(name, name)


# --- folders of images --------------------------------------------------------------------------------


def test_train_and_val_folders_are_taken_as_they_are(tmp_path):
    fill(tmp_path / "train", 3)
    fill(tmp_path / "val", 1, ["blue", "red"], seed=10)
    write_text(tmp_path / "train" / "red" / "a.txt")
    write_text(tmp_path / "val" / "red" / "b.txt")
    data = open_data(tmp_path)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.val.classes == ["blue", "green", "red"]
    assert data.val.labels.tolist() == [0, 2]
    assert np.array_equal(np.asarray(data.val.image(1)), np.asarray(picture("red", 10)))
    assert [Path(file.path).name for file in data.skipped] == ["a.txt", "b.txt"]


def test_train_without_val_is_refused_with_the_way_to_divide_it(tmp_path):
    fill(tmp_path / "train", 2)
    with pytest.raises(FileNotFoundError, match=r"has train/ but no val/\. Add it, or pass .*train to divide it"):
        open_data(tmp_path)


def test_a_val_folder_with_an_unknown_class_is_refused(tmp_path):
    fill(tmp_path / "train", 2, ["blue", "green"])
    fill(tmp_path / "val", 1)
    with pytest.raises(ValueError, match="class folders that the training images lack: red"):
        open_data(tmp_path)


def test_one_folder_is_divided_by_class_without_overlap(tmp_path):
    fill(tmp_path, 10)
    fill(tmp_path, 4, ["red"])
    data = open_data(tmp_path, val_fraction=0.3)
    train, val = data.train, data.val
    assert isinstance(train, Subset)
    assert isinstance(val, Subset)
    assert sorted([*train.indices, *val.indices]) == list(range(30))
    assert np.bincount(train.labels).tolist() == [7, 7, 7]
    assert np.bincount(val.labels).tolist() == [3, 3, 3]
    for subset in (train, val):
        for index, label in enumerate(subset.labels):
            pixels = np.asarray(subset.image(index)).mean((0, 1))
            assert pixels.argmax() == 2 - label


def test_the_division_depends_on_the_seed_alone(tmp_path):
    fill(tmp_path, 8)

    def chosen(seed: int) -> list[int]:
        val = open_data(tmp_path, val_fraction=0.25, seed=seed).val
        assert isinstance(val, Subset)
        return val.indices.tolist()

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_a_class_with_one_image_cannot_be_divided(tmp_path):
    fill(tmp_path, 3, ["blue", "green"])
    fill(tmp_path, 1, ["red"])
    with pytest.raises(ValueError, match=r"Class 'red' has 1 image\(s\); dividing it needs at least 2"):
        open_data(tmp_path)


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_other_names_stand_in_for_val(tmp_path, name):
    fill(tmp_path / "train", 2)
    fill(tmp_path / name, 1)
    assert len(open_data(tmp_path).val.labels) == 3
    assert len(open_labelled(tmp_path).labels) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "a"}, "is a folder of images, which has no columns"),
        ({"label_column": "a"}, "is a folder of images, which has no columns"),
        ({"problem_type": MULTI}, r"with one class each. For multi_label_classification, list .* in a .csv file"),
        ({"problem_type": "ranking"}, "Unknown problem_type 'ranking'"),
    ],
)
def test_a_folder_of_images_has_no_columns(tmp_path, options, message):
    fill(tmp_path, 2)
    for function in (open_data, open_labelled):
        with pytest.raises(ValueError, match=message):
            function(tmp_path, **options)


# --- every other kind ---------------------------------------------------------------------------------


def as_parquet(folder: Path, name: str, count: int, seed: int) -> None:
    write_colours(folder / f"{name}.parquet", count, seed=seed)


def as_shards(folder: Path, name: str, count: int, seed: int) -> None:
    members = colour_members(count, seed=seed)
    members.update({key: COLOURS[int(value)].encode() for key, value in members.items() if key.endswith("cls")})
    write_shard(folder / f"{name}.tar", {key.replace(".cls", ".txt"): value for key, value in members.items()})


def as_table(folder: Path, name: str, count: int, seed: int) -> None:
    images = folder.parent / f"images-{name}"
    fill(images, count, seed=seed)
    folder.mkdir(exist_ok=True)
    lines = [f"{file},{file.parent.name}" for file in sorted(images.rglob("*.png"))]
    (folder / f"{name}.csv").write_text("path,label\n" + "\n".join(lines) + "\n", encoding="utf-8")


KINDS: dict[str, Callable[[Path, str, int, int], None]] = {".parquet": as_parquet, ".tar": as_shards, ".csv": as_table}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_one_file_is_divided_and_measured_whole(tmp_path, kind):
    KINDS[kind](tmp_path / "d", "photos", 5, 0)
    path = tmp_path / "d" / f"photos{kind}"
    data = open_data(str(path), val_fraction=0.2, seed=1)
    assert data.train.classes == sorted(COLOURS)
    assert np.bincount(data.train.labels).tolist() == [4, 4, 4]
    assert np.bincount(data.val.labels).tolist() == [1, 1, 1]
    for source in (data.train, data.val, open_labelled(path)):
        check_labels(source)
    assert len(open_labelled(path).labels) == 15
    again = open_data(path, val_fraction=0.2, seed=1)
    assert again.val.fingerprint() == data.val.fingerprint()
    assert open_data(path, val_fraction=0.2, seed=2).val.fingerprint() != data.val.fingerprint()


@every_kind
@pytest.mark.parametrize(
    ("names", "how"),
    [
        (("train", "val"), "folder"),
        (("train-00000-of-00001", "validation-00000-of-00001"), "folder"),
        (("photos_train", "photos_test"), "pattern"),
        (("photos_train", "photos_test"), "list"),
    ],
)
def test_parts_are_told_by_the_names_of_files(tmp_path, kind, names, how):
    folder = tmp_path / "d"
    for name, count, seed in zip(names, (3, 1), (0, 100), strict=True):
        KINDS[kind](folder, name, count, seed)
    files = [f"{folder}/{name}{kind}" for name in names]
    path = {"folder": folder, "pattern": f"{folder}/{{{','.join(names)}}}{kind}", "list": files}[how]
    data = open_data(path)
    assert len(data.train.labels) == 9
    assert len(data.val.labels) == 3
    for source in (data.train, data.val, open_labelled(path)):
        check_labels(source)
    assert len(open_labelled(path).labels) == 3


@every_kind
def test_a_label_in_val_that_train_lacks_is_refused(tmp_path, kind):
    KINDS[kind](tmp_path / "d", "train", 2, 0)
    KINDS[kind](tmp_path / "d", "val", 1, 0)
    data = open_data(tmp_path / "d")
    assert data.val.classes == data.train.classes
    if kind == ".parquet":
        write_colours(tmp_path / "d" / "train.parquet", 2, ["blue", "green"])
    elif kind == ".csv":
        text = (tmp_path / "d" / "train.csv").read_text()
        (tmp_path / "d" / "train.csv").write_text("".join(x for x in text.splitlines(True) if "red" not in x))
    else:
        members = {"a.png": encoded("blue"), "a.txt": b"blue", "b.png": encoded("green"), "b.txt": b"green"}
        write_shard(tmp_path / "d" / "train.tar", members)
    with pytest.raises(ValueError, match=r"labels that are not among the 2 classes: red. Known: blue, green\."):
        open_data(tmp_path / "d")


@every_kind
def test_labels_are_brought_into_the_order_of_a_model(tmp_path, kind):
    KINDS[kind](tmp_path / "d", "photos", 2, 0)
    classes = ["red", "yellow", "blue", "green"]
    source = open_labelled(tmp_path / "d", classes=classes)
    assert source.classes == classes
    assert sorted(set(source.labels.tolist())) == [0, 2, 3]
    check_labels(source)


def test_numbers_without_names_count_as_places_in_a_model_where_they_fit(tmp_path):
    path = write_shard(tmp_path / "photos.tar", colour_members(1))
    source = open_labelled(path, classes=["azure", "lime", "ruby"])
    assert source.labels.tolist() == [0, 1, 2]
    check_labels(source, {"azure": "blue", "lime": "green", "ruby": "red"})
    with pytest.raises(ValueError, match="not among the 2 classes"):
        open_labelled(path, classes=["azure", "lime"])


@every_kind
def test_progress_covers_train_and_val(tmp_path, kind):
    KINDS[kind](tmp_path / "d", "train", 2, 0)
    KINDS[kind](tmp_path / "d", "val", 1, 0)
    seen: list[tuple[int, int]] = []
    open_data(tmp_path / "d", progress=lambda done, total: seen.append((done, total)))
    assert [pair for pair in seen if pair[1] > 1] == [(6, 6), (3, 3)]


def test_a_table_with_a_column_split(tmp_path):
    fill(tmp_path / "images", 3)
    lines = [f"images/{c}/{i}.png,{c},{('train', 'train', 'val')[i]}" for c in COLOURS for i in range(3)]
    path = tmp_path / "list.csv"
    path.write_text("path,label,split\n" + "\n".join([*lines, "images/gone.png,red,train"]) + "\n", encoding="utf-8")
    data = open_data(path)
    assert len(data.train.labels) == 6
    assert len(data.val.labels) == 3
    assert [file.reason for file in data.skipped] == ["there is no file 'images/gone.png'."]
    assert len(open_labelled(path).labels) == 3
    with pytest.raises(ValueError, match=r"there is no file .images/gone\.png."):
        open_data(path, strict=True)


def test_folders_of_parts_hold_files(tmp_path):
    write_colours(tmp_path / "train" / "0000.parquet", 2)
    write_colours(tmp_path / "train" / "0001.parquet", 1, seed=9)
    write_colours(tmp_path / "validation" / "0000.parquet", 1)
    data = open_data(tmp_path)
    assert len(data.train.labels) == 9
    assert len(data.val.labels) == 3
    write_colours(tmp_path / "other" / "data" / "train-00000-of-00001.parquet", 2)
    assert len(open_labelled(tmp_path / "other").labels) == 6


@pytest.mark.parametrize("kind", ["folder of parts", "one", "object", "objects"])
def test_data_sets_of_the_package_datasets(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*COLOURS[::-1]])})

    def made(count: int) -> Any:
        cells = [{"bytes": encoded(c, i), "path": None} for c in COLOURS for i in range(count)]
        labels = [c for c in COLOURS for _ in range(count)]
        return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)

    both = datasets.DatasetDict({"train": made(3), "validation": made(1), "test": made(2)})
    path: Any = {"object": both["train"], "objects": both}.get(kind, tmp_path / "saved")
    if kind == "folder of parts":
        both.save_to_disk(path)
    elif kind == "one":
        both["train"].save_to_disk(path)
    data = open_data(path, val_fraction=0.34)
    assert data.train.classes == ["red", "green", "blue"]
    assert len(data.val.labels) == 3
    for source in (data.train, data.val, open_labelled(path, classes=["blue", "red", "green"])):
        check_labels(source)


def test_several_classes_are_divided_and_kept_together(tmp_path):
    labels = [["a", "b"], ["b"], [], ["a"]] * 5
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded(seed=i) for i in range(20)], "labels": labels})
    data = open_data(path, problem_type=MULTI)
    assert data.problem_type == MULTI
    assert data.train.classes == ["a", "b"]
    assert data.train.labels.shape == (16, 2)
    assert data.val.labels.dtype == np.float32


def test_numbers_are_divided(tmp_path):
    ages = list(np.linspace(0, 80, 20))
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded(seed=i) for i in range(20)], "age": ages})
    data = open_data(path, problem_type=REGRESSION)
    assert data.problem_type == REGRESSION
    assert data.train.classes == ["age"]
    assert sorted([*data.train.labels, *data.val.labels]) == np.float32(ages).tolist()
    model = open_labelled(path, problem_type=REGRESSION, classes=["years"])
    assert model.classes == ["years"]


# --- what is refused ----------------------------------------------------------------------------------


def test_labels_missing_from_val_are_refused_and_from_train_left_out(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"image": [encoded()] * 3, "label": [1, -1, 0]})
    path = write_parquet(tmp_path / "test.parquet", {"image": [encoded()] * 3, "label": [-1, -1, 1]})
    for function in (open_data, open_labelled):
        with pytest.raises(
            ValueError, match=r"Labels missing from test: 2 of 3 images have none, the first is .* row 0"
        ):
            function(tmp_path)
    write_parquet(path, {"image": [encoded()] * 3, "label": [1, 1, 0]})
    data = open_data(tmp_path)
    assert [file.reason for file in data.skipped] == ["it has no label."]
    assert len(data.train.labels) == 2


def test_images_without_a_label_are_kept_for_training_when_asked_for(tmp_path):
    pictures = [encoded(colour, i) for i in range(4) for colour in COLOURS]
    labels = [0, 1, 2] * 2 + [None] * 6
    path = write_parquet(tmp_path / "some.parquet", {"image": pictures, "label": labels})
    data = open_data(path, keep_unlabelled=True)
    assert sorted(data.train.labels) == [NO_LABEL] * 6 + [0, 1, 2]
    assert sorted(data.val.labels) == [0, 1, 2]  # of those without a label none is measured on
    for i, label in enumerate(data.train.labels):
        if label != NO_LABEL:
            assert colour_of(data.train.image(i)) == COLOURS[label]
    assert data.skipped == ()
    nothing = write_parquet(tmp_path / "none.parquet", {"image": pictures, "label": [-1] * 12})
    with pytest.raises(ValueError, match=r"No image of .* has a label. Images without labels are for deit pretrain"):
        open_data(nothing, keep_unlabelled=True)
    without = open_data(path)
    assert sorted(without.train.labels) == [0, 1, 2]
    assert np.array_equal(without.val.image(0), data.val.image(0))
    assert len(without.skipped) == 6


def test_a_folder_of_unlabelled_images_beside_train_and_val(tmp_path, caplog):
    fill(tmp_path / "train", 2)
    fill(tmp_path / "val", 1, seed=50)
    fill(tmp_path / "unlabelled", 3, ("red",), seed=90)
    fill(tmp_path / "holiday", 1)
    data = open_data(tmp_path, keep_unlabelled=True)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, *[NO_LABEL] * 3]
    assert data.train.classes == list(COLOURS)
    assert colour_of(data.train.image(3)) == "green"
    assert np.array_equal(data.train.image(7), picture("red", 91))
    assert "these folders are not used: holiday" in caplog.text
    assert data.train.fingerprint() != open_data(tmp_path).train.fingerprint()
    assert len(open_data(tmp_path).train.labels) == 6
    assert len(open_unlabelled(tmp_path).train.labels) == 9


def test_images_of_one_class_alone_are_refused(tmp_path):
    """Such as unlabelled images in the one folder they came in."""
    fill(tmp_path / "photos", 3, ("red",))
    file = write_parquet(tmp_path / "one.parquet", {"image": [encoded(seed=i) for i in range(4)], "label": ["red"] * 4})
    for place in (tmp_path / "photos", file):
        with pytest.raises(ValueError, match=r"All images are of one class, 'red': .* Images without labels are for"):
            open_data(place)


@every_kind
def test_without_labels_the_images_held_out_are_those_of_training(tmp_path, kind):
    """So that no image is learnt from before which a classifier is measured on later."""
    (tmp_path / "in").mkdir()
    KINDS[kind](tmp_path / "in", "all", 6, 0)
    check_held_out(tmp_path / "in" / f"all{kind}")


def test_a_folder_without_labels_is_divided_as_in_training(tmp_path):
    check_held_out(fill(tmp_path, 6))


def check_held_out(path: Path) -> None:
    for seed in (0, 1):
        with_labels, without = open_data(path, seed=seed), open_unlabelled(path, seed=seed)
        held_out = [
            {source.image(i).tobytes() for i in range(len(source.labels))} for source in (with_labels.val, without.val)
        ]
        assert held_out[0] == held_out[1]
        assert len(without.train.labels) == len(with_labels.train.labels)


def test_classes_without_a_training_image_are_noted(tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [{"bytes": encoded(seed=i), "path": None} for i in range(4)], "label": [0, 2, 0, 2]}
    open_data(datasets.Dataset.from_dict(rows, features=features))
    assert caplog.messages == ["1 of 3 classes have no training image, the first is 'b'."]


def mixed(folder: Path) -> list[Path]:
    return [write_colours(folder / "a.parquet", 1), write_shard(folder / "b.tar", colour_members(1))]


REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "nothing there": (
        lambda p: p / "gone.parquet",
        FileNotFoundError,
        "There is nothing at .*gone.parquet. Supported:",
    ),
    "a range with a gap": (lambda p: f"{p}/a-{{0..1}}.tar", FileNotFoundError, "There is nothing at .*/a-0.tar"),
    "another kind of file": (
        lambda p: write_text(p / "a.zip"),
        ValueError,
        r"a.zip is not a data set .* \.parquet files",
    ),
    "a compressed shard": (
        lambda p: write_text(p / "a.tar.gz"),
        ValueError,
        "a.tar.gz is not a data set of a known kind",
    ),
    "several kinds": (mixed, ValueError, r"of several kinds: \.parquet, \.tar"),
    "an empty list": (lambda p: [], ValueError, "An empty list has no data"),
    "a number": (lambda p: 3, TypeError, "path must be a path, .* Received: int"),
    "an address of no shard": (
        lambda p: "http://h/a.csv?k",
        ValueError,
        r"http://h/a.csv cannot be opened: only .tar and .parquet files",
    ),
    "a command": (lambda p: "pipe:cat a.tar", ValueError, "cannot be opened: shards come from files, http"),
    "an empty folder": (lambda p: p, ValueError, "has no class folders"),
    "braces": (lambda p: f"{p}/a-{{0..1.tar", ValueError, "do not match"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_is_refused(tmp_path, case):
    make, error, message = REFUSED[case]
    path = make(tmp_path)
    for function in (open_data, open_labelled):
        with pytest.raises(error, match=message):
            function(path)


def test_files_of_which_some_tell_no_part_are_refused(tmp_path):
    write_colours(tmp_path / "val.parquet", 1)
    write_colours(tmp_path / "more.parquet", 1)
    with pytest.raises(ValueError, match=r"Some files are named after a part .* and others are not: .*more.parquet"):
        open_data(tmp_path)


def test_parts_without_one_to_train_on_are_refused(tmp_path):
    write_colours(tmp_path / "val.parquet", 1)
    write_colours(tmp_path / "test.parquet", 1)
    with pytest.raises(ValueError, match=r"The parts test, val cannot be used for training. Name one train"):
        open_data(tmp_path)
    assert len(open_labelled(tmp_path).labels) == 3


def test_tables_that_contradict_each_other_are_refused(tmp_path):
    for name in ("train-1", "train-2", "val"):
        write_text(tmp_path / f"{name}.csv").write_text("path,label,split\na.png,b,train\n")
    with pytest.raises(ValueError, match=r"train-1.csv and .*train-2.csv are for the same part"):
        open_data(tmp_path)
    (tmp_path / "train-2.csv").unlink()
    with pytest.raises(ValueError, match=r"is one of several tables and has a column of splits"):
        open_data(tmp_path)


def test_a_table_beside_one_folder_of_images_is_not_one_class(tmp_path):
    as_table(tmp_path, "labels", 1, 0)
    fill(tmp_path / "images", 1)
    with pytest.raises(ValueError, match=r"has one folder, images/, and a table. Pass the table: .*labels.csv"):
        open_data(tmp_path)


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    write_colours(tmp_path / "a.parquet", 1)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "dataset_dict.json").write_text("{}")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return found(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError) as caught:
        open_data({"pyarrow": tmp_path / "a.parquet", "datasets": saved}[package])
    assert caught.value.name == package


def test_returned_sources_say_what_was_left_out(tmp_path):
    fill(tmp_path / "folder", 2)
    write_truncated_jpeg(tmp_path / "folder" / "red" / "half.jpg")
    folder = open_labelled(tmp_path / "folder")
    assert isinstance(folder, ImageFolder)
    assert len(folder.skipped) == 1
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded(), b"no"], "label": ["a", "a"]})
    table = open_labelled(path)
    assert isinstance(table, StoredImages)
    assert [file.path for file in table.skipped] == [f"{path} row 1"]
    assert isinstance(open_data(tmp_path / "folder"), Data)

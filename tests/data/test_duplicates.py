"""Copies of an image lie on one side of a division, whatever they are called, and are told of by number."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from deit.core.labels import NO_LABEL
from deit.data.divisions import split_indices
from deit.data.duplicates import contradictions, count_shared, split_contents
from deit.data.few_labels import choose_labelled
from deit.data.open_data import open_data, open_unlabelled
from deit.data.sources import ArraySource, contents_of
from tests.data.pictures import COLOURS, fill, picture


def shared(data) -> set[int]:
    return set(contents_of(data.train).tolist()) & set(contents_of(data.val).tolist())


def add_copies(root) -> None:
    """Each of 6 images of 3 classes gets three copies of other names."""
    for colour in COLOURS:
        for file in sorted((root / colour).iterdir()):
            for i in range(3):
                (root / colour / f"copy {i} of {file.name}").write_bytes(file.read_bytes())


def test_without_copies_a_division_is_what_it_was():
    labels = np.arange(40) % 3
    contents = np.random.default_rng(0).integers(0, 2**63, 40).astype(np.uint64)
    plain = split_indices(labels, ["a", "b", "c"], 0.25, 7)
    for seen in (contents, None):
        for one, other in zip(split_contents(labels, ["a", "b", "c"], 0.25, 7, seen), plain, strict=True):
            assert one.tolist() == other.tolist()


def test_copies_follow_the_first_of_them_and_the_share_is_of_different_images():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    contents = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.uint64)
    whole_labels, whole = np.tile(labels, 3), np.tile(contents, 3)
    first, second = split_contents(whole_labels, ["a", "b"], 0.25, 3, whole)
    expected = split_indices(labels, ["a", "b"], 0.25, 3)[1]
    assert set(whole[second]) == set(contents[expected])
    assert not set(whole[first]) & set(whole[second])
    assert len(first) + len(second) == 24


@pytest.mark.parametrize("labels", [np.eye(4, 3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]], np.arange(6, dtype=np.float32)])
def test_several_classes_and_numbers_are_divided_likewise(labels):
    contents = np.array([1, 1, 2, 2, 3, 3], np.uint64)
    first, second = split_contents(labels, ["a", "b", "c"], 0.34, 0, contents)
    assert len(second) == 2
    assert not set(contents[first]) & set(contents[second])


def test_a_class_of_copies_of_one_image_is_refused():
    with pytest.raises(ValueError, match=r"Class 'b' has 3 copies of 1 image; dividing it needs at least 2 different"):
        split_contents(np.array([0, 0, 1, 1, 1]), ["a", "b"], 0.5, 0, np.array([1, 2, 3, 3, 3], np.uint64))


def test_files_of_other_names_with_the_same_content_lie_on_one_side(tmp_path, caplog):
    add_copies(fill(tmp_path, 6))
    data = open_data(tmp_path)
    assert not shared(data)
    assert len(data.train.labels) + len(data.val.labels) == 72
    assert "54 of 72 images are copies of others on the same side." in caplog.messages
    assert not shared(open_unlabelled(tmp_path))
    assert open_unlabelled(tmp_path).val.indices.tolist() == data.val.indices.tolist()


@pytest.mark.parametrize("name", ["twice.csv", "twice.parquet"])
def test_rows_that_are_named_twice_lie_on_one_side(tmp_path, name):
    fill(tmp_path, 5)
    rows = [(f"{colour}/{i}.png", colour) for colour in COLOURS for i in range(5)] * 2
    files = {path: next((tmp_path / path.split("/")[0]).glob(f"{path.split('/')[1][0]}.*")) for path, _ in rows}
    if name.endswith("csv"):
        lines = [f"{files[path].relative_to(tmp_path)},{label}" for path, label in rows]
        (tmp_path / name).write_text("path,label\n" + "\n".join(lines))
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        cells = pa.array([files[path].read_bytes() for path, _ in rows], pa.binary())
        pq.write_table(pa.table({"image": cells, "label": [label for _, label in rows]}), tmp_path / name)
    data = open_data(tmp_path / name)
    assert not shared(data)
    assert (len(data.train.labels), len(data.val.labels)) == (24, 6)


def test_contradicting_labels_are_told_by_number_and_example(tmp_path, caplog):
    root = fill(tmp_path, 5)
    first = sorted((root / COLOURS[0]).iterdir())[0]
    (root / COLOURS[1] / f"the same{first.suffix}").write_bytes(first.read_bytes())
    data = open_data(tmp_path)
    (message,) = [m for m in caplog.messages if "contradict" in m]
    assert message.startswith("Copies of an image whose labels contradict each other: 1. ")
    assert f"{first} ({COLOURS[0]})" in message
    assert f"the same{first.suffix} ({COLOURS[1]})" in message
    assert not shared(data)


def test_contradictions_of_several_classes_and_images_without_a_label():
    images = np.zeros((4, 4, 4, 3), np.uint8)
    images[3] = 9
    several = ArraySource(images, np.array([[1, 0], [1, 0], [1, 1], [0, 1]]), problem_type="multi_label_classification")
    (found,) = contradictions([several])
    assert (found.first, found.second) == ("image 0 (0)", "image 2 (0|1)")
    single = ArraySource(images, np.array([0, 1, 1, 1]))
    single.labels[1:3] = NO_LABEL
    assert contradictions([single]) == []


def test_copies_between_a_given_train_and_val_are_told_by_number(tmp_path, caplog):
    fill(tmp_path / "train", 4)
    val = fill(tmp_path / "val", 4)
    for colour in COLOURS:
        picture(colour, 99).save(val / colour / "new.png")
    data = open_data(tmp_path)
    count = count_shared(data.val, data.train)
    assert count == 12
    assert f"{count} of 15 validation images are training images as well: their scores say nothing" in caplog.text
    caplog.clear()
    open_unlabelled(tmp_path)
    assert "12 of 15 validation images are training images as well" in caplog.text


def test_an_unlabelled_copy_of_a_validation_image_is_not_trained_on(tmp_path, caplog):
    fill(tmp_path, 5)
    files = [file for colour in COLOURS for file in sorted((tmp_path / colour).iterdir())]
    lines = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files]
    lines += [f"{file.relative_to(tmp_path)}," for file in files]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    data = open_data(tmp_path / "list.csv", keep_unlabelled=True)
    assert not shared(data)
    assert (len(data.train.labels), len(data.val.labels)) == (24, 3)
    assert [file.reason for file in data.skipped] == ["it is a copy of a validation image and has no label."] * 3


def test_ten_labels_are_those_of_ten_different_images():
    images = np.zeros((30, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(30) % 10  # ten images, each three times
    source = ArraySource(images, np.zeros(30, np.int64), ["a"])
    chosen = choose_labelled(source, labels_per_class=10)
    assert len(np.unique(source.contents[chosen])) == 10


def test_data_without_copies_says_nothing(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    open_data(fill(tmp_path, 5))
    assert caplog.messages == []

"""Folders and arrays of labelled images: what is found, in which order, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.data.divisions import split_indices
from deit.data.readers.image_folder import ImageFolder, class_folders
from deit.data.sources import ArraySource, Data, Subset
from tests.data.pictures import COLOURS, fill, picture, write_text, write_truncated_jpeg


def names(source: ImageFolder) -> list[str]:
    return [path.relative_to(source.root).as_posix() for path in source.paths]


def array_source(classes: list[str] | None = None) -> ArraySource:
    images = np.arange(6 * 2 * 3 * 3, dtype=np.uint8).reshape(6, 2, 3, 3)
    return ArraySource(images, np.array([0, 1, 2, 0, 1, 2]), classes)


# --- ImageFolder: what is found -----------------------------------------------------------------------


def test_a_folder_gives_sorted_classes_labels_and_images_in_order(tmp_path):
    source = ImageFolder(fill(tmp_path, 2))
    assert source.classes == ["blue", "green", "red"]
    assert names(source) == ["blue/0.png", "blue/1.png", "green/0.png", "green/1.png", "red/0.png", "red/1.png"]
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.labels.dtype == np.int64
    assert source.skipped == []
    for index, (colour, seed) in enumerate((c, s) for c in COLOURS for s in range(2)):
        assert source.image(index).mode == "RGB"
        assert np.array_equal(np.asarray(source.image(index)), np.asarray(picture(colour, seed)))


def test_images_in_nested_folders_belong_to_the_class_folder_above_them(tmp_path):
    fill(tmp_path, 1)
    fill(tmp_path / "green" / "holidays", 1, ["red"])  # a class name further down means nothing
    source = ImageFolder(tmp_path)
    assert names(source) == ["blue/0.png", "green/0.png", "green/holidays/red/0.png", "red/0.png"]
    assert source.labels.tolist() == [0, 1, 1, 2]


def test_hidden_files_and_folders_are_not_seen(tmp_path):
    fill(tmp_path, 1)
    write_text(tmp_path / "red" / "._0.png")
    write_text(tmp_path / ".DS_Store")
    fill(tmp_path / "green" / ".thumbnails", 1)
    fill(tmp_path, 1, ["red"])
    (tmp_path / ".cache").mkdir()
    source = ImageFolder(tmp_path, strict=True)
    assert names(source) == ["blue/0.png", "green/0.png", "red/0.png"]
    assert source.skipped == []


def test_a_folder_whose_name_ends_like_an_image_is_a_folder(tmp_path):
    fill(tmp_path, 1)
    (tmp_path / "red" / "album.png").mkdir()
    picture().save(tmp_path / "red" / "album.png" / "1.png")
    assert names(ImageFolder(tmp_path, strict=True))[2:] == ["red/0.png", "red/album.png/1.png"]


def test_endings_count_in_capitals_too(tmp_path):
    fill(tmp_path, 1, ["blue"])
    picture().save(tmp_path / "blue" / "A.JPG", "JPEG")
    assert names(ImageFolder(tmp_path)) == ["blue/0.png", "blue/A.JPG"]


def test_given_classes_fix_names_order_and_labels(tmp_path):
    source = ImageFolder(fill(tmp_path, 1, ["blue", "red"]), classes=["red", "green", "blue"])
    assert source.classes == ["red", "green", "blue"]
    assert names(source) == ["red/0.png", "blue/0.png"]
    assert source.labels.tolist() == [0, 2]


def test_progress_counts_every_image_once(tmp_path):
    seen: list[tuple[int, int]] = []
    ImageFolder(fill(tmp_path, 3), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 9) for i in range(9)]


def test_checking_many_images_leaves_the_filters_of_warnings_as_they_were(tmp_path):
    """The checks run in threads, and filters of warnings belong to the whole process."""
    fill(tmp_path, 40)
    before = list(warnings.filters)
    for _ in range(3):
        ImageFolder(tmp_path)
    assert warnings.filters == before


def test_an_image_that_claims_too_many_pixels_is_left_out(tmp_path, monkeypatch):
    fill(tmp_path, 2)
    picture(height=60, width=60).save(tmp_path / "red" / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 40)
    source = ImageFolder(tmp_path)
    assert [Path(file.path).name for file in source.skipped] == ["huge.png"]
    assert "claims more pixels than are safe to decode" in source.skipped[0].reason


# --- ImageFolder: what is left out --------------------------------------------------------------------

BROKEN = {
    "half.jpg": (write_truncated_jpeg, "cannot be read as an image (image file is truncated"),
    "letter.png": (write_text, "is not an image (known: JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF, HEIC)."),
    "notes.txt": (write_text, "its ending '.txt' is not an image's."),
    "empty.png": (
        lambda path: path.touch(),
        "is not an image (known: JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF, HEIC).",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_left_out_and_reported_with_the_reason(tmp_path, name, caplog):
    fill(tmp_path, 2)
    write, reason = BROKEN[name]
    write(tmp_path / "green" / name)
    source = ImageFolder(tmp_path)
    assert len(source.labels) == 6
    assert [file.path for file in source.skipped] == [str(tmp_path / "green" / name)]
    assert source.skipped[0].reason.startswith(reason)
    named = f"{source.skipped[0].path}: {source.skipped[0].reason.rstrip('.')}"
    assert caplog.messages == [f"Left out 1 file of {tmp_path}: {named}."]


def test_labels_still_fit_their_images_when_files_between_them_are_left_out(tmp_path):
    fill(tmp_path, 2)
    write_text(tmp_path / "blue" / "00.png")
    write_truncated_jpeg(tmp_path / "green" / "0a.jpg")
    source = ImageFolder(tmp_path)
    assert names(source) == ["blue/0.png", "blue/1.png", "green/0.png", "green/1.png", "red/0.png", "red/1.png"]
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(np.asarray(source.image(2)), np.asarray(picture("green", 0)))


@pytest.mark.parametrize("name", BROKEN)
def test_strict_raises_at_a_broken_file_and_names_it(tmp_path, name):
    fill(tmp_path, 2)
    write, reason = BROKEN[name]
    write(tmp_path / "green" / name)
    with pytest.raises(ValueError, match=r"\(1 such files; strict is on\.\)") as caught:
        ImageFolder(tmp_path, strict=True)
    assert str(caught.value).startswith(f"{tmp_path / 'green' / name}: {reason}")


# --- ImageFolder: what is refused ---------------------------------------------------------------------


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder at .*nowhere. Pass a folder with one sub-folder"):
        ImageFolder(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder at"):
        class_folders(write_text(tmp_path / "file"))


def test_a_folder_without_class_folders_is_refused(tmp_path):
    picture().save(tmp_path / "0.png")
    (tmp_path / ".git").mkdir()
    with pytest.raises(ValueError, match=r"has no class folders. It must hold one sub-folder of images for each class"):
        ImageFolder(tmp_path)


def test_a_class_whose_only_image_is_broken_is_refused_and_named(tmp_path):
    fill(tmp_path, 1)
    (tmp_path / "yellow").mkdir()
    write_truncated_jpeg(tmp_path / "yellow" / "0.jpg")
    with pytest.raises(ValueError, match=r"No usable image in .*yellow"):
        ImageFolder(tmp_path)


def test_a_class_folder_that_is_not_among_the_given_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"class folders that the training images lack: red\. Known: blue, green\."):
        ImageFolder(fill(tmp_path, 1), classes=["blue", "green"])


# --- Data --------------------------------------------------------------------------------------------


def test_training_and_validation_must_have_equal_classes():
    with pytest.raises(ValueError, match="Training and validation classes differ"):
        Data(train=array_source(), val=array_source(["a", "b", "c"]))


# --- split_indices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ((10, 10), 0.2, (2, 2)),
        ((10, 5), 0.5, (5, 2)),  # Python rounds 2.5 to the even number
        ((2, 2), 0.01, (1, 1)),  # at least one on each side
        ((2, 3), 0.99, (1, 2)),
        ((100, 3), 0.1, (10, 1)),
    ],
)
def test_the_share_of_each_class_is_rounded_and_never_empties_a_side(sizes, fraction, expected):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    first, second = split_indices(labels, ["a", "b"], fraction, seed=0)
    assert np.bincount(labels[second]).tolist() == list(expected)
    assert np.bincount(labels[first]).tolist() == [n - m for n, m in zip(sizes, expected, strict=True)]
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert first.tolist() == sorted(first)
    assert second.tolist() == sorted(second)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match="val_fraction must lie between 0 and 1"):
        split_indices(np.array([0, 0]), ["a"], fraction, seed=0)


# --- ArraySource and Subset ---------------------------------------------------------------------------


def test_colour_and_grey_arrays_become_rgb_images():
    colour = array_source()
    assert colour.classes == ["0", "1", "2"]
    assert np.asarray(colour.image(1)).tolist() == np.arange(18, 36).reshape(2, 3, 3).tolist()
    grey = ArraySource(np.array([[[7, 8]]], np.uint8), np.array([0], np.int32), ["only"])
    assert grey.image(0).mode == "RGB"
    assert np.asarray(grey.image(0)).tolist() == [[[7, 7, 7], [8, 8, 8]]]
    assert grey.labels.dtype == np.int64


IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "classes", "error", "message"),
    [
        (
            IMAGES.astype(np.float32),
            LABELS,
            None,
            TypeError,
            r"images must be uint8 .* Received: float32 \(2, 4, 4, 3\)",
        ),
        (IMAGES[0, 0], LABELS, None, TypeError, r"Received: uint8 \(4, 3\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), LABELS, None, TypeError, r"Received: uint8 \(2, 4, 4, 4\)"),
        (IMAGES, LABELS.astype(float), None, TypeError, "labels must be integers. Received: float64"),
        (IMAGES, np.array([0, 1, 2]), None, ValueError, r"Received: 2 images, \(3,\) labels"),
        (IMAGES[:0], LABELS[:0], None, ValueError, r"Received: 0 images, \(0,\) labels"),
        (IMAGES, LABELS, ["a"], ValueError, r"Labels must lie in \[0, 1\)\. Received: 0 to 1"),
        (IMAGES, np.array([-1, 1]), None, ValueError, r"Labels must lie in \[0, 2\)\. Received: -1 to 1"),
    ],
)
def test_unusable_arrays_are_refused(images, labels, classes, error, message):
    with pytest.raises(error, match=message):
        ArraySource(images, labels, classes)


def test_a_subset_takes_images_and_labels_in_the_order_given():
    source = array_source(["a", "b", "c"])
    subset = Subset(source, np.array([4, 0, 5]))
    assert subset.classes == ["a", "b", "c"]
    assert subset.labels.tolist() == [1, 0, 2]
    for position, index in enumerate((4, 0, 5)):
        assert np.array_equal(np.asarray(subset.image(position)), np.asarray(source.image(index)))


# --- other problem types ------------------------------------------------------------------------------


def test_sources_say_what_their_labels_are_for(tmp_path):
    assert ImageFolder(fill(tmp_path, 1)).problem_type == "single_label_classification"
    source = array_source()
    assert Subset(source, np.array([0])).problem_type == source.problem_type == "single_label_classification"
    assert Data(train=source, val=source).problem_type == "single_label_classification"


def test_arrays_take_several_classes_and_numbers():
    several = ArraySource(IMAGES, np.array([[1, 0, 1], [0, 0, 0]]), problem_type="multi_label_classification")
    assert several.labels.dtype == np.float32
    assert several.labels.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert several.classes == ["0", "1", "2"]
    number = ArraySource(IMAGES, np.array([1.5, -2]), ["age"], problem_type="regression")
    assert number.labels.dtype == np.float32
    assert number.labels.tolist() == [1.5, -2.0]
    assert number.classes == ["age"]
    with pytest.raises(ValueError, match="Training images are for multi_label_classification and validation images"):
        Data(train=several, val=number)


@pytest.mark.parametrize(
    ("labels", "classes", "problem_type", "message"),
    [
        (np.array([[0, 2], [0, 1]]), None, "multi_label_classification", "must be zeros and ones"),
        (np.array([[0, 1], [0, 1]]), ["a"], "multi_label_classification", r"of the shape \(N, 1\)"),
        (np.array([0, 1]), None, "multi_label_classification", "One label row for each image is needed"),
        (np.array([0.0, np.nan]), None, "regression", "Regression needs finite numbers"),
        (np.array([0.0, 1.0]), ["a", "b"], "regression", "Received: 2 names"),
        (np.array([0, 1]), None, "ranking", "Unknown problem_type 'ranking'. Choose one of: single_label"),
    ],
)
def test_labels_that_do_not_fit_their_problem_type_are_refused(labels, classes, problem_type, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(IMAGES, labels, classes, problem_type=problem_type)


def test_numbers_are_divided_at_random():
    labels = np.linspace(0, 1, 50, dtype=np.float32)
    first, second = split_indices(labels, ["age"], 0.2, seed=3)
    assert len(second) == 10
    assert sorted([*first, *second]) == list(range(50))
    assert second.tolist() != list(range(10))
    assert np.array_equal(second, split_indices(labels, ["age"], 0.2, seed=3)[1])
    assert not np.array_equal(second, split_indices(labels, ["age"], 0.2, seed=4)[1])
    with pytest.raises(ValueError, match=r"1 image\(s\) cannot be divided"):
        split_indices(labels[:1], ["age"], 0.2, seed=3)


@pytest.mark.parametrize("seed", range(8))
def test_each_of_several_classes_is_on_both_sides_if_two_images_have_it(seed):
    random = np.random.default_rng(seed)
    labels = (random.random((40, 6)) < [0.5, 0.3, 0.1, 0.05, 0.05, 0.0]).astype(np.float32)
    labels[:2, 4] = 1
    first, second = split_indices(labels, list("abcdef"), 0.2, seed)
    assert sorted([*first, *second]) == list(range(40))
    for label in range(6):
        if labels[:, label].sum() >= 2:
            assert labels[first, label].any()
            assert labels[second, label].any()


def test_a_class_that_no_image_has_does_not_hinder_the_division():
    first, second = split_indices(np.array([0, 0, 2, 2]), ["a", "b", "c"], 0.5, seed=0)
    assert len(first) == len(second) == 2


# --- fingerprints -------------------------------------------------------------------------------------


def array_fingerprint(
    change: Callable[[dict[str, Any]], None] = lambda values: None,
) -> str:
    values: dict[str, Any] = {
        "images": np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3),
        "labels": np.array([0, 1, 0, 1]),
        "classes": ["a", "b"],
    }
    change(values)
    return ArraySource(**values).fingerprint()


def swap_pixels(values: dict[str, Any]) -> None:
    values["images"][0, 0, :2] = (1, 0)


@pytest.mark.parametrize(
    "change",
    [
        swap_pixels,
        lambda values: values.update(labels=np.array([0, 1, 1, 0])),
        lambda values: values.update(classes=["a", "c"]),
        lambda values: values.update(images=values["images"].reshape(4, 3, 2)),
    ],
    ids=["a pixel", "a label", "a class name", "the shape"],
)
def test_the_fingerprint_of_arrays_changes_with(change):
    assert array_fingerprint(change) != array_fingerprint()


def test_the_fingerprint_of_arrays_stays_for_equal_values_in_another_layout_or_type():
    assert array_fingerprint() == array_fingerprint()
    assert array_fingerprint(lambda v: v.update(images=np.asfortranarray(v["images"]))) == array_fingerprint()
    assert array_fingerprint(lambda v: v.update(labels=v["labels"].astype(np.uint8))) == array_fingerprint()


def test_the_fingerprint_of_a_folder_does_not_depend_on_its_place(tmp_path):
    here, there = fill(tmp_path / "here", 2), fill(tmp_path / "there", 2)
    (there / "red" / ".hidden").touch()
    assert ImageFolder(here).fingerprint() == ImageFolder(there).fingerprint()


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "moved", "rewritten"])
def test_the_fingerprint_of_a_folder_changes_when_a_file_is(tmp_path, change):
    before = ImageFolder(fill(tmp_path, 2)).fingerprint()
    file = tmp_path / "red" / "1.png"
    if change == "added":
        picture(seed=9).save(tmp_path / "red" / "9.png")
    elif change == "removed":
        file.unlink()
    elif change == "renamed":
        file.rename(tmp_path / "red" / "2.png")
    elif change == "moved":
        file.rename(tmp_path / "green" / "2.png")
    else:
        picture(height=20, width=20).save(file)
    assert ImageFolder(tmp_path).fingerprint() != before


def test_the_fingerprint_of_a_subset_depends_on_the_choice_and_on_the_source():
    source = array_source()
    first = Subset(source, np.array([0, 1])).fingerprint()
    assert first == Subset(array_source(), np.array([0, 1])).fingerprint()
    assert first != Subset(source, np.array([1, 0])).fingerprint()
    assert first != Subset(array_source(["a", "b", "c"]), np.array([0, 1])).fingerprint()

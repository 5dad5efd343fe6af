"""Our pixels against transformers' Pillow processor: equal bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deit import DeiTImageProcessor

transformers = pytest.importorskip("transformers")
Oracle = transformers.DeiTImageProcessorPil

SMALL = {"size": {"height": 20, "width": 20}, "crop_size": {"height": 16, "width": 16}}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
NO_RESIZE = {**SMALL, "do_resize": False}
PLAIN = {"do_resize": False, "do_center_crop": False}
GREY = {**SMALL, "image_mean": [0.4], "image_std": [0.3]}


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth shapes and noise, (H, W, C), so that resize filters differ."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 127 + 90 * np.sin(rows[..., None] / (2 + np.arange(channels)) + columns[..., None] / 5)
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, channels))
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def rgb(height: int, width: int) -> Image.Image:
    return Image.fromarray(photo(height, width))


def grey(height: int, width: int) -> Image.Image:
    return Image.fromarray(photo(height, width, 1)[..., 0])


def unit(array: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    return (array / 255).astype(dtype)


def first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


# name -> (images, options of the constructor, options of the call)
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # sizes
    "defaults, larger": (rgb(300, 400), {}, {}),
    "defaults, smaller": (rgb(100, 80), {}, {}),
    "ImageNet's mean": (rgb(280, 270), IMAGENET, {}),
    "larger": (rgb(40, 50), SMALL, {}),
    "odd": (rgb(37, 51), SMALL, {}),
    "smaller than the crop": (rgb(9, 11), SMALL, {}),
    "one pixel": (rgb(1, 1), SMALL, {}),
    "one row": (rgb(1, 30), SMALL, {}),
    "one column": (rgb(30, 1), SMALL, {}),
    "three rows": (rgb(3, 30), SMALL, {}),
    "of the size already": (rgb(20, 20), SMALL, {}),
    "odd size and crop": (rgb(33, 45), {"size": {"height": 21, "width": 27}, "crop_size": 15}, {}),
    "even size, odd crop": (rgb(33, 45), {"size": 20, "crop_size": {"height": 15, "width": 9}}, {}),
    "size not square": (rgb(33, 45), {"size": {"height": 24, "width": 18}, "crop_size": 16}, {}),
    "a list of sizes": ([rgb(40, 50), rgb(9, 70), rgb(20, 20)], SMALL, {}),
    # padding
    "crop larger, even rest": (rgb(10, 12), {**NO_RESIZE}, {}),
    "crop larger, odd rest": (rgb(11, 13), NO_RESIZE, {}),
    "crop larger in height": (rgb(9, 31), NO_RESIZE, {}),
    "crop larger in width": (rgb(31, 9), NO_RESIZE, {}),
    "crop larger by one": (rgb(15, 15), NO_RESIZE, {}),
    "crop larger, odd crop": (rgb(10, 30), {**NO_RESIZE, "crop_size": {"height": 13, "width": 17}}, {}),
    "crop without normalize": (rgb(11, 40), {**NO_RESIZE, "do_normalize": False}, {}),
    # types and channel order
    "uint8 last": (photo(30, 41), SMALL, {}),
    "uint8 first": (first(photo(30, 41)), SMALL, {}),
    "uint8 told last": (photo(30, 41), SMALL, {"input_data_format": "channels_last"}),
    "uint8 told first": (first(photo(30, 41)), SMALL, {"input_data_format": "channels_first"}),
    "three columns told last": (photo(3, 30), SMALL, {"input_data_format": "channels_last"}),
    "float32 in [0, 1]": (unit(photo(30, 41)), {**SMALL, "do_rescale": False}, {}),
    "float64 in [0, 1]": (unit(photo(30, 41), np.float64), {**SMALL, "do_rescale": False}, {}),
    "float32 in [0, 1] first": (first(unit(photo(30, 41))), {**SMALL, "do_rescale": False}, {}),
    "float32 whole": (photo(30, 41).astype(np.float32), SMALL, {}),
    "int64": (photo(30, 41).astype(np.int64), SMALL, {}),
    "int64 as it is": (photo(30, 41).astype(np.int64), NO_RESIZE, {}),
    "float32 as it is": (photo(30, 41).astype(np.float32) * 1.5 - 40, NO_RESIZE, {}),
    "float64 as it is": (unit(photo(30, 41), np.float64), {**NO_RESIZE, "do_rescale": False}, {}),
    "float64 normalized only": (unit(photo(30, 41), np.float64) - 2, {**PLAIN, "do_rescale": False}, {}),
    "float16 as it is": (unit(photo(30, 41), np.float16), {**NO_RESIZE, "do_rescale": False}, {}),
    "a batch of 4 dimensions": (np.stack([photo(30, 41), photo(30, 41, seed=1)]), SMALL, {}),
    "a tensor": (torch.from_numpy(first(photo(30, 41))), SMALL, {}),
    "a list of tensors": ([torch.from_numpy(first(photo(30, 41))).float()], SMALL, {}),
    # one channel
    "PIL L": (grey(30, 41), GREY, {}),
    "PIL L small": (grey(5, 7), GREY, {}),
    "PIL L one row": (grey(1, 7), GREY, {}),
    "array of one channel last": (photo(30, 41, 1), GREY, {}),
    "array of one channel first": (first(photo(30, 41, 1)), GREY, {}),
    "PIL L without normalize": (grey(30, 41), {**SMALL, "do_normalize": False}, {}),
    # filters
    "nearest": (rgb(37, 51), {**SMALL, "resample": 0}, {}),
    "lanczos": (rgb(37, 51), {**SMALL, "resample": 1}, {}),
    "bilinear": (rgb(37, 51), {**SMALL, "resample": 2}, {}),
    "box": (rgb(37, 51), {**SMALL, "resample": 4}, {}),
    "hamming": (rgb(37, 51), {**SMALL, "resample": 5}, {}),
    "bilinear enlarging": (rgb(7, 5), {**SMALL, "resample": Image.Resampling.BILINEAR}, {}),
    # switches
    "no resize": (rgb(37, 51), NO_RESIZE, {}),
    "no crop": (rgb(37, 51), {**SMALL, "do_center_crop": False}, {}),
    "no rescale": (rgb(37, 51), {**SMALL, "do_rescale": False}, {}),
    "no normalize": (rgb(37, 51), {**SMALL, "do_normalize": False}, {}),
    "neither rescale nor normalize": (rgb(37, 51), {**SMALL, "do_rescale": False, "do_normalize": False}, {}),
    "nothing at all": (rgb(37, 51), {**PLAIN, "do_rescale": False, "do_normalize": False}, {}),
    "another factor": (rgb(37, 51), {**SMALL, "rescale_factor": 1 / 127.5}, {}),
    "mean and std of one number": (rgb(37, 51), {**SMALL, "image_mean": 0.3, "image_std": 0.2}, {}),
    # proportions kept
    "shortest edge, wide": (rgb(37, 51), {"size": {"shortest_edge": 24}, "crop_size": 16}, {}),
    "shortest edge, tall": (rgb(51, 37), {"size": {"shortest_edge": 24}, "crop_size": 16}, {}),
    "shortest edge, uncropped": (rgb(37, 51), {"size": {"shortest_edge": 25}, "do_center_crop": False}, {}),
    "shortest edge, square": (rgb(37, 37), {"size": {"shortest_edge": 25}, "do_center_crop": False}, {}),
    "shortest edge, there already": (rgb(24, 51), {"size": {"shortest_edge": 24}, "do_center_crop": False}, {}),
    "shortest and longest edge": (
        rgb(37, 90), {"size": {"shortest_edge": 25, "longest_edge": 40}, "do_center_crop": False}, {},
    ),
    "longest edge not reached": (
        rgb(37, 51), {"size": {"shortest_edge": 25, "longest_edge": 60}, "do_center_crop": False}, {},
    ),
    "longest edge, tall": (
        rgb(97, 31), {"size": {"shortest_edge": 25, "longest_edge": 41}, "do_center_crop": False}, {},
    ),
    # overrides per call
    "override size": (rgb(37, 51), SMALL, {"size": {"height": 30, "width": 31}}),
    "override crop as a number": (rgb(37, 51), SMALL, {"crop_size": 12}),
    "override the filter": (rgb(37, 51), SMALL, {"resample": 0}),
    "override switches": (rgb(37, 51), SMALL, {"do_resize": False, "do_normalize": False}),
    "override mean and std": (rgb(37, 51), SMALL, IMAGENET),
    "override the factor": (rgb(37, 51), SMALL, {"rescale_factor": 1 / 100}),
}  # fmt: skip


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs), f"largest difference {np.abs(ours.astype(float) - theirs).max()}"


@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_those_of_transformers_bit_for_bit(case):
    images, options, call = CASES[case]
    theirs = Oracle(**options)(images, return_tensors="np", **call)["pixel_values"]
    ours = DeiTImageProcessor(**options)(images, return_tensors="np", **call)["pixel_values"]
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("images", [rgb(37, 51), [rgb(37, 51), rgb(20, 30)]], ids=["one", "two"])
def test_without_return_tensors_there_is_a_list_of_arrays_as_in_transformers(images):
    theirs = Oracle(**SMALL)(images)["pixel_values"]
    ours = DeiTImageProcessor(**SMALL)(images)["pixel_values"]
    assert type(ours) is type(theirs) is list
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert isinstance(our, np.ndarray)
        assert_same_bits(our, their)


def test_images_of_different_sizes_come_back_as_a_list_as_in_transformers():
    images = [rgb(37, 51), rgb(20, 30)]
    for our, their in zip(
        DeiTImageProcessor(**PLAIN)(images)["pixel_values"], Oracle(**PLAIN)(images)["pixel_values"], strict=True
    ):
        assert_same_bits(our, their)


def test_tensors_come_back_as_in_transformers():
    theirs = Oracle(**SMALL)([rgb(37, 51), rgb(20, 30)], return_tensors="pt")["pixel_values"]
    ours = DeiTImageProcessor(**SMALL)([rgb(37, 51), rgb(20, 30)], return_tensors="pt")["pixel_values"]
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours, theirs)


def test_rescaling_numbers_in_zero_to_one_warns_and_gives_the_pixels_of_transformers():
    given = unit(photo(30, 41))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Oracle(**SMALL)(given, return_tensors="np")["pixel_values"]
    with pytest.warns(UserWarning, match="rescaled once more"):
        ours = DeiTImageProcessor(**SMALL)(given, return_tensors="np")["pixel_values"]
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize(
    "given",
    [photo(30, 41).astype(np.float32) + 0.5, photo(30, 41).astype(np.int64) + 1, unit(photo(30, 41)) - 0.5],
    ids=["fractions above 1", "above 255", "negative"],
)
def test_arrays_that_transformers_refuses_to_resize_are_refused(given):
    with pytest.raises(ValueError, match="range"):
        Oracle(**SMALL)(given)
    with pytest.raises(ValueError, match=r"\[0, 255\]"):
        DeiTImageProcessor(**SMALL)(given)


@pytest.mark.parametrize("options", [SMALL, IMAGENET, {"size": {"shortest_edge": 30}, "resample": 2}], ids=str)
def test_processors_read_each_others_files(options, tmp_path: Path):
    image = rgb(150, 170)
    ours = DeiTImageProcessor(**options)
    ours.save_pretrained(tmp_path / "ours")
    Oracle(**options).save_pretrained(tmp_path / "theirs")
    expected = Oracle(**options)(image, return_tensors="np")["pixel_values"]
    their_reader = Oracle.from_pretrained(tmp_path / "ours")
    our_reader = DeiTImageProcessor.from_pretrained(tmp_path / "theirs")
    assert our_reader.to_dict() == ours.to_dict()
    assert_same_bits(our_reader(image, return_tensors="np")["pixel_values"], expected)
    assert_same_bits(their_reader(image, return_tensors="np")["pixel_values"], expected)

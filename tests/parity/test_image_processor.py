"""Our pixels against transformers' Pillow processor: equal bit for bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deit
from deit import DeiTImageProcessor
from tests.parity.processor_cases import CASES, IMAGENET, PLAIN, SMALL, mode, photo, rgb, unit

transformers = pytest.importorskip("transformers")
Oracle = transformers.DeiTImageProcessorPil


def test_the_table_has_at_least_100_cases():
    assert len(CASES) >= 100


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs), f"largest difference {np.abs(ours.astype(float) - theirs).max()}"


@contextmanager
def columns_first() -> Iterator[None]:
    """Lets every version of Pillow resize in the order of version 12, which ours keeps: 13 may begin with rows."""
    of_pillow = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        if self.mode in ("L", "RGB") and size[0] != self.width:
            self = of_pillow(self, (size[0], self.height), *arguments, **options)
        return of_pillow(self, size, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        yield


@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_those_of_transformers_bit_for_bit(case):
    images, options, call = CASES[case]
    with columns_first():
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


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        IMAGENET,
        {"size": {"shortest_edge": 30}, "resample": 2},
        {"size": {"max_height": 30, "max_width": 40}, "do_center_crop": False, "do_pad": True, "pad_size": 50},
        {"do_convert_rgb": True, "size": 30, "default_to_square": False, "data_format": "channels_last"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["DeiTImageProcessor", "DeiTImageProcessorPil", "ViTImageProcessor"])
def test_processors_read_each_others_files(name, options, tmp_path: Path):
    image = rgb(150, 170)
    oracle = getattr(transformers, name.removesuffix("Pil") + "Pil")
    ours = getattr(deit, name)(**options)
    ours.save_pretrained(tmp_path / "ours")
    oracle(**options).save_pretrained(tmp_path / "theirs")
    expected = oracle(**options)(image, return_tensors="np")["pixel_values"]
    if options.get("data_format") == "channels_last":  # which transformers 5 ignores
        expected = np.moveaxis(expected, 1, -1)
    their_reader = oracle.from_pretrained(tmp_path / "ours")
    our_reader = getattr(deit, name).from_pretrained(tmp_path / "theirs")
    assert our_reader.to_dict() == ours.to_dict()
    no_crop = {} if "DeiT" in name else {"do_center_crop": False}  # which ours writes and transformers leaves out
    assert their_reader.to_dict() == oracle(**{**no_crop, **options}).to_dict()
    assert_same_bits(our_reader(image, return_tensors="np")["pixel_values"], expected)


@pytest.mark.parametrize("name", ["DeiTImageProcessor", "ViTImageProcessor"])
@pytest.mark.parametrize("suffix", ["", "Fast"])
def test_defaults_are_those_of_transformers(name, suffix):
    theirs = getattr(transformers, name)().to_dict()
    ours = getattr(deit, name + suffix)()
    for option, value in theirs.items():
        if option == "image_processor_type":
            assert ours.to_dict()[option] == value + suffix
        else:
            assert ours.to_dict()[option] == (list(value) if isinstance(value, tuple) else value)
    # ViT has no crop: transformers leaves the switch out, ours says False
    assert set(ours.to_dict()) - set(theirs) == (set() if name.startswith("DeiT") else {"do_center_crop"})


@pytest.mark.parametrize("generation", ["4.20", "4.37", "4.57 Fast", "5"])
def test_files_of_every_generation_give_the_same_pixels(generation, tmp_path: Path):
    common = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, **IMAGENET}
    sizes = {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}
    nulls = (
        "device",
        "disable_grouping",
        "do_convert_rgb",
        "do_pad",
        "input_data_format",
        "pad_size",
        "return_tensors",
    )
    files = {
        "4.20": {**common, "size": 40, "crop_size": 32, "feature_extractor_type": "DeiTFeatureExtractor"},
        "4.37": {**common, **sizes, "do_rescale": True, "rescale_factor": 1 / 255, "processor_class": None},
        "4.57 Fast": {
            **common, **sizes, **dict.fromkeys(nulls), "data_format": "channels_first", "default_to_square": True,
            "do_rescale": True, "rescale_factor": 1 / 255, "image_processor_type": "DeiTImageProcessorFast",
        },
        "5": {**common, **sizes, "do_rescale": True, "rescale_factor": 1 / 255},
    }  # fmt: skip
    values = {"image_processor_type": "DeiTImageProcessor", **files[generation]}
    if "feature_extractor_type" in values:
        del values["image_processor_type"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    ours = deit.DeiTImageProcessor.from_pretrained(tmp_path)
    expected = Oracle(**IMAGENET, **sizes)(rgb(50, 61), return_tensors="np")["pixel_values"]
    assert_same_bits(ours(rgb(50, 61), return_tensors="np")["pixel_values"], expected)
    assert ours == deit.DeiTImageProcessor(**IMAGENET, **sizes)


def test_options_can_be_given_in_the_order_of_transformers_4():
    """do_resize, size, resample, do_center_crop, crop_size, do_rescale, rescale_factor, do_normalize, mean, std, ..."""
    size, crop = {"height": 30, "width": 20}, {"height": 16, "width": 18}
    given = (True, size, 2, True, crop, True, 0.01, True, [0.1] * 3, [0.2] * 3)
    theirs = Oracle(
        size=size, resample=2, crop_size=crop, rescale_factor=0.01, image_mean=[0.1] * 3, image_std=[0.2] * 3
    )(rgb(50, 61), return_tensors="np")["pixel_values"]
    by_call = DeiTImageProcessor().preprocess(rgb(50, 61), *given, "np", "channels_last")["pixel_values"]
    assert_same_bits(np.moveaxis(by_call, -1, 1), theirs)
    assert_same_bits(DeiTImageProcessor(*given)(rgb(50, 61), return_tensors="np")["pixel_values"], theirs)


def test_channels_last_is_honoured_which_transformers_5_silently_ignores():
    theirs = Oracle(**SMALL)(rgb(30, 41), return_tensors="np", data_format="channels_last")["pixel_values"]
    assert theirs.shape == (1, 3, 16, 16)
    ours = DeiTImageProcessor(**SMALL)(rgb(30, 41), return_tensors="np", data_format="channels_last")["pixel_values"]
    assert_same_bits(np.moveaxis(ours, -1, 1), theirs)


def test_a_size_is_a_dict_and_has_attributes_as_in_both_generations():
    theirs, ours = Oracle(**SMALL).size, DeiTImageProcessor(**SMALL).size
    for size in (theirs, ours):
        assert size == {"height": 20, "width": 20}
        assert (size["height"], size.height, size.get("width")) == (20, 20, 20)
        assert "shortest_edge" not in size
        assert size.shortest_edge is size["shortest_edge"] is None
    assert isinstance(ours, dict)


def test_used_options_are_not_returned_as_unused_which_transformers_does(tmp_path: Path):
    DeiTImageProcessor(**SMALL).save_pretrained(tmp_path)
    arguments = {"return_unused_kwargs": True, "do_normalize": False, "colour": 1}
    _, theirs = Oracle.from_pretrained(tmp_path, **arguments)
    assert "do_normalize" in theirs
    processor, unused = DeiTImageProcessor.from_pretrained(tmp_path, **arguments)
    assert unused == {"colour": 1}
    assert not processor.do_normalize


def test_a_crop_size_without_height_is_a_clear_error_which_crashes_in_transformers():
    with pytest.raises(AttributeError):
        Oracle(crop_size={"shortest_edge": 3})(rgb(9, 9))
    with pytest.raises(ValueError, match="crop_size needs 'height' and 'width'"):
        DeiTImageProcessor(crop_size={"shortest_edge": 3})


@pytest.mark.parametrize("name", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_modes_that_transformers_refuses_are_converted_as_on_demand(name):
    with pytest.raises(ValueError, match=r"channels|dimension|range|mean must have"):
        Oracle(**SMALL)(mode(name), return_tensors="np")
    theirs = Oracle(**SMALL, do_convert_rgb=True)(mode(name), return_tensors="np")["pixel_values"]
    assert_same_bits(DeiTImageProcessor(**SMALL)(mode(name), return_tensors="np")["pixel_values"], theirs)

"""The fast processor against transformers' torchvision processor: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deit
from deit import DeiTImageProcessor, DeiTImageProcessorFast, ViTImageProcessor, ViTImageProcessorFast
from deit.core.errors import UserError
from tests.parity.processor_cases import CASES, IMAGENET, PLAIN, SMALL, first, mode, photo, rgb, unit

transformers = pytest.importorskip("transformers")
Oracle = transformers.DeiTImageProcessor

# torchvision has neither filter for tensors: transformers raises NotImplementedError, ours a ValueError. One pixel from
# planes is an internal error of PyTorch. Both are tested below.
REFUSED = {"box", "hamming", "size of one pixel"}


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.is_contiguous()
    assert torch.equal(ours, theirs), f"largest difference {(ours.float() - theirs.float()).abs().max()}"


@pytest.mark.filterwarnings("ignore:Images with values in .0, 1. are rescaled:UserWarning")
@pytest.mark.parametrize("case", [name for name in CASES if name not in REFUSED])
def test_pixels_equal_those_of_transformers(case):
    images, options, call = CASES[case]
    theirs = Oracle(**options)(images, return_tensors="pt", **call)["pixel_values"]
    ours = DeiTImageProcessorFast(**options)(images, return_tensors="pt", **call)["pixel_values"]
    assert_same(ours, theirs)


LIST = [rgb(37, 51), rgb(20, 30), rgb(37, 51), photo(37, 51), mode("YCbCr")]


@pytest.mark.parametrize("grouping", [None, True, False])
def test_grouping_by_size_changes_no_number(grouping):
    theirs = Oracle(**SMALL, disable_grouping=grouping)(LIST, return_tensors="pt")["pixel_values"]
    ours = DeiTImageProcessorFast(**SMALL)(LIST, return_tensors="pt", disable_grouping=grouping).pixel_values
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["DeiTImageProcessor", "ViTImageProcessor"])
def test_the_defaults_give_the_pixels_of_transformers(name):
    theirs = getattr(transformers, name)()(rgb(300, 400), return_tensors="pt")["pixel_values"]
    assert_same(getattr(deit, f"{name}Fast")()(rgb(300, 400), return_tensors="pt").pixel_values, theirs)


def test_without_return_tensors_there_is_a_list_of_tensors_as_in_transformers():
    theirs = Oracle(**PLAIN)(LIST)["pixel_values"]
    ours = DeiTImageProcessorFast(**PLAIN)(LIST)["pixel_values"]
    assert type(ours) is type(theirs) is list
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)


def test_numpy_arrays_are_returned_on_demand():
    theirs = Oracle(**SMALL)(LIST, return_tensors="np")["pixel_values"]
    ours = DeiTImageProcessorFast(**SMALL)(LIST, return_tensors="np")["pixel_values"]
    assert isinstance(ours, np.ndarray)
    assert np.array_equal(ours, theirs)


def test_channels_last_is_honoured_which_transformers_silently_ignores():
    theirs = Oracle(**SMALL)(LIST, return_tensors="pt", data_format="channels_last")["pixel_values"]
    ours = DeiTImageProcessorFast(**SMALL)(LIST, return_tensors="pt", data_format="channels_last")["pixel_values"]
    assert theirs.shape == (5, 3, 16, 16)
    assert torch.equal(ours.movedim(-1, 1), theirs)


def test_one_pixel_from_planes_is_resized_where_transformers_stops_with_an_internal_error():
    planes = torch.from_numpy(first(photo(30, 41)))
    one = {"size": 1, "crop_size": 1}
    ours = DeiTImageProcessorFast(**one)(planes, return_tensors="pt").pixel_values
    assert torch.equal(ours, DeiTImageProcessorFast(**one)(rgb(30, 41), return_tensors="pt").pixel_values)
    assert abs(float(ours[0, 0, 0, 0]) - (planes[0].float().mean() / 127.5 - 1)) < 0.1


@pytest.mark.parametrize("filter_number", [4, 5])
def test_filters_that_torchvision_lacks_are_refused_with_the_way_out(filter_number):
    with pytest.raises(NotImplementedError):
        Oracle(**SMALL, resample=filter_number)(rgb(30, 41))
    with pytest.raises(ValueError, match=r"cannot resize tensors with the filter .*Use DeiTImageProcessor"):
        DeiTImageProcessorFast(**SMALL, resample=filter_number)(rgb(30, 41))


@pytest.mark.parametrize("name", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_modes_that_transformers_refuses_are_converted_as_on_demand(name):
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        Oracle(**SMALL, **IMAGENET)(mode(name), return_tensors="pt")
    theirs = Oracle(**SMALL, **IMAGENET, do_convert_rgb=True)(mode(name), return_tensors="pt")["pixel_values"]
    assert_same(DeiTImageProcessorFast(**SMALL, **IMAGENET)(mode(name), return_tensors="pt").pixel_values, theirs)


@pytest.mark.parametrize("images", [rgb(300, 400), photo(97, 61), rgb(20, 30)], ids=["larger", "tall", "smaller"])
def test_both_processors_agree_within_the_tolerance_of_transformers_own_test(images):
    """transformers compares its two with 1e-1 at most and 5e-3 on average."""
    slow = DeiTImageProcessor(**IMAGENET)(images, return_tensors="np").pixel_values
    fast = DeiTImageProcessorFast(**IMAGENET)(images, return_tensors="np").pixel_values
    difference = np.abs(slow - fast)
    assert difference.max() < 1e-1
    assert difference.mean() < 5e-3


def test_without_a_resize_both_processors_agree_to_rounding():
    options = {**SMALL, **IMAGENET, "do_resize": False}
    slow = DeiTImageProcessor(**options)(rgb(30, 41), return_tensors="np").pixel_values
    fast = DeiTImageProcessorFast(**options)(rgb(30, 41), return_tensors="np").pixel_values
    np.testing.assert_allclose(fast, slow, atol=1e-6)


def test_the_tensor_given_is_left_as_it_was():
    given = torch.from_numpy(np.stack([first(unit(photo(16, 16)))] * 2))
    before = given.clone()
    for options in ({}, {"do_normalize": False}, {"do_normalize": False, "do_rescale": False}):
        result = DeiTImageProcessorFast(**PLAIN, **{"do_rescale": False, **options})(given, return_tensors="pt")
        result.pixel_values.zero_()
        assert torch.equal(given, before)


def test_a_file_of_one_processor_opens_with_the_other(tmp_path):
    for writer, reader in (
        (DeiTImageProcessor, DeiTImageProcessorFast),
        (DeiTImageProcessorFast, DeiTImageProcessor),
        (ViTImageProcessor, ViTImageProcessorFast),
    ):
        writer(**SMALL, **IMAGENET, resample=1, do_pad=False).save_pretrained(tmp_path)
        opened = reader.from_pretrained(tmp_path)
        assert opened == reader(**SMALL, **IMAGENET, resample=1, do_pad=False)


def test_paths_bytes_and_images_give_the_same_pixels(tmp_path):
    rgb(30, 41).save(tmp_path / "a.png")
    processor = DeiTImageProcessorFast(**SMALL)
    expected = processor(rgb(30, 41), return_tensors="pt").pixel_values
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        assert torch.equal(processor(given, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.full((3, 20, 20), torch.nan), {}, "NaN or infinite"),
        (np.full((3, 20, 20), np.inf), {}, "NaN or infinite"),
        (rgb(30, 41), {"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers and the image has 3 channels"),
        (torch.zeros(20), {}, "An image needs 3 dimensions"),
        (torch.zeros(2, 20, 20), {}, "Cannot tell the channels"),
        ([], {}, "No images were given"),
        (torch.full((4, 20, 20), 2.0), {}, "Transparency needs values in"),
        (rgb(30, 41), {"do_pad": True, "pad_size": 3}, r"pad_size \(3, 3\) is smaller than an image of \(16, 16\)"),
        ([rgb(30, 41), rgb(9, 9)], {**PLAIN, "return_tensors": "pt"}, "different sizes cannot be stacked"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        DeiTImageProcessorFast(**SMALL)(images, **options)


def test_a_torchvision_without_lanczos_is_named(monkeypatch):
    def without(*_, **__):
        raise NotImplementedError("Input Error: Only 3D, 4D and 5D input Tensors supported (got lanczos)")

    monkeypatch.setattr("deit.models.fast_image_processor.tv.resize", without)
    with pytest.raises(UserError, match=r"cannot resize tensors with the filter Lanczos\. Install a newer one"):
        DeiTImageProcessorFast(**SMALL, resample=1)(LIST)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_on_a_gpu_pixels_agree_with_the_cpu_to_one_level(resample):
    processor = DeiTImageProcessorFast(**SMALL, resample=resample)
    try:
        here = processor(LIST, return_tensors="pt").pixel_values
    except UserError as error:
        pytest.skip(str(error))
    there = processor(LIST, return_tensors="pt", device="cuda").pixel_values
    assert there.device.type == "cuda"
    assert (there.cpu() - here).abs().max() <= 2 / 127.5 + 1e-6

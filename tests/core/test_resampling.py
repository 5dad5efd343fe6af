"""A part of a resized image has the pixels that Pillow gives, where both can be made."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from deit.core.images.reading import ImageError
from deit.core.processing import operations as pixels
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.processing.options import size_dict
from deit.core.processing.resampling import resized_part


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_any_part_of_an_enlarged_image_is_pillows(resample, seed):
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 30, 2)
    rows, columns = height + random.integers(0, 300), width + random.integers(0, 300)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = np.moveaxis(np.asarray(Image.fromarray(image).resize((columns, rows), resample)), -1, 0)
    top, left = random.integers(0, rows), random.integers(0, columns)
    part = (
        slice(int(top), int(random.integers(top, rows)) + 1),
        slice(int(left), int(random.integers(left, columns)) + 1),
    )
    found = resized_part(np.moveaxis(image, -1, 0), (int(rows), int(columns)), part, resample)
    assert np.array_equal(found, whole[:, part[0], part[1]])


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 900), (2, 7)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_narrow_image_gives_the_same_pixels_whole_or_in_part(size, mode, monkeypatch):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    processor = DeiTImageProcessor(size={"shortest_edge": 40}, crop_size=24)
    whole = processor(image, return_tensors="np").pixel_values
    monkeypatch.setattr(pixels, "_LARGE", 24 * 24)
    assert np.array_equal(processor(image, return_tensors="np").pixel_values, whole)
    monkeypatch.setattr(pixels, "MOST_PIXELS", 24 * 24)
    assert np.array_equal(processor(image, return_tensors="np").pixel_values, whole)
    array = np.asarray(image.convert("RGB"))
    assert np.array_equal(processor(array, input_data_format="channels_last", return_tensors="np").pixel_values, whole)


def test_one_pixel_by_twenty_thousand_is_prepared_without_its_whole():
    processor = DeiTImageProcessor(size={"shortest_edge": 256}, crop_size=224)
    image = Image.linear_gradient("L").resize((1, 20_000))
    found = processor(image, return_tensors="np").pixel_values
    assert found.shape == (1, 3, 224, 224)
    with pytest.raises(ImageError, match="1 x 20000 pixels would be resized to 256 x 5120000, more than"):
        processor(image, do_center_crop=False)
    with pytest.raises(ValueError, match="size may be at most 16384 on a side and 16777216 pixels"):
        size_dict(40_000, "size")


@pytest.mark.parametrize("turned", [False, True], ids=["tall", "wide"])
def test_a_million_rows_are_prepared_from_the_few_that_the_model_sees(turned):
    processor = DeiTImageProcessor(size={"shortest_edge": 224}, crop_size=224)
    rows = np.random.default_rng(0).integers(0, 256, (1_000_001, 1), dtype=np.uint8)
    images = [Image.fromarray(each.T if turned else each) for each in (rows, rows[499_950:500_051])]
    tracemalloc.start()
    whole, near = (processor(image, return_tensors="np").pixel_values for image in images)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(whole, near)
    assert most < 50e6  # a file of 2 KB took 1.4 GB, and half a minute

"""Large JPEG files decoded at a reduced size: when, with what geometry, and how far from the whole image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from deit.core.images.reading import ImageError, load_image, load_reduced
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.processing.reduced_reading import ReducedReader, wants_exact_decoding
from deit.models.fast_image_processor import DeiTImageProcessorFast

SMALL = {"do_rescale": False, "do_normalize": False}


def photo(width: int = 1203, height: int = 901, mode: str = "RGB") -> Image.Image:
    """Waves and a gradient: no two corners are alike, and no detail is finer than a few pixels."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    red, green = 127 + 100 * np.sin(x / 17 + y / 29), 255 * x / width
    blue = 255 * y / height
    image = Image.fromarray(np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def jpeg(image: Image.Image, orientation: int = 0, **options) -> bytes:
    file = io.BytesIO()
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def levels(processor, image) -> np.ndarray:
    return np.asarray(processor(image, return_tensors="np").pixel_values, np.float32)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize(
    "size", [{"height": 40, "width": 48}, {"shortest_edge": 41}, {"max_height": 50, "max_width": 50}]
)
def test_pixels_are_near_those_of_the_whole_image_in_every_orientation(orientation, size):
    processor = DeiTImageProcessor(size=size, crop_size=32, **SMALL)
    data = jpeg(photo(), orientation)
    reader = ReducedReader(processor)
    read = reader(data)
    whole = load_image(data)
    assert reader.taken() == 1
    expected = processor(whole, do_center_crop=False, return_tensors="np").pixel_values.shape[2:]
    assert (read.height, read.width) == expected, "the geometry is that of the whole image, rounding included"
    difference = np.abs(levels(processor, read) - levels(processor, whole))
    assert difference.mean() < 1.0
    assert difference.max() <= 6


@pytest.mark.parametrize(
    ("options", "mode"),
    [({"progressive": True}, "RGB"), ({"subsampling": 0}, "RGB"), ({"subsampling": 2}, "RGB"), ({}, "L"), ({}, "CMYK")],
    ids=["progressive", "4:4:4", "4:2:0", "gray", "CMYK"],
)
def test_every_kind_of_jpeg_is_reduced_alike(options, mode):
    processor = DeiTImageProcessor(size=40, crop_size=32, **SMALL)
    data = jpeg(photo(mode=mode), **options)
    reader = ReducedReader(processor)
    difference = np.abs(levels(processor, reader(data)) - levels(processor, load_image(data)))
    assert reader.taken() == 1
    assert difference.mean() < 1.0


@pytest.mark.parametrize(
    ("width", "height", "divisor"),
    [(1280, 1280, 8), (640, 640, 8), (639, 640, 4), (320, 900, 4), (160, 160, 2), (159, 1000, 1), (100, 100, 1)],
)
def test_the_reduced_image_has_at_least_twice_the_size_of_the_resize(width, height, divisor):
    data = jpeg(photo(width, height))
    read, used = load_reduced(data, lambda height, width: (40, 40), Image.Resampling.BICUBIC)
    assert used == divisor
    assert read.size == ((40, 40) if divisor > 1 else (width, height))


def test_small_photos_and_other_formats_are_read_whole_to_the_bit(tmp_path):
    processor = DeiTImageProcessor(size=256, crop_size=224)
    reader = ReducedReader(processor)
    photo().save(tmp_path / "large.png")
    photo(500, 375).save(tmp_path / "small.jpg")
    for name in ("large.png", "small.jpg"):
        assert np.array_equal(np.asarray(reader(tmp_path / name)), np.asarray(load_image(tmp_path / name)))
    array = np.zeros((2000, 2000, 3), np.uint8)
    assert reader(array) is array
    assert reader(photo()).size == (1203, 901), "an image that is decoded already"
    assert reader.taken() == 0


@pytest.mark.parametrize(
    "options", [{"do_resize": False}, {"resample": Image.Resampling.NEAREST}], ids=["no resize", "nearest"]
)
def test_settings_that_need_every_pixel_get_them(options):
    reader = ReducedReader(DeiTImageProcessor(size=40, crop_size=32, **options))
    assert reader(jpeg(photo())).size == (1203, 901)


def test_a_replaced_step_gets_whole_images():
    class Own(DeiTImageProcessor):
        def resize(self, *args, **options):
            return super().resize(*args, **options)

    assert ReducedReader(Own(size=40))(jpeg(photo())).size == (1203, 901)


def test_the_processor_on_tensors_takes_reduced_images_too():
    processor = DeiTImageProcessorFast(size=40, crop_size=32, **SMALL)
    data = jpeg(photo())
    difference = np.abs(levels(processor, ReducedReader(processor)(data)) - levels(processor, load_image(data)))
    assert difference.mean() < 1.0


@pytest.mark.parametrize(("value", "exact"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_turns_reducing_off(monkeypatch, value, exact):
    monkeypatch.delenv("DEIT_EXACT_DECODING", raising=False)
    if value is not None:
        monkeypatch.setenv("DEIT_EXACT_DECODING", value)
    assert wants_exact_decoding() is exact
    assert ReducedReader(DeiTImageProcessor(size=40), exact=True)(jpeg(photo())).size == (1203, 901)


def test_a_truncated_large_photo_is_refused_and_not_filled_with_grey():
    data = jpeg(photo())
    with pytest.raises(ImageError, match="truncated"):
        ReducedReader(DeiTImageProcessor(size=40))(data[: len(data) // 2])

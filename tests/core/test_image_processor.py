"""Reading images of every kind, and the processor's options, errors and files."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.core.image_processor import (
    BatchFeature,
    DeiTImageProcessor,
    ImageError,
    check_image,
    evaluation_processor,
    load_image,
    size_dict,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def rows_of(image: Image.Image) -> list[list[Any]]:
    return np.asarray(image).tolist()


def noise(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- load_image ---------------------------------------------------------------------------------------


def test_a_colour_image_is_read_from_a_path_its_text_its_bytes_and_an_image(tmp_path):
    file = tmp_path / "image.png"
    noise().save(file)
    for source in (file, str(file), file.read_bytes(), noise()):
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(noise()))


def test_grey_is_repeated_in_every_channel():
    grey = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    assert rows_of(load_image(encoded(grey))) == [[[0] * 3, [100] * 3, [255] * 3]]
    assert rows_of(load_image(encoded(grey), mode="L")) == [[0, 100, 255]]


def test_black_and_white_becomes_0_and_255():
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert rows_of(load_image(encoded(image))) == [[[0] * 3, [255] * 3]]


def test_transparent_grey_is_laid_on_white():
    image = Image.new("LA", (3, 1))
    for column, value in enumerate([(10, 255), (10, 0), (0, 51)]):
        image.putpixel((column, 0), value)
    assert rows_of(load_image(encoded(image), mode="L")) == [[10, 255, 204]]
    assert rows_of(load_image(encoded(image))) == [[[10] * 3, [255] * 3, [204] * 3]]


def test_transparent_colours_are_laid_on_white():
    image = Image.new("RGBA", (3, 1))
    for column, alpha in enumerate((255, 0, 51)):
        image.putpixel((column, 0), (*RED, alpha))
    assert rows_of(load_image(encoded(image))) == [[[255, 0, 0], [255, 255, 255], [255, 204, 204]]]


@pytest.fixture
def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for column in range(3):
        image.putpixel((column, 0), column)
    return image


def test_a_palette_gives_its_colours(palette_image):
    assert rows_of(load_image(encoded(palette_image))) == [[list(RED), list(GREEN), list(BLUE)]]


def test_the_transparent_colour_of_a_palette_is_laid_on_white(palette_image):
    data = encoded(palette_image, transparency=1)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert rows_of(load_image(data)) == [[list(RED), list(WHITE), list(BLUE)]]


def test_the_transparent_colour_of_an_rgb_image_is_laid_on_white():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    data = encoded(image, transparency=RED)
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert rows_of(load_image(data)) == [[list(WHITE), list(BLUE)]]


def test_the_colours_of_print_become_those_of_screens():
    image = Image.new("CMYK", (3, 1))
    for column, ink in enumerate([(0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 255)]):
        image.putpixel((column, 0), ink)
    assert rows_of(load_image(encoded(image, "TIFF"))) == [[list(RED), list(GREEN), [0, 0, 0]]]
    jpeg = np.asarray(load_image(encoded(image.resize((48, 16), 0), "JPEG", quality=100, subsampling=0)))
    np.testing.assert_allclose(jpeg[8, [8, 24, 40]], [RED, GREEN, (0, 0, 0)], atol=6)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_to_8(file_format):
    image = Image.fromarray(np.array([[0, 257, 25_700, 25_828, 65_535]], np.uint16))
    data = encoded(image, file_format)
    assert Image.open(io.BytesIO(data)).mode.startswith("I;16")
    assert rows_of(load_image(data, mode="L")) == [[0, 1, 100, 100, 255]]
    assert rows_of(load_image(data)) == [[[0] * 3, [1] * 3, [100] * 3, [100] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [["red", "green"], ["blue", "white"], ["white", "white"]]),
        (3, [["white", "white"], ["white", "blue"], ["green", "red"]]),
        (6, [["white", "blue", "red"], ["white", "white", "green"]]),
        (8, [["green", "white", "white"], ["red", "blue", "white"]]),
    ],
)
def test_an_image_is_turned_as_its_exif_tag_says(orientation, expected):
    colours = {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}
    image = Image.new("RGB", (2, 3), WHITE)
    image.putpixel((0, 0), RED)
    image.putpixel((1, 0), GREEN)
    image.putpixel((0, 1), BLUE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = load_image(encoded(image, exif=exif))
    assert rows_of(turned) == [[list(colours[name]) for name in row] for row in expected]


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (BLUE, RED, GREEN)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert rows_of(load_image(data)) == [[list(BLUE)] * 4] * 4


def test_of_a_photo_of_two_lenses_the_first_is_read():
    """Phones write them with the suffix of JPEG."""
    data = encoded(Image.new("RGB", (8, 8), BLUE), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), RED)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_allclose(np.asarray(load_image(data)), np.broadcast_to(BLUE, (8, 8, 3)), atol=3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path, file_format, share):
    data = encoded(noise(), file_format)
    file = tmp_path / f"image.{file_format.lower()}"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=f"image.{file_format.lower()} .*(truncated|is not an image)"):
        load_image(file)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_what_is_not_an_image_is_refused(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png (is not an image|cannot be read)"):
        load_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="the given bytes"):
        load_image(data)


@pytest.mark.parametrize("file_format", ["TGA", "PCX", "ICO", "EPS", "SGI"])
def test_rare_formats_are_refused_although_pillow_reads_them(file_format):
    with pytest.raises(ImageError, match=r"is not an image .known: JPEG, PNG"):
        load_image(encoded(Image.new("RGB", (32, 32)), file_format))


@pytest.mark.parametrize("limit", [20, 40], ids=["error", "warning"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch, limit):
    """Pillow raises from twice the limit on, and only warns below."""
    data = encoded(Image.new("RGB", (8, 8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="more pixels than are safe to decode"):
        load_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    assert load_image(data).size == (8, 8)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_checking_an_image_finds_out_whether_it_is_whole(tmp_path, file_format):
    data = encoded(noise(), file_format)
    (tmp_path / "whole").write_bytes(data)
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    check_image(tmp_path / "whole")
    with pytest.raises(ImageError, match=r"half cannot be read as an image .*truncated"):
        check_image(tmp_path / "half")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check_image(tmp_path / "nowhere")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path)


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (224, {"height": 224, "width": 224}),
        ((20, 30), {"height": 20, "width": 30}),
        ([20, 30], {"height": 20, "width": 30}),
        ({"width": 30, "height": 20}, {"height": 20, "width": 30}),
        ({"shortest_edge": 7}, {"shortest_edge": 7}),
        ({"shortest_edge": 7, "longest_edge": 9}, {"shortest_edge": 7, "longest_edge": 9}),
        ({"height": 20, "width": 30, "shortest_edge": None}, {"height": 20, "width": 30}),
    ],
    ids=str,
)
def test_sizes_of_every_form_are_understood(size, expected):
    assert size_dict(size, "size") == expected


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 20}, "crop_size must have exactly the keys of one of"),
        ({"longest_edge": 20}, "must have exactly the keys of one of"),
        ({"height": 20, "width": 20, "shortest_edge": 3}, "must have exactly the keys of one of"),
        ({}, "must have exactly the keys of one of"),
        ({"height": 0, "width": 20}, "crop_size must hold whole numbers of at least 1"),
        ({"height": 2.5, "width": 20}, "whole numbers"),
        (0, "whole numbers of at least 1"),
        ((1, 2, 3), "crop_size must be a number, a pair or a dict. Received: \\(1, 2, 3\\)"),
        ("224", "must be a number, a pair or a dict"),
        (True, "must be a number, a pair or a dict"),
    ],
    ids=str,
)
def test_sizes_that_mean_nothing_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        size_dict(size, "crop_size")


# --- the processor ------------------------------------------------------------------------------------


@pytest.fixture
def processor() -> DeiTImageProcessor:
    return DeiTImageProcessor(size=20, crop_size=16)


def test_a_plain_colour_gives_the_numbers_worked_out_by_hand():
    processor = DeiTImageProcessor(size=4, crop_size=2, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.2, 0.1])
    pixels = processor(Image.new("RGB", (9, 5), (255, 51, 0)), return_tensors="np").pixel_values
    expected = np.array([(1.0 - 0.5) / 0.5, (0.2 - 0.4) / 0.2, (0.0 - 0.3) / 0.1]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (1, 3, 2, 2)), atol=1e-6)


def test_padding_is_black_before_normalizing():
    processor = DeiTImageProcessor(do_resize=False, crop_size=3)
    pixels = processor(Image.new("RGB", (1, 1), WHITE), return_tensors="np").pixel_values
    assert pixels[0, 0].tolist() == [[-1, -1, -1], [-1, 1, -1], [-1, -1, -1]]


def test_channels_can_come_last(processor):
    first = processor(noise(), return_tensors="np").pixel_values
    last = processor(noise(), return_tensors="np", data_format="channels_last").pixel_values
    assert np.array_equal(np.moveaxis(first, 1, -1), last)


def test_lists_may_be_nested(processor):
    flat = processor([noise(), noise(20, 20), noise(9, 9)], return_tensors="np").pixel_values
    nested = processor([[noise()], [noise(20, 20), noise(9, 9)]], return_tensors="np").pixel_values
    assert np.array_equal(flat, nested)


def test_an_override_of_none_keeps_the_setting(processor):
    """transformers 5 refuses it for the mean and the size; before, it kept the setting as here."""
    assert np.array_equal(
        processor(noise(), image_mean=None, size=None, return_tensors="np").pixel_values,
        processor(noise(), return_tensors="np").pixel_values,
    )


def test_an_override_leaves_the_processor_as_it_was(processor):
    before = processor.to_dict()
    processor(noise(), size=30, do_normalize=False)
    assert processor.to_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "jax"}, "return_tensors must be None, 'np' or 'pt'. Received: 'jax'"),
        ({"data_format": "channels_middle"}, "data_format must be 'channels_first' or 'channels_last'"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size needs 'height' and 'width'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers and the image has 3 channels"),
        ({"image_std": [1.0] * 4}, "image_std has 4 numbers and the image has 3 channels"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_used_is_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(noise(), **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "No images were given"),
        (np.zeros((20, 20), np.uint8), "An image needs 3 dimensions"),
        (np.zeros((20, 20, 2), np.uint8), "Cannot tell the channels of an image of shape"),
        ("image.png", "Images must be PIL images, numpy arrays or tensors. Received: str"),
        (np.full((20, 20, 3), 300), r"Whole numbers must lie in \[0, 255\]. Received: 300 to 300"),
        (np.full((20, 20, 3), 1.5), "cannot be resized"),
        (Image.new("L", (20, 20)), "image_mean has 3 numbers and the image has 1 channels"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_images_that_cannot_be_used_are_refused(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images)


def test_images_of_different_sizes_cannot_be_stacked(processor):
    with pytest.raises(ValueError, match="Images of different sizes cannot be stacked"):
        processor([noise(9, 9), noise()], do_resize=False, do_center_crop=False, return_tensors="np")


@pytest.mark.parametrize("call", [True, False])
def test_an_unknown_option_is_refused(processor, call):
    with pytest.raises(TypeError, match="Unknown option colour"):
        processor(noise(), colour=1) if call else DeiTImageProcessor.from_dict({}, colour=1)


def test_a_setting_that_is_switched_on_must_have_a_value(processor):
    processor.rescale_factor = None
    with pytest.raises(ValueError, match="rescale_factor is None although do_rescale is on"):
        processor(noise())
    assert processor(noise(), do_rescale=False, return_tensors="np").pixel_values.max() > 100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"shortest_edge": 30, "longest_edge": 50}, "resample": 2, "do_center_crop": False},
        {"image_mean": (0.1, 0.2, 0.3), "image_std": 0.5, "rescale_factor": 0.1, "crop_size": (3, 4)},
        {"do_resize": False, "do_rescale": False, "do_normalize": False},
    ],
    ids=str,
)
def test_settings_survive_saving_and_loading(options, tmp_path):
    processor = DeiTImageProcessor(**options)
    processor.save_pretrained(tmp_path / "new")
    for path in (tmp_path / "new", tmp_path / "new" / "preprocessor_config.json"):
        assert DeiTImageProcessor.from_pretrained(path).to_dict() == processor.to_dict()
    values = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert values == processor.to_dict()
    assert values["image_processor_type"] == "DeiTImageProcessor"


def test_files_of_older_and_newer_writers_are_read():
    old = {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "resample": 3}
    assert DeiTImageProcessor.from_dict(old).to_dict() == DeiTImageProcessor().to_dict()
    new = {"image_processor_type": "DeiTImageProcessorFast", "do_pad": None, "size": None, "device": None}
    assert DeiTImageProcessor.from_dict(new).to_dict() == DeiTImageProcessor().to_dict()


def test_overrides_at_loading_win(tmp_path):
    DeiTImageProcessor(resample=2).save_pretrained(tmp_path)
    assert DeiTImageProcessor.from_pretrained(tmp_path, resample=0, size=9).resample == 0


def test_missing_or_broken_settings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No preprocessor_config\.json at"):
        DeiTImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        DeiTImageProcessor.from_pretrained(tmp_path)


def test_the_output_is_a_dict_with_attributes():
    output = BatchFeature({"pixel_values": np.ones(2)})
    assert output["pixel_values"] is output.pixel_values
    assert dict(**output).keys() == {"pixel_values"}
    with pytest.raises(AttributeError, match="labels"):
        _ = output.labels


def test_the_output_moves_its_tensors():
    torch = pytest.importorskip("torch")
    output = BatchFeature({"pixel_values": torch.ones(2), "name": "a"}).to(torch.float64)
    assert output.pixel_values.dtype == torch.float64
    assert output.name == "a"


def test_the_papers_evaluation_resizes_the_shorter_side_and_crops_the_center():
    processor = evaluation_processor((224, 224), crop_ratio=0.875, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 256}, {"height": 224, "width": 224})
    assert processor.do_center_crop
    assert (processor.channel_mean, processor.channel_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert processor.output_size == (224, 224)


def test_a_crop_ratio_of_one_squashes_the_whole_image():
    processor = evaluation_processor((32, 48), crop_ratio=1.0, mean=[0.5] * 3, std=[0.5] * 3)
    assert processor.size == {"height": 32, "width": 48}
    assert not processor.do_center_crop
    assert processor.output_size == (32, 48)
    assert processor(noise(), return_tensors="np").pixel_values.shape == (1, 3, 32, 48)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.1])
def test_a_crop_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"crop_ratio must lie in \(0, 1\]"):
        evaluation_processor((32, 32), crop_ratio=ratio, mean=[0.5] * 3, std=[0.5] * 3)


def test_the_size_of_the_result_is_open_when_proportions_are_kept_without_a_crop():
    with pytest.raises(ValueError, match="leaves the size of the result open"):
        _ = DeiTImageProcessor(size={"shortest_edge": 9}, do_center_crop=False).output_size
    assert DeiTImageProcessor(image_mean=0.3).channel_mean == (0.3, 0.3, 0.3)

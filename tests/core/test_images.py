"""Reading images of every kind: the one conversion, and what is refused."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.core.images.reading import ImageError, check_image, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def rows_of(image: Image.Image) -> list[list[Any]]:
    return np.asarray(image).tolist()


def noise(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


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


def test_base64_text_is_read_bare_and_with_its_header():
    data = encoded(noise())
    text = base64.b64encode(data).decode()
    broken_in_lines = base64.encodebytes(data).decode()
    for given in (text, broken_in_lines, f"data:image/png;base64,{text}"):
        assert rows_of(load_image(given)) == rows_of(noise())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:image/png;base64,%%%", "neither a path nor base64"),
        ("data:image/svg+xml,<svg/>", "is not base64"),
        ("data:image/png;base64,bm8gaW1hZ2U=", "the given base64 text is not an image"),
        ("A" * 5001, "neither a path nor base64"),
        ("A" * 8000, "cannot be read|is not an image"),
    ],
)
def test_base64_text_of_something_else_is_refused(text, message):
    with pytest.raises(ImageError, match=message):
        load_image(text)


def test_a_missing_path_that_could_be_base64_is_still_a_missing_path():
    with pytest.raises(FileNotFoundError, match="abcd"):
        load_image("photos/abcd")


@pytest.mark.parametrize(
    "address", ["http://example.org/a.png", "https://127.0.0.1/a.png", "HTTPS://example.org", "file:///etc/passwd"]
)
def test_addresses_are_refused_since_they_could_name_any_computer(address):
    with pytest.raises(
        ImageError, match=r"is a web address. Images are not downloaded: download the file and pass its path"
    ):
        load_image(address)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_of_floats_that_are_no_numbers_is_refused(value):
    with pytest.raises(ImageError, match="NaN or infinite"):
        load_image(Image.fromarray(np.full((3, 3), value, np.float32)))


def test_a_bomb_of_a_real_size_is_refused_before_it_takes_memory():
    """A PNG of 40 kB that says it has 30,000 x 30,000 pixels."""
    lines = zlib.compress(b"\0" * 40_000_000, 9)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    assert len(data) < 50_000
    tracemalloc.start()
    with pytest.raises(ImageError, match="more pixels than are safe to decode"):
        load_image(data)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_without_a_mode_grey_stays_grey_and_colour_becomes_rgb():
    for mode, expected in (("L", "L"), ("LA", "L"), ("1", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("RGBA", "RGB")):
        assert load_image(noise().convert(mode), mode=None).mode == expected

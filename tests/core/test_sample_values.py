"""Images of more than 8 bits: one rule for each kind, worked out here by hand, or a refusal that names the setting."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.core.errors import ValueRangeError
from deit.core.images.reading import ImageError, check_image, load_image
from deit.core.images.sample_values import checked_range
from deit.core.processing.image_processor import DeiTImageProcessor

SHORT, LONG = 3, 4


def tiff(
    values: np.ndarray, *, bits: int, kind: int, photometric: int = 1, extra: dict[int, Any] | None = None
) -> bytes:
    """A TIFF written here, of little-endian samples: `kind` 1 is unsigned, 2 signed, 3 floating-point."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.tobytes()
    tags: dict[int, tuple[int, int, int]] = {
        256: (LONG, 1, width), 257: (LONG, 1, height), 258: (SHORT, 1, bits), 259: (SHORT, 1, 1),
        262: (SHORT, 1, photometric), 273: (LONG, 1, 8), 277: (SHORT, 1, channels), 278: (LONG, 1, height),
        279: (LONG, 1, len(data)), 339: (SHORT, 1, kind), **(extra or {}),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))  # a small short is a long as well
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def grey(data: Any, **options: Any) -> list[int]:
    return np.asarray(load_image(data, mode="L", **options)).ravel().tolist()


def by_hand(values: np.ndarray, low: float, high: float) -> list[int]:
    scaled = (values.astype(np.float64) - low) / (high - low) * 255
    return np.clip(np.floor(scaled + 0.5), 0, 255).astype(int).ravel().tolist()


UNIT = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
CASES = {  # values, bits, kind of sample, the range that means black to white
    "floats from 0 to 1": (UNIT, 32, 3, (0, 1)),
    "floats from 0 to 255": (UNIT * 255, 32, 3, (0, 255)),
    "floats with negative ones": (UNIT - 0.5, 32, 3, (-0.5, 0.5)),
    "12 bits in 16": (np.array([[0, 1000, 4095]], np.uint16), 16, 1, (0, 4095)),
    "14 bits in 16": (np.array([[0, 16383]], np.uint16), 16, 1, (0, 16383)),
    "a CT with a sign": (np.array([[-1024, 0, 40, 3000]], np.int16), 16, 2, (-1000, 400)),
    "32 bits, 0 to 255": (np.array([[0, 100, 255]], np.int32), 32, 2, (0, 255)),
    "32 bits without a sign": (np.array([[0, 2**31, 2**32 - 1]], np.uint32), 32, 1, (0, 2**32 - 1)),
    "8 bits with a sign": (np.array([[-128, -1, 127]], np.int8), 8, 2, (-128, 127)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_that_nothing_explains_are_refused_until_their_range_is_set(name, tmp_path):
    values, bits, kind, value_range = CASES[name]
    data = tiff(values, bits=bits, kind=kind)
    (tmp_path / "a.tif").write_bytes(data)
    for read in (load_image, check_image):
        with pytest.raises(ValueRangeError, match=r"a\.tif cannot be read: the image is .* are unknown.*value_range"):
            read(tmp_path / "a.tif")
    check_image(data, value_range=value_range)
    assert grey(data, value_range=value_range) == by_hand(values, *value_range)
    opened = Image.open(io.BytesIO(data))
    assert grey(opened, value_range=value_range) == by_hand(values, *value_range)
    processor = DeiTImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False, value_range=value_range)
    pixels = processor(data, return_tensors="np").pixel_values[0, 0]
    np.testing.assert_allclose(pixels.ravel(), np.array(by_hand(values, *value_range)) / 255, atol=1e-6)


def test_two_images_keep_their_relation():
    dark = tiff(np.array([[0.0, 0.1]], np.float32), bits=32, kind=3)
    bright = tiff(np.array([[0.8, 1.0]], np.float32), bits=32, kind=3)
    assert grey(dark, value_range=(0, 1)) == [0, 26]
    assert grey(bright, value_range=(0, 1)) == [204, 255]


def test_ranges_that_the_type_or_the_file_says_need_no_setting():
    full = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert grey(tiff(full, bits=16, kind=1)) == by_hand(full, 0, 65535)
    assert grey(tiff(np.zeros((2, 2), np.uint16), bits=16, kind=1)) == [0] * 4
    packed = bytes([0x00, 0x0F, 0xFF])  # two values of 12 bits: 0 and 4095
    twelve = tiff(np.frombuffer(packed, np.uint8)[None], bits=12, kind=1, extra={256: (LONG, 1, 2)})
    assert grey(twelve) == [0, 255]
    for largest, values in ((4095, [0, 1000, 4095]), (1023, [0, 500, 1023]), (100, [0, 50, 100])):
        raw = b"".join(struct.pack(">H" if largest > 255 else "B", v) for v in values)
        assert grey(b"P5\n3 1\n%d\n" % largest + raw) == by_hand(np.array(values), 0, largest)
    # a set range holds for files that say their own as well, in the file's units
    raw = struct.pack(">HHH", 0, 1000, 4095)
    assert grey(b"P5\n3 1\n4095\n" + raw, value_range=(0, 1000)) == [0, 255, 255]


def test_where_low_is_white_it_becomes_white():
    full = np.array([[0, 32768, 65535]], np.uint16)
    assert grey(tiff(full, bits=16, kind=1, photometric=0)) == [255 - v for v in by_hand(full, 0, 65535)]
    eight = np.array([[0, 100, 255]], np.uint8)
    assert grey(tiff(eight, bits=8, kind=1, photometric=0)) == [255, 155, 0]
    assert grey(tiff(UNIT, bits=32, kind=3, photometric=0), value_range=(0, 1)) == [255, 191, 127, 0]


def test_the_transparent_value_of_16_bit_grey_is_white():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 20000, 40000]], np.uint16)).save(file, "PNG", transparency=20000)
    assert grey(file.getvalue()) == [0, 255, 156]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_16_bits(values: list[int]) -> bytes:
    header = struct.pack(">IIBBBBB", len(values) // 3, 1, 16, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + b"".join(struct.pack(">H", v) for v in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_colours_of_16_bits_keep_their_high_bytes_and_are_refused_where_those_are_dark():
    bright = png_of_16_bits([65535, 0, 257, 256 * 100, 256 * 200, 0])
    assert np.asarray(load_image(bright)).ravel().tolist() == [255, 0, 1, 100, 200, 0]
    dark = png_of_16_bits([4095, 0, 1000, 100, 200, 0])  # 12 bits in 16
    with pytest.raises(ValueRangeError, match=r"16-bit colors\. Only their high bytes are read, and these reach 15 of"):
        load_image(dark)
    assert np.asarray(load_image(dark, value_range=(0, 65535))).ravel().tolist() == [15, 0, 3, 0, 0, 0]
    with pytest.raises(ValueRangeError, match="cannot be applied"):
        load_image(dark, value_range=(0, 4095))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_span_black_to_white(bits):
    top = 2**bits - 1
    packed = bytes([top << (8 - bits)])  # white, then black
    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    assert grey(b"\x89PNG\r\n\x1a\n" + data) == [255, 0]


def test_an_image_with_nan_is_refused_by_the_check_as_by_the_reading():
    data = tiff(np.array([[0.0, np.nan]], np.float32), bits=32, kind=3)
    for read in (load_image, check_image):
        with pytest.raises(ImageError, match="NaN or infinite"):
            read(data, value_range=(0, 1))


def test_eight_bits_are_left_as_they_are_whatever_range_is_set():
    image = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert grey(image, value_range=(0, 4095)) == list(range(256))


@pytest.mark.parametrize("value", [5, (1, 0), (0, 0), (0, float("nan")), "0,1", (0, 1, 2), (True, 2)])
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="value_range must be two"):
        checked_range(value)


def test_the_range_is_saved_with_the_processor_and_read_by_transformers_without_harm(tmp_path):
    DeiTImageProcessor(value_range=(0, 4095)).save_pretrained(tmp_path)
    assert DeiTImageProcessor.from_pretrained(tmp_path).value_range == [0, 4095]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert theirs(Image.new("RGB", (300, 300)), return_tensors="np").pixel_values.shape == (1, 3, 224, 224)

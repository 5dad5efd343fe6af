"""HEIC and AVIF: pixels, how they are turned, what is not read, what is refused; against Pillow's and pillow-heif's."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, features

from deit.core.errors import ImageError
from deit.core.images import heif_files
from deit.core.images.av1_sizes import largest_picture
from deit.core.images.heif_files import MOST_ITEMS, read_heif
from deit.core.images.reading import check_image, load_image
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.data.storage.image_search import find_image_files

try:
    from pillow_heif import HeifImageFile, from_pillow

    HAS_HEIF = True
except ImportError:
    HAS_HEIF = False
KINDS = [
    pytest.param("HEIF", marks=pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is not installed")),
    pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")),
]

needs_heif = pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is not installed")


def picture(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Four colours, one in each quarter: every turn and mirror of it is another picture."""
    image = Image.new("RGB", size, "red")
    width, height = size
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    image.paste("white", (width // 2, height // 2, width, height))
    return image


def saved(kind: str, image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    if kind == "AVIF":
        image.save(file, "AVIF", quality=90, **options)
    else:
        image.info.pop("exif", None)
        from_pillow(image).save(file, quality=90, **options)
    return file.getvalue()


def by_plugin(kind: str, data: bytes) -> Image.Image:
    return HeifImageFile(io.BytesIO(data)) if kind == "HEIF" else Image.open(io.BytesIO(data), formats=("AVIF",))


def exif_of(orientation: int, *, more: int = 0) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x0131] = "x" * more
    return exif.tobytes()


# --- pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_plugin(kind, tmp_path):
    for image in (picture(), picture().convert("L"), picture((130, 70))):
        data = saved(kind, image)
        expected = np.asarray(by_plugin(kind, data).convert("RGB"))
        (tmp_path / "a.jpg").write_bytes(data)  # whatever the name says
        for source in (data, tmp_path / "a.jpg"):
            np.testing.assert_array_equal(np.asarray(load_image(source)), expected)
        check_image(data)


@pytest.mark.parametrize("kind", KINDS)
def test_transparency_is_laid_on_white(kind):
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert np.asarray(load_image(saved(kind, image))).min() == 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_once(kind, orientation):
    """As a phone writes it: the file's own rotation, and EXIF that says the same."""
    upright = np.asarray(picture(), np.int16)
    turns = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
             4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
             7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}  # fmt: skip
    turn = turns[orientation]  # what the sensor saw
    stored = picture() if turn is None else picture().transpose(turn)
    data = saved(kind, stored, exif=exif_of(orientation))
    assert (b"irot" in data or b"imir" in data) == (orientation != 1)
    found = load_image(data)
    assert found.size == picture().size
    assert np.abs(np.asarray(found, np.int16) - upright).mean() < 6
    np.testing.assert_array_equal(np.asarray(load_image(by_plugin(kind, data))), np.asarray(found))


@pytest.mark.parametrize("kind", KINDS)
def test_exif_alone_turns_nothing(kind):
    """HEIF, section 6.5.10: the rotation is the property of the image. Decoders, browsers and phones hold to it."""
    data = saved(kind, picture(), exif=exif_of(6))
    assert b"irot\3" in data
    data = data.replace(b"irot\3", b"irot\0")
    assert load_image(data).size == picture().size


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_descriptions_cost_no_image(kind):
    data = saved(kind, picture(), exif=exif_of(1, more=200))
    place = data.index(b"x" * 200)
    start = max(data.rfind(b"II*\0", 0, place), data.rfind(b"MM\0*", 0, place))
    damaged = data[:start] + os.urandom(1) * (place + 200 - start) + data[place + 200 :]
    np.testing.assert_array_equal(np.asarray(load_image(damaged)), np.asarray(load_image(data)))
    assert not by_plugin(kind, read_heif(data, "x").data).info.get("exif")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_of_an_animation_the_still_picture_is_read():
    file = io.BytesIO()
    picture().save(file, "AVIF", save_all=True, append_images=[Image.new("RGB", (96, 64), "black")] * 3, quality=90)
    found = np.asarray(load_image(file.getvalue()), np.int16)
    assert np.abs(found - np.asarray(picture(), np.int16)).mean() < 6


# --- refusals -----------------------------------------------------------------------------------------


def with_sizes(data: bytes, width: int, height: int) -> bytes:
    place = data.find(b"ispe")
    while place >= 0:
        data = data[: place + 8] + struct.pack(">II", width, height) + data[place + 16 :]
        place = data.find(b"ispe", place + 4)
    return data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: with_sizes(data, 60_000, 60_000), "claims more pixels than are safe to decode"),
        (lambda data: with_sizes(data, 2**32 - 1, 2**32 - 1), "claims more pixels than are safe to decode"),
        (lambda data: data[: len(data) // 2], "cannot be read as an image"),
        (lambda data: data[:40], "cannot be read as an image"),
        (lambda data: data.replace(b"meta", b"free"), "it has no still picture"),
        (lambda data: data + struct.pack(">I4s", 8, b"free") * 30_000, "it has more than 20000 boxes"),
        (lambda data: data.replace(b"ispe", b"\xff\xff\xff\xff"), "cannot be read as an image"),
    ],
    ids=["pixels", "most pixels", "half", "head", "no picture", "boxes", "property"],
)
def test_damaged_and_hostile_files_are_refused(kind, change: Callable[[bytes], bytes], message):
    with pytest.raises(ImageError, match=message):
        load_image(change(saved(kind, picture())))


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")


def av1_of(data: bytes) -> bytes:
    """Returns the bitstream of an AVIF, from its first unit on."""
    return data[data.index(b"\x12\x00\x0a") :]


@needs_avif
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (1025, 64), (300, 17)])
@pytest.mark.parametrize("frames", [1, 2])
def test_the_size_in_an_av1_bitstream_is_that_of_its_picture(size, frames):
    file = io.BytesIO()
    more = [Image.new("RGB", size, "black")] * (frames - 1)
    Image.new("RGB", size, "red").save(file, "AVIF", speed=10, save_all=frames > 1, append_images=more)
    assert largest_picture(av1_of(file.getvalue())) == size[0] * size[1]
    assert largest_picture(b"\x12\x00") is None


@needs_avif
def test_what_an_av1_bitstream_holds_counts_and_not_what_the_file_says_of_it(monkeypatch):
    """libavif decodes the whole picture, and then makes it as small as the file says."""
    data = with_sizes(saved("AVIF", picture()), 16, 16)
    assert Image.open(io.BytesIO(data), formats=("AVIF",)).size == (16, 16)
    monkeypatch.setattr(heif_files, "MOST_HEIF_PIXELS", 96 * 64 - 1)
    with pytest.raises(ImageError, match="claims more pixels than are safe to decode: 6144 in its parts"):
        load_image(data)


@needs_heif
def test_a_grid_is_read_and_one_that_claims_another_size_than_the_file_refused():
    data = saved("HEIF", picture((256, 256)), tile_size=64)
    if b"dimg" not in data:
        pytest.skip("this pillow-heif writes no tiles")
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(by_plugin("HEIF", data).convert("RGB")))
    content = data.index(bytes([0, 0, 3, 3]) + struct.pack(">HH", 256, 256))
    hostile = data[: content + 4] + struct.pack(">HH", 65_000, 65_000) + data[content + 8 :]
    with pytest.raises(ImageError, match="claims more pixels than are safe to decode"):
        load_image(hostile)


@needs_heif
def test_a_picture_that_is_larger_than_its_file_says_is_not_decoded():
    data = saved("HEIF", picture((1024, 1024)))
    with pytest.raises(ImageError, match="cannot be read as an image"):
        load_image(with_sizes(data, 16, 16))


def test_a_file_of_very_many_parts_is_refused():
    entry = struct.pack(">I4sBBHHH4s", 20, b"infe", 2, 0, 0, 1, 0, b"hvc1")
    entries = b"".join(entry[:12] + struct.pack(">HH", i, 0) + entry[16:] for i in range(1, MOST_ITEMS + 2))
    iinf = struct.pack(">I4sIH", 14 + len(entries), b"iinf", 0, MOST_ITEMS + 1) + entries
    meta = struct.pack(">I4sI", 12 + len(iinf), b"meta", 0) + iinf
    with pytest.raises(ImageError, match=r"it has 2001 parts, the limit is 2000"):
        load_image(struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"mif1") + meta)


# --- where they are met -------------------------------------------------------------------------------


def test_a_search_finds_them(tmp_path):
    for name in ("a.heic", "b.HEIF", "c.hif", "d.avif", "e.jxl", "f"):
        (tmp_path / name).write_bytes(struct.pack(">I4s4s", 12, b"ftyp", b"heic"))
    found = find_image_files(tmp_path)
    assert [os.path.basename(path) for path in found.paths] == ["a.heic", "b.HEIF", "c.hif", "d.avif", "f"]
    assert [os.path.basename(file.path) for file in found.skipped] == ["e.jxl"]


@needs_heif
def test_the_image_processor_takes_them(tmp_path):
    (tmp_path / "a.heic").write_bytes(saved("HEIF", picture()))
    processor = DeiTImageProcessor(size=32, crop_size=32)
    pixels = processor(str(tmp_path / "a.heic"), return_tensors="np").pixel_values
    expected = processor(load_image(tmp_path / "a.heic"), return_tensors="np").pixel_values
    np.testing.assert_array_equal(pixels, expected)


def test_without_the_package_a_message_names_the_extra(tmp_path):
    """In a process of its own, that cannot import it."""
    box = struct.pack(">I4sI", 12, b"meta", 0)
    (tmp_path / "a.heic").write_bytes(struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"mif1") + box)
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from deit.core.images.reading import load_image\n"
        "try: load_image(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.heic")]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said == (
        f"{tmp_path / 'a.heic'} is a HEIC image, which needs the 'pillow-heif' package. Install it with: "
        'pip install "deit[heic]". Or convert it to JPEG.\n'
    )

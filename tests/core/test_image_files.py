"""What a file carries beside pixels costs no image; what is no file of one is refused at once."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from deit.core.images import reading as images
from deit.core.images.decoding_share import DecodingShare
from deit.core.images.image_files import MOST_FILE_BYTES, exif_orientation
from deit.core.images.reading import ImageError, check_image, load_image


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo().save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, *more: bytes) -> bytes:
    entries = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0), *more]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def chunk(kind: bytes, content: bytes, *, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png_with(*chunks: bytes) -> bytes:
    data = encoded("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def jpeg_with(*segments: bytes) -> bytes:
    data = encoded("JPEG")
    added = b"".join(b"\xff" + s[:1] + struct.pack(">H", len(s) + 1) + s[1:] for s in segments)
    return data[:2] + added + data[2:]


BOMB = zlib.compress(bytes(50_000_000), 9)
HUGE = struct.pack("<HHII", 0x9286, 7, 2**32 - 1, 0)
LOOP = struct.pack("<HHII", 0x8769, 4, 1, 8)
DAMAGED = {
    "PNG, a wrong checksum of a comment": png_with(chunk(b"tEXt", b"Comment\0x", crc=1)),
    "PNG, EXIF that is none": png_with(chunk(b"eXIf", b"no exif at all")),
    "PNG, EXIF cut off": png_with(chunk(b"eXIf", exif(1)[6:20])),
    "PNG, EXIF without an end": png_with(chunk(b"eXIf", exif(1, HUGE, LOOP)[6:])),
    "PNG, bombs as comment and profile": png_with(chunk(b"zTXt", b"C\0\0" + BOMB), chunk(b"iCCP", b"n\0\0" + BOMB)),
    "PNG, a profile that is none": png_with(chunk(b"iCCP", b"n\0\0nonsense")),
    "PNG, resolution of a wrong length": png_with(chunk(b"pHYs", b"\0")),
    "JPEG, EXIF that is none": jpeg_with(b"\xe1Exif\0\0nonsense"),
    "JPEG, EXIF of another type": jpeg_with(b"\xe1" + exif(1, struct.pack("<HHII", 0x011A, 2, 3, 0))),
    "JPEG, EXIF without an end": jpeg_with(b"\xe1" + exif(1, HUGE, LOOP)),
    "JPEG, XMP that is none": jpeg_with(b"\xe1http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
    "JPEG, an index of images that is none": jpeg_with(b"\xe2MPF\0nonsense"),
    "JPEG, profile numbers that are wrong": jpeg_with(b"\xe2ICC_PROFILE\0\x07\x01abc"),
    "WebP, EXIF that is none": encoded("WEBP", lossless=True, exif=b"Exif\0\0nonsense"),
    "WebP, EXIF of another type": encoded("WEBP", lossless=True, exif=exif(1, struct.pack("<HHII", 0x011A, 2, 3, 0))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_descriptions_cost_no_image_and_no_memory(name, tmp_path):
    tracemalloc.start()
    expected = load_image(encoded("JPEG")) if name.startswith("JPEG") else photo()
    (tmp_path / "a").write_bytes(DAMAGED[name])
    for source in (DAMAGED[name], tmp_path / "a"):
        check_image(source)
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(expected))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def tiff_with(tag: int, kind: int, count: int, value: int) -> bytes:
    data = encoded("TIFF")
    start = struct.unpack_from("<I", data, 4)[0]
    number = struct.unpack_from("<H", data, start)[0]
    entries = [data[start + 2 + 12 * i :][:12] for i in range(number)] + [struct.pack("<HHII", tag, kind, count, value)]
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


@pytest.mark.parametrize("tag", [(282, 2, 3, 0), (34665, 4, 1, 8), (34665, 1, 1, 99), (700, 7, 2**31, 0),
                                 (296, 2, 9, 1),
                                 (33432, 99, 5, 5), (34853, 2, 1, 0)])  # fmt: skip
def test_tags_of_tiff_that_pixels_do_not_need_are_not_read(tag):
    data = tiff_with(*tag)
    check_image(data)
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(photo()))


def test_tags_that_pixels_need_have_a_limit():
    with pytest.raises(ImageError, match=r"its tags have 4294967\d+ bytes, the limit is 16777216"):
        load_image(tiff_with(320, 3, 2**31 - 2, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_pillow_turns_them(kind, orientation):
    from PIL import ImageOps

    described = Image.Exif()
    described[0x0112] = orientation
    data = encoded(kind, exif=described, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(expected))


def test_an_orientation_of_another_place_is_found():
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    assert load_image(jpeg_with(b"\xe1" + xmp)).size == (24, 40)
    info = PngImagePlugin.PngInfo()
    content = exif(6)
    info.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    assert load_image(encoded("PNG", pnginfo=info)).size == (24, 40)
    assert exif_orientation(exif(9)) == exif_orientation(b"MM") == exif_orientation(b"") == 0


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a folder"])
def test_what_is_not_a_file_is_refused_without_being_opened(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("a.png")
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("a.png")
        listener.close()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (load_image, check_image):
        with pytest.raises(ImageError, match=f"^a.png cannot be read as an image: it is {kind}, not a file.$"):
            read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(100 * 2**30)
    with pytest.raises(
        ImageError, match=f"too large for an image: {100 * 2**30} bytes, the limit is {MOST_FILE_BYTES}"
    ):
        load_image(tmp_path / "a.png")


def test_a_jpeg_of_many_scans_is_refused():
    data = encoded("JPEG", progressive=True)
    load_image(data)
    with pytest.raises(ImageError, match="more than 100 scans"):
        load_image(data + b"\xff\xda" * 100)


def test_formats_that_are_decoded_in_python_have_a_smaller_limit():
    with pytest.raises(
        ImageError, match="claims more pixels than are safe to decode: 4000 x 3000, the limit is 8388608"
    ):
        load_image(b"P5\n4000 3000\n100\n" + bytes(12_000_000))


def test_a_huge_orientation_and_damaged_exif_of_a_pil_image_change_nothing():
    image = photo()
    image.info["exif"] = b"Exif\0\0II*\0\xff\xff\xff\xff"
    assert load_image(image).size == (40, 24)
    image = photo()
    image.getexif()[0x0112] = 2**31
    assert load_image(image).size == (40, 24)


def test_large_images_are_decoded_one_after_the_other_and_small_ones_together():
    from threading import Thread

    share, log = DecodingShare(10), []

    def work(name: str, pixels: int) -> None:
        with share.kept():
            with share.of(pixels):
                log.append(f"{name} in")
            time.sleep(0.05)
            log.append(f"{name} out")

    threads = [Thread(target=work, args=(name, 8)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line[2:] for line in log] == ["in", "out"] * 3
    with share.kept(), share.of(10), share.of(10):  # whoever holds some does not wait for itself
        pass
    with share.of(1000):  # one alone always passes
        pass


def test_transparency_of_a_large_image_is_laid_on_white_as_of_a_small_one(monkeypatch):
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    whole = np.asarray(load_image(image))
    monkeypatch.setattr(images, "_STRIP_PIXELS", 100)
    assert np.array_equal(np.asarray(load_image(image)), whole)

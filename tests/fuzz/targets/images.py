"""Bytes of images in each format that is read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tests.fuzz.changes import of_bytes
from tests.fuzz.driver import Target

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGE = (0, 1, 2, 255, 4096, 8193, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def _read(data: bytes, folder: Path) -> None:
    from deit.core.errors import UserError
    from deit.core.images.reading import check_image, image_kind, load_image
    from deit.core.processing.image_processor import DeiTImageProcessor
    from deit.core.processing.reduced_reading import ReducedReader

    path = folder / "image"
    path.write_bytes(data)
    processor = DeiTImageProcessor(size={"shortest_edge": 9}, crop_size=8)
    reads = (
        lambda: check_image(path),
        lambda: image_kind(path),
        lambda: load_image(data, value_range=(0, 65_535)),
        lambda: load_image(path, mode="L"),
        lambda: processor(load_image(data)),
        lambda: ReducedReader(processor)(str(path)),
    )
    errors: list[UserError] = []
    for read in reads:
        try:
            read()
        except UserError as error:
            errors.append(error)
    if len(errors) == len(reads):
        raise errors[0]


def _change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Changes bytes, and mends the checksums of a PNG; or writes a large number in a field of 2 or 4 bytes."""
    if random.randrange(3) == 0 and len(data) > 8:
        found, place = bytearray(data), random.randrange(len(data) - 4)
        form = random.choice(("<H", ">H", "<I", ">I"))
        number = random.choice(_LARGE) % 2 ** (8 * struct.calcsize(form))
        struct.pack_into(form, found, place, number)
        changed = bytes(found)
    else:
        changed = of_bytes(random, data, others)
    return _mended(changed) if data.startswith(_PNG) and random.randrange(4) else changed


def _mended(data: bytes) -> bytes:
    """Returns a PNG with the right checksum of each chunk, as far as lengths allow."""
    found, place = bytearray(data), len(_PNG)
    while place + 12 <= len(found):
        length = int.from_bytes(found[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(found):
            break
        found[end : end + 4] = struct.pack(">I", zlib.crc32(found[place + 4 : end]))
        place = end + 4
    return bytes(found)


def _seeds() -> Mapping[str, bytes]:
    import numpy as np
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 255, (6, 7, 4), np.uint8)
    rgb, rgba = Image.fromarray(values[..., :3]), Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(42, dtype=np.uint16).reshape(6, 7) * 900)
    pictures = {
        "png": (rgba, "PNG", {}), "palette.png": (rgb.quantize(8), "PNG", {"transparency": 1}), "deep.png": (deep,
        "PNG", {}),
        "turned.jpg": (rgb, "JPEG", {"exif": exif}), "steps.jpg": (rgb, "JPEG", {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}), "webp": (rgba, "WEBP", {"exif": exif}), "bmp": (rgb, "BMP", {}),
        "frames.gif": (rgb.quantize(4), "GIF", {"save_all": True, "append_images": [rgb.quantize(3)]}),
        "lzw.tif": (rgb, "TIFF", {"compression": "tiff_lzw"}), "jpeg.tif": (rgb, "TIFF", {"compression": "jpeg"}),
        "deep.tif": (deep, "TIFF", {}), "float.tif": (Image.fromarray(np.ones((3, 4), np.float32)), "TIFF", {}),
        "ppm": (rgb, "PPM", {}), "pbm": (rgb.convert("1"), "PPM", {}), "avif": (rgb, "AVIF", {}),
        "bits.bmp": (rgb.quantize(16), "BMP", {}), "lossless.webp": (rgb, "WEBP", {"lossless": True}),
    }  # fmt: skip
    found = {}
    for name, (image, kind, options) in pictures.items():
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[name] = file.getvalue()
    found["plain.ppm"] = b"P3\n2 2\n255\n" + b"1 2 3 " * 4
    found["heic"] = _heic(rgb)
    return found


def _heic(image: object) -> bytes:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=50)
    return file.getvalue()


TARGETS = (Target(name="images", read=_read, change=_change, seeds=_seeds),)

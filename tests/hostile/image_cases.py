"""Pictures, and what lies among them."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from tests.hostile.kit import Case, Kit, saved, sparse

CASES: dict[str, Case] = {}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes | None = None, *chunks: bytes) -> bytes:
    """A PNG in grey whose header says any size; one bit for a pixel, zeros where `pixels` is None."""
    data = pixels
    if data is None:
        row = bytes(1 + (width + 7) // 8)
        packer = zlib.compressobj(9)
        data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _grey(size: tuple[int, int], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, 100).save(file, kind, **options)
    return file.getvalue()


def _picture(name: str, file: str, content: Callable[[], bytes], *, copies: int = 1, refused: bool = False) -> None:
    """A picture that is classified, trained on, evaluated and embedded."""

    def write(folder: Path) -> list[Path]:
        folder.mkdir(exist_ok=True)
        data = content()
        paths = [folder / f"{i}-{file}" for i in range(copies)]
        for path in paths:
            path.write_bytes(data)
        return paths

    def classify(kit: Kit) -> list[Any]:
        write(kit.folder / "pictures")
        return ["classify", kit.model(), kit.folder / "pictures"]

    def train(kit: Kit) -> list[Any]:
        photos = kit.photos()
        write(photos / "red")
        return kit.train(photos)

    CASES[f"{name}: classify"] = Case(make=classify, refused=refused)
    CASES[f"{name}: train"] = Case(make=train, refused=False)


def _text_bomb() -> bytes:
    bomb = zlib.compress(bytes(200_000_000), 9)
    return png(8, 8, None, _chunk(b"zTXt", b"Comment\0\0" + bomb), _chunk(b"iCCP", b"name\0\0" + bomb))


def _many_frames() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("P", (1, 1), i % 2) for i in range(3000)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    return file.getvalue()


def _tiff_of_size(width: int, height: int, offset: int = 8) -> bytes:
    """A TIFF whose header says any size, without pixels; `offset` is where the next folder of it would be."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 16)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", offset)


def _jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(_grey((16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _avif_of_size(width: int, height: int) -> bytes:
    data = bytearray(_grey((64, 64), "AVIF"))
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", width, height)
    return bytes(data)


def _exif(tags: bytes) -> bytes:
    return _grey((32, 32), "PNG", exif=b"Exif\0\0" + tags)


def _long_comments() -> bytes:
    info = PngImagePlugin.PngInfo()
    for i in range(20_000):
        info.add_text(f"k{i}", "x" * 100)
    return _grey((8, 8), "PNG", pnginfo=info)


_picture("32 pictures of 88 megapixels", "bomb.png", lambda: png(9400, 9400), copies=32)
_picture("60,000 x 60,000 pixels in 500 KB", "bomb.png", lambda: png(60_000, 60_000), refused=True)
_picture("2 billion x 2 billion in the header", "bomb.png", lambda: png(2**31 - 1, 2**31 - 1, b""), refused=True)
_picture("1 x 20,000 pixels", "thin.png", lambda: png(1, 20_000))
_picture("20,000 x 1 pixels", "flat.png", lambda: png(20_000, 1))
_picture("1 x 1,000,000 pixels", "thin.png", lambda: png(1, 1_000_000))
_picture("1 x 65,000 pixels, JPEG", "thin.jpg", lambda: _grey((1, 65_000), "JPEG"))
_picture("a JPEG that says 65,000 x 65,000", "bomb.jpg", lambda: _jpeg_of_size(65_000, 65_000), refused=True)
_picture("a JPEG that says 12,000 x 7,000", "bomb.jpg", lambda: _jpeg_of_size(12_000, 7000))
_picture(
    "a TIFF that says 4 billion x 4 billion", "bomb.tif", lambda: _tiff_of_size(2**32 - 1, 2**32 - 1), refused=True
)
_picture("a TIFF without an end", "loop.tif", lambda: _tiff_of_size(16, 16))
_picture("an AVIF that says 60,000 x 60,000", "bomb.avif", lambda: _avif_of_size(60_000, 60_000), refused=True)
_picture("an AVIF cut off", "short.avif", lambda: _avif_of_size(64, 64)[:200], refused=True)
_picture("a GIF of 3,000 frames", "frames.gif", _many_frames)
_picture("200 MB of zeros as a comment and profile", "text.png", _text_bomb)
_picture("20,000 comments", "text.png", _long_comments)
_picture("EXIF that points at itself", "exif.png", lambda: _exif(b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0"))  # fmt: skip  # noqa: E501
_picture("EXIF of 4 billion entries", "exif.png", lambda: _exif(b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0"))  # fmt: skip  # noqa: E501
_picture("an empty file", "empty.jpg", lambda: b"", refused=True)
_picture("a web page", "page.jpg", lambda: b"<!doctype html><title>Log in</title>", refused=True)
_picture(
    "PostScript", "script.png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", refused=True
)
_picture("a PNG cut in the middle", "cut.png", lambda: _grey((64, 64), "PNG")[:-30])


# --- files that are none ------------------------------------------------------------------------------


def _special(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = Path.cwd()
            os.chdir(path.parent)  # the name of a socket has at most 108 bytes
            listener.bind(path.name)
            os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        sparse(path, 100 * 2**30, b"\x89PNG\r\n\x1a\n")
    else:
        path.symlink_to(kind)


def _among(what: str, kind: str) -> None:
    """Something among the pictures that is no file of one."""

    def classify(kit: Kit) -> list[Any]:
        photos = kit.photos()
        _special(photos / "red" / "strange.png", kind)
        return ["classify", kit.model(), photos / "red"]

    def named(kit: Kit) -> list[Any]:
        _special(kit.folder / "strange.png", kind)
        return ["classify", kit.model(), kit.folder / "strange.png"]

    def train(kit: Kit) -> list[Any]:
        photos = kit.photos()
        _special(photos / "red" / "strange.png", kind)
        return kit.train(photos)

    def evaluate(kit: Kit) -> list[Any]:
        photos = kit.photos()
        _special(photos / "red" / "strange.png", kind)
        return ["evaluate", kit.model(), photos]

    def embed(kit: Kit) -> list[Any]:
        photos = kit.photos()
        _special(photos / "red" / "strange.png", kind)
        return ["embed", kit.model(), photos / "red", "--out", kit.folder / "features.parquet"]

    for command, make in {"train": train, "classify": classify, "evaluate": evaluate, "embed": embed}.items():
        CASES[f"{what} among the pictures: {command}"] = Case(make=make, refused=False)
    CASES[f"{what} by name: classify"] = Case(make=named)


_among("a FIFO", "fifo")
_among("/dev/zero", "/dev/zero")
_among("a sparse file of 100 GB", "sparse")
_among("a socket", "socket")
_among("a link to itself", "strange.png")
_among("a folder", "folder")


def _loop(kit: Kit) -> list[Any]:
    photos = kit.photos()
    (photos / "red" / "again").symlink_to(photos)
    return kit.train(photos)


def _wide(kit: Kit) -> list[Any]:
    """Rescaled to a shorter side of 32, the other side has 640,000 pixels."""
    model = kit.changed("preprocessor_config.json", size={"shortest_edge": 512}, crop_size={"height": 32, "width": 32})
    path = kit.folder / "thin.png"
    path.write_bytes(png(1, 20_000))
    return ["classify", model, path]


def _svg(kit: Kit) -> list[Any]:
    path = saved(Image.new("RGB", (8, 8)), kit.folder / "a.png")
    path.write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"><!ENTITY a "aaaa"></svg>')
    return ["classify", kit.model(), path]


CASES["a folder that contains itself: train"] = Case(make=_loop, refused=False)
CASES["1 x 20,000 pixels, shorter side 512: classify"] = Case(make=_wide, refused=False)
CASES["SVG called PNG: classify"] = Case(make=_svg)

"""Reads the bytes of image files within limits and strips metadata that decoders do not need."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import IO

from deit.core.errors import ImageError
from deit.core.images.heif_files import begins_like_heif, read_heif

# An image of the maximum size has 192 MiB as uncompressed 8-bit RGB. Larger files are not read into memory.
MOST_FILE_BYTES = 256 * 2**20
# Tags that pixels need: offsets of strips or tiles, palettes. Enough for one strip per row of the tallest image.
MOST_TIFF_TAG_BYTES = 16 * 2**20
# Photos have about 10. Each scan costs a pass over the whole image, and can be a few bytes long.
MOST_JPEG_SCANS = 100
# Metadata that is searched for an orientation. Cameras write it at the start.
MOST_METADATA_BYTES = 2**20

_SKIPPED_WHOLE = frozenset({0xE1, 0xE2, 0xED, 0xFE})  # EXIF and XMP; ICC and further images; Photoshop; comments
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 274
# Only the tags that decoding needs, because Pillow reads every tag of a file into memory, whatever its size.
_PIXEL_TAGS = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 273, _ORIENTATION, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
    | {332, 334, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}
)
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class ImageBytes:
    """An image file without metadata.

    Attributes:
        file: Bytes without metadata, so that damaged or hostile metadata has no effect.
        orientation: Orientation to apply after decoding, 1 to 8 as in EXIF; 0 if the decoder applies or reports it.
        kind: "AVIF" or "HEIF"; empty for other formats, which Pillow detects.
    """

    file: IO[bytes]
    orientation: int
    kind: str = ""


def read_image_bytes(source: str | os.PathLike[str] | bytes, name: str) -> ImageBytes:
    """Reads an image file without EXIF, XMP, color profiles, comments and directories of further frames.

    Args:
        source: Path, or the content.
        name: Name of the image for messages.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: The path is a folder, device, pipe or socket, the file is larger than `MOST_FILE_BYTES`, or
            decoding it would cost more than an image needs.
    """
    data = source if isinstance(source, bytes) else read_content(source, name)
    if len(data) > MOST_FILE_BYTES:
        raise ImageError(f"{name} is too large for an image: {len(data)} bytes, the limit is {MOST_FILE_BYTES}.")
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data, name)
        if data.startswith(_PNG_SIGNATURE):
            return _png(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data, name)
        if data[:4] == b"RIFF":
            return _webp(data)
        if begins_like_heif(data[:12]):
            found = read_heif(data, name)
            return ImageBytes(io.BytesIO(found.data), 0, found.kind)
    except (struct.error, IndexError) as error:
        raise ImageError(
            f"{name} cannot be read as an image (its structure ends early). It may be truncated."
        ) from error
    return ImageBytes(io.BytesIO(data), 1)


def read_content(path: str | os.PathLike[str], name: str) -> bytes:
    """Reads an image file into memory.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: See `read_image_bytes`.
    """
    try:
        return _content_of_file(path, name)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} cannot be read as an image ({getattr(error, 'strerror', None) or error}).") from error


def _content_of_file(path: str | os.PathLike[str], name: str) -> bytes:
    found = os.stat(path)  # before opening: a pipe would wait for a writer
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise ImageError(f"{name} cannot be read as an image: it is {kind}, not a file.")
    if found.st_size > MOST_FILE_BYTES:
        raise ImageError(f"{name} is too large for an image: {found.st_size} bytes, the limit is {MOST_FILE_BYTES}.")
    with open(path, "rb") as file:
        return file.read(found.st_size + 1)  # limits memory even if the file grows meanwhile


# --- JPEG ---------------------------------------------------------------------------------------------


def _jpeg(data: bytes, name: str) -> ImageBytes:
    kept = io.BytesIO()
    kept.write(data[:2])
    orientation, xmp, place = 0, b"", 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:  # bytes between segments, which decoders skip
            place += 1
            continue
        marker = data[place + 1]
        if marker in _STANDALONE or marker in (0x00, 0xFF):
            place += 1 if marker == 0xFF else 2
            continue
        end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
        if marker in _FRAMES and data.count(b"\xff\xda") > MOST_JPEG_SCANS:
            raise ImageError(f"{name} cannot be read as an image: it has more than {MOST_JPEG_SCANS} scans.")
        if marker == 0xDA or end > len(data):
            break
        segment = data[place + 4 : end]
        if marker not in _SKIPPED_WHOLE:
            kept.write(data[place:end])
        elif marker == 0xE1 and segment.startswith(b"Exif\0") and not orientation:
            orientation = exif_orientation(segment)
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or segment
        place = end
    kept.write(memoryview(data)[place:])
    kept.seek(0)
    return ImageBytes(kept, orientation or _xmp_orientation(xmp))


# --- PNG ----------------------------------------------------------------------------------------------


def _png(data: bytes) -> ImageBytes:
    """Keeps the chunks that pixels need: critical chunks and the transparent color."""
    kept = io.BytesIO()
    kept.write(_PNG_SIGNATURE)
    exif = texts = xmp = b""
    place = len(_PNG_SIGNATURE)
    view = memoryview(data)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind[:1].isupper() or kind == b"tRNS":
            kept.write(view[place:end])
        elif length <= MOST_METADATA_BYTES:
            content = data[place + 8 : place + 8 + length]
            if kind == b"eXIf":
                exif = exif or content
            elif kind == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0"):
                xmp = xmp or content
            elif kind in (b"tEXt", b"zTXt") and content.startswith(b"Raw profile type exif\0"):
                texts = texts or _hexadecimal(content.partition(b"\0")[2], compressed=kind == b"zTXt")
        place = end
        if kind == b"IEND":
            break
    kept.write(view[place:])
    kept.seek(0)
    return ImageBytes(kept, exif_orientation(exif or texts) or _xmp_orientation(xmp))


def _hexadecimal(text: bytes, *, compressed: bool) -> bytes:
    """Returns EXIF that ImageMagick wrote as text: lines with a name, a length and hexadecimal digits."""
    try:
        if compressed:
            text = zlib.decompressobj().decompress(text[1:], MOST_METADATA_BYTES)
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except (zlib.error, ValueError):
        return b""


# --- WebP ---------------------------------------------------------------------------------------------


def _webp(data: bytes) -> ImageBytes:
    """Finds the orientation. Keeps metadata, because Pillow does not decode that of WebP."""
    orientation, xmp, place = 0, b"", 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind == b"EXIF" and length <= MOST_METADATA_BYTES:
            orientation = orientation or exif_orientation(data[place + 8 : place + 8 + length])
        elif kind == b"XMP " and length <= MOST_METADATA_BYTES:
            xmp = xmp or data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    return ImageBytes(io.BytesIO(data), orientation or _xmp_orientation(xmp))


# --- TIFF ---------------------------------------------------------------------------------------------


def _tiff(data: bytes, name: str) -> ImageBytes:
    """Keeps only the first directory, and of it only the tags that pixels need."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    start = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
    count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)[0]
    head, size, inline = (8, 20, 8) if big else (2, 12, 4)
    if count > 4096:
        raise ImageError(f"{name} cannot be read as an image: its directory has {count} tags.")
    kept, total = [], 0
    for number in range(count):
        place = start + head + number * size
        tag, kind, values = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", data, place)
        length = values * _TYPE_BYTES.get(kind, 1)
        if tag in _PIXEL_TAGS:
            kept.append(data[place : place + size])
            total += length
    if total > MOST_TIFF_TAG_BYTES:
        raise ImageError(
            f"{name} cannot be read as an image: its tags have {total} bytes, the limit is {MOST_TIFF_TAG_BYTES}."
        )
    directory = struct.pack(f"{order}{'Q' if big else 'H'}", len(kept)) + b"".join(kept)
    room = head + count * size + inline  # zeros after the kept tags mean that no directory follows
    view = memoryview(data)
    file = io.BytesIO()
    for part in (view[:start], directory.ljust(room, b"\0"), view[start + room :]):
        file.write(part)
    file.seek(0)
    return ImageBytes(file, 1)  # Pillow rotates a TIFF while it decodes it


# --- orientation --------------------------------------------------------------------------------------


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation in EXIF data, 1 to 8; 0 if there is none or the data is damaged."""
    exif = exif[:MOST_METADATA_BYTES]
    exif = exif[6:] if exif.startswith(b"Exif\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 0
    try:
        start = struct.unpack_from(f"{order}I", exif, 4)[0]
        for number in range(struct.unpack_from(f"{order}H", exif, start)[0]):
            tag, kind = struct.unpack_from(f"{order}HH", exif, start + 2 + number * 12)
            if tag == _ORIENTATION:
                code = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}.get(kind)
                return (
                    _one_to_eight(struct.unpack_from(f"{order}{code}", exif, start + 10 + number * 12)[0])
                    if code
                    else 0
                )
    except struct.error:
        return 0
    return 0


def _xmp_orientation(xmp: bytes) -> int:
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(found.group(1)) if found else 1


def _one_to_eight(value: int) -> int:
    return value if 1 <= value <= 8 else 0

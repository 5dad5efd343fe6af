"""Checks the boxes of HEIC and AVIF files before they are decoded.

Boxes follow ISO/IEC 14496-12 (section 4.2) and ISO/IEC 23008-12 (HEIF); see `av1_sizes` for the pictures of AVIF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from deit.core.errors import ImageError
from deit.core.images.av1_sizes import largest_picture

# 6144 x 8192, enough for phones of 48 megapixels. Decoders of these formats use twice the memory of others.
MOST_HEIF_PIXELS = 3 * 2**24
# Pixels of all pictures in a file: tiles, transparency, depth maps, gain maps, thumbnails.
MOST_CODED_PIXELS = 3 * MOST_HEIF_PIXELS
# A phone divides a photo of 50 megapixels into 200 tiles, each an item with one or two boxes.
MOST_ITEMS = 2000
MOST_BOXES = 20_000
# Color profiles of printers take 3 MiB.
MOST_PROFILE_BYTES = 16 * 2**20

AVIF, HEIF = "AVIF", "HEIF"
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}
_DESCRIPTIONS = {b"Exif", b"mime", b"uri "}
_DERIVED = {b"grid", b"iovl", b"iden", b"tmap"}
_STILL = {b"avis": b"avif", b"hevc": b"heic", b"hevx": b"heix", b"hevm": b"heim", b"hevs": b"heis", b"msf1": b"mif1"}
_MOST_BRAND_BYTES = 1024
_UNKNOWN_ITEM, _FREE = b"skip", b"free"  # kinds that readers skip


@dataclass(frozen=True)
class HeifBytes:
    """A checked HEIC or AVIF file.

    Attributes:
        kind: "AVIF" or "HEIF".
        data: The file, with metadata (EXIF, XMP) and moving pictures marked so that decoders skip them.
    """

    kind: str
    data: bytes


@dataclass(frozen=True)
class _Box:
    kind: bytes
    place: int  # start of the header
    start: int  # start of the content
    end: int


def begins_like_heif(head: bytes) -> bool:
    """Returns True if the first 12 bytes of a file are those of HEIC or AVIF."""
    return head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS | _HEIF_BRANDS


def read_heif(data: bytes, name: str) -> HeifBytes:
    """Checks the boxes of a HEIC or AVIF file.

    These formats store the rotation in properties that decoders apply. The orientation of EXIF is ignored.

    Args:
        data: Content of the file.
        name: Name of the image for messages.

    Raises:
        ImageError: The structure is damaged, or decoding would cost more than an image needs.
    """
    try:
        return _File(data, name).read()
    except (struct.error, IndexError, RecursionError) as error:
        raise ImageError(
            f"{name} cannot be read as an image (its structure ends early). It may be truncated."
        ) from error


class _File:
    """State of the check of one file."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = bytearray(data)
        self._name = name
        self._boxes_seen = 0
        self._types: dict[int, bytes] = {}  # items
        self._extents: dict[int, list[tuple[int, int]]] = {}  # of items: place and length
        self._sizes: dict[int, int] = {}  # of items: pixels by the properties of the file
        self._tiles: dict[int, list[int]] = {}  # of grids

    def read(self) -> HeifBytes:
        """Checks the file; see `read_heif`."""
        meta = None
        for box in self._boxes(0, len(self._data)):
            if box.kind == b"meta":
                meta = meta or box
            elif box.kind == b"moov":  # moving pictures; the still picture is a separate item
                self._data[box.place + 4 : box.place + 8] = _FREE
            elif box.kind == b"ftyp" and box.place == 0:
                brands = self._read_brands(box)
        if meta is None:
            raise self._refused("it has no still picture")
        kind = AVIF if brands & _AVIF_BRANDS else HEIF
        self._read_meta(meta)
        self._check_work()
        return HeifBytes(kind, bytes(self._data))

    def _refused(self, reason: str) -> ImageError:
        return ImageError(f"{self._name} cannot be read as an image: {reason}.")

    def _too_many(self, pixels: int) -> ImageError:
        return ImageError(
            f"{self._name} claims more pixels than are safe to decode: {pixels} in its parts. Reduce its size."
        )

    def _boxes(self, place: int, end: int) -> Iterator[_Box]:
        while place + 8 <= end:
            self._boxes_seen += 1
            if self._boxes_seen > MOST_BOXES:
                raise self._refused(f"it has more than {MOST_BOXES} boxes")
            size, kind = struct.unpack_from(">I4s", self._data, place)
            head = 8
            if size == 1:
                size, head = struct.unpack_from(">Q", self._data, place + 8)[0], 16
            stop = end if size == 0 else place + size
            if stop < place + head or stop > end:
                if kind == b"mdat":  # truncated: the decoder reports it
                    stop = end
                else:
                    raise struct.error
            yield _Box(kind, place, place + head, stop)
            place = stop

    def _read_brands(self, box: _Box) -> set[bytes]:
        """Returns the brands of the file, with those of image sequences replaced by those of still images."""
        brands = set()
        for place in (box.start, *range(box.start + 8, min(box.end - 3, box.start + _MOST_BRAND_BYTES), 4)):
            brand = bytes(self._data[place : place + 4])
            brand = _STILL.get(brand, brand)
            self._data[place : place + 4] = brand
            brands.add(brand)
        return brands

    def _read_meta(self, meta: _Box) -> None:
        children = {box.kind: box for box in self._boxes(meta.start + 4, meta.end)}
        if b"iinf" in children:
            self._read_items(children[b"iinf"])
        properties = children.get(b"iprp")
        if properties is not None:
            self._read_properties(properties)
        if b"iloc" in children:
            self._read_places(children[b"iloc"], children.get(b"idat"))
        if b"iref" in children:
            self._read_tiles(children[b"iref"])

    def _read_items(self, box: _Box) -> None:
        wide = self._data[box.start] > 0
        for entry in self._boxes(box.start + (8 if wide else 6), box.end):
            version = self._data[entry.start]
            if entry.kind != b"infe" or version < 2:
                continue
            at = entry.start + 4
            item = struct.unpack_from(">H" if version == 2 else ">I", self._data, at)[0]
            at += 4 if version == 2 else 6
            kind = bytes(self._data[at : at + 4])
            if kind in _DESCRIPTIONS:
                self._data[at : at + 4] = kind = _UNKNOWN_ITEM
            self._types[item] = kind
        if len(self._types) > MOST_ITEMS:
            raise self._refused(f"it has {len(self._types)} parts, the limit is {MOST_ITEMS}")

    def _read_properties(self, box: _Box) -> None:
        areas: list[int] = []  # of each property; 0 if it is not a size
        for part in self._boxes(box.start, box.end):
            if part.kind != b"ipco":
                continue
            for held in self._boxes(part.start, part.end):
                is_size = held.kind == b"ispe"
                areas.append(prod(struct.unpack_from(">II", self._data, held.start + 4)) if is_size else 0)
                if held.kind == b"colr" and held.end - held.start > MOST_PROFILE_BYTES:
                    raise self._refused(
                        f"its color profile has {held.end - held.start} bytes, the limit is {MOST_PROFILE_BYTES}"
                    )
        for part in self._boxes(box.start, box.end):
            if part.kind == b"ipma":
                self._read_associations(part, areas)

    def _read_associations(self, box: _Box, areas: list[int]) -> None:
        version, wide = self._data[box.start], self._data[box.start + 3] & 1
        at = box.start + 8
        for _ in range(struct.unpack_from(">I", self._data, box.start + 4)[0]):
            item = struct.unpack_from(">I" if version else ">H", self._data, at)[0]
            at += 4 if version else 2
            count = self._data[at]
            at += 1
            for _ in range(count):
                number = struct.unpack_from(">H", self._data, at)[0] & 0x7FFF if wide else self._data[at] & 0x7F
                at += 2 if wide else 1
                if 0 < number <= len(areas):
                    self._sizes[item] = max(self._sizes.get(item, 0), areas[number - 1])

    def _read_places(self, box: _Box, idat: _Box | None) -> None:
        version, at = self._data[box.start], box.start + 6
        offset_size, length_size = divmod(self._data[box.start + 4], 16)
        base_size, index_size = divmod(self._data[box.start + 5], 16)

        def number(size: int) -> int:
            nonlocal at
            if at + size > box.end:
                raise struct.error
            value = int.from_bytes(self._data[at : at + size], "big")
            at += size
            return value

        for _ in range(min(number(4 if version == 2 else 2), MOST_ITEMS + 1)):
            item = number(4 if version == 2 else 2)
            method = number(2) & 15 if version else 0
            number(2)
            base = number(base_size)
            if method == 1 and idat is not None:
                base += idat.start
            extents = []
            for _ in range(number(2)):
                number(index_size if version else 0)
                extents.append((base + number(offset_size), number(length_size)))
            self._extents[item] = extents if method < 2 else []

    def _read_tiles(self, box: _Box) -> None:
        size, code = (4, "I") if self._data[box.start] else (2, "H")
        for part in self._boxes(box.start + 4, box.end):
            if part.kind == b"dimg":
                item = struct.unpack_from(f">{code}", self._data, part.start)[0]
                count = struct.unpack_from(">H", self._data, part.start + size)[0]
                self._tiles[item] = list(struct.unpack_from(f">{count}{code}", self._data, part.start + size + 2))

    # --- cost of decoding -------------------------------------------------------------------------------

    def _content(self, item: int) -> bytes:
        parts, left = [], len(self._data)
        for place, length in self._extents.get(item, ()):
            part = bytes(self._data[place : place + min(length or left, left)])
            left -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _check_work(self) -> None:
        coded: dict[int, int] = {}
        for item, kind in self._types.items():
            if kind in _DERIVED or kind == _UNKNOWN_ITEM:
                continue
            seen = largest_picture(self._content(item)) if kind == b"av01" else 0
            if seen is None:
                raise self._refused("a picture in it has no AV1 sequence header")
            coded[item] = max(self._sizes.get(item, 0), seen)
        total = sum(coded.values())
        for item, kind in self._types.items():
            if kind == b"iovl":
                raise self._refused("it overlays pictures")
            if kind == b"grid":
                total += self._area_of_grid(item)
                total += sum(coded.get(tile, 0) for tile in self._tiles.get(item, ())[1:])  # tiles may repeat
        most = max(coded.values(), default=0)
        if most > MOST_HEIF_PIXELS or total > MOST_CODED_PIXELS:
            raise self._too_many(max(most, total))

    def _area_of_grid(self, item: int) -> int:
        content = self._content(item)
        return prod(struct.unpack_from(">II" if content[1] & 1 else ">HH", content, 4))

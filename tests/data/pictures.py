"""Small images whose class is their colour, in folders, tables and tar archives."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = ("blue", "green", "red")


def picture(colour: str = "red", seed: int = 0, *, height: int = 32, width: int = 40) -> Image.Image:
    """Noise with one channel brighter than the others; equal seeds give equal noise."""
    pixels = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    pixels[..., 2 - COLOURS.index(colour)] += 120
    return Image.fromarray(pixels)


def fill(root: Path, count: int, colours: Sequence[str] = COLOURS, *, seed: int = 0) -> Path:
    """Writes `count` PNG files of each colour as root/colour/0.png, 1.png, ..."""
    for colour in colours:
        (root / colour).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(colour, seed + i).save(root / colour / f"{i}.png")
    return root


def write_truncated_jpeg(path: Path) -> Path:
    """Writes the first half of a JPEG file."""
    picture(height=96, width=96).save(path, "JPEG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def write_text(path: Path) -> Path:
    """Writes something that is no image."""
    path.write_text("This is a letter, not a picture.\n")
    return path


def encoded(colour: str = "red", seed: int = 0, kind: str = "PNG", **sizes: int) -> bytes:
    """Returns the content of an image file."""
    file = io.BytesIO()
    picture(colour, seed, **sizes).save(file, kind)
    return file.getvalue()


def truncated_jpeg() -> bytes:
    """Returns the first half of a JPEG file."""
    data = encoded(kind="JPEG", height=96, width=96)
    return data[: len(data) // 2]


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    """Writes Arrow arrays or lists as a Parquet file without the notes of `datasets`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path


def write_colours(path: Path, count: int, colours: Sequence[str] = COLOURS, *, seed: int = 0) -> Path:
    """Writes `count` images of each colour as Parquet: plain bytes, and the colour as text."""
    images = [encoded(colour, seed + i) for colour in colours for i in range(count)]
    return write_parquet(path, {"image": images, "label": [colour for colour in colours for _ in range(count)]})


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """Writes a tar archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def colour_members(count: int, colours: Sequence[str] = COLOURS, *, seed: int = 0) -> dict[str, bytes]:
    """Returns members of a shard: "green-1.png" with "green-1.cls", the place of the colour in `COLOURS`."""
    members = {}
    for colour in colours:
        for i in range(seed, seed + count):
            members[f"{colour}-{i}.png"] = encoded(colour, i)
            members[f"{colour}-{i}.cls"] = str(COLOURS.index(colour)).encode()
    return members

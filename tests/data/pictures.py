"""Folders of small images whose class is their colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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

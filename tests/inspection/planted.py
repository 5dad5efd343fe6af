"""Scans of digits as files, with faults that are known."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64


@cache
def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    """Smooth random pictures of several scales, as photos are; no two are alike."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        layers = [
            np.asarray(
                Image.fromarray(random.integers(0, 255, (n, n, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3), np.float32
            )
            / weight
            for n, weight in ((3, 1), (6, 2), (12, 3), (24, 5))
        ]
        mixed = sum(layers) - 60
        made.append(Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)))
    return made


@cache
def digits() -> tuple[Any, Any]:
    """The 1,797 scans of scikit-learn as (N, 32, 32) uint8, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = [Image.fromarray((scan * 15.9).astype(np.uint8)).resize((32, 32), 3) for scan in found.images]
    return np.stack([np.asarray(image) for image in images]), found.target


def write_digits(root: Path, count: int, *, wrong: int = 0) -> dict[str, str]:
    """Writes root/LABEL/NUMBER.png; the first `wrong` are in the folder of the next digit. Returns true labels."""
    images, labels = digits()
    true = {}
    for number in range(count):
        label = int(labels[number])
        given = (label + 1) % 10 if number < wrong else label
        name = f"{given}/{number}.png"
        save(Image.fromarray(images[number]), root / name)
        true[name] = str(label)
    return true


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    """Writes an image, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Returns an image after a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Returns an image less shares of its sides."""
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )

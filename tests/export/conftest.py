"""Model directories to export, and photos to compare on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deit
from deit.export.sample_photos import sample_photos

NAMES = ["ant", "bee", "cow", "dog", "elk's"]


@pytest.fixture
def model_directory(tmp_path: Path, tiny_config: Callable[..., Any], redraw: Callable[..., Any]) -> Callable[..., Path]:
    """Writes a model directory of a class given by name, and returns it; keywords are fields of the configuration."""

    def write(name: str = "DeiTForImageClassificationWithTeacher", **fields: Any) -> Path:
        folder = tmp_path / "model"
        labels = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
        redraw(getattr(deit, name)(tiny_config(**{**labels, **fields}))).save_pretrained(folder)
        processor = deit.DeiTImageProcessor(
            size={"shortest_edge": 18}, crop_size=16, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3]
        )
        processor.save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Six pictures in files: wide, tall, small, gray."""
    paths = []
    for number, image in enumerate(sample_photos(5)):
        paths.append(tmp_path / f"photo{number}.png")
        image.reduce(4).save(paths[-1])
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31), dtype=np.uint8))
    gray.save(tmp_path / "gray.png")
    return [*paths, tmp_path / "gray.png"]

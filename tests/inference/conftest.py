"""Model directories to open: tiny DeiTs of both classes and a tiny convnet of timm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deit
from deit.core.config.config import DeiTConfig
from deit.core.processing.image_processor import DeiTImageProcessor

NAMES = ["ant", "bee", "cow", "dog", "elk"]
PROCESSOR = DeiTImageProcessor(
    size={"shortest_edge": 18}, crop_size=16, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3]
)


@pytest.fixture
def deit_directory(
    tmp_path: Path, tiny_config: Callable[..., DeiTConfig], redraw: Callable[..., Any]
) -> Callable[..., Path]:
    """Writes a model directory of a class given by name, and returns it."""

    def write(name: str = "DeiTForImageClassificationWithTeacher") -> Path:
        folder = tmp_path / name
        config = tiny_config(id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)})
        redraw(getattr(deit, name)(config)).save_pretrained(folder)
        PROCESSOR.save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def timm_directory(tmp_path: Path) -> Callable[..., Path]:
    """Writes a directory in timm's own format, and returns it; keywords go into its configuration."""

    def write(**model_config: Any) -> Path:
        import timm
        from timm.models import save_for_hf

        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=5)
        folder = tmp_path / "timm-model"
        save_for_hf(model, str(folder), model_config=model_config, safe_serialization=True)
        PROCESSOR.save_pretrained(folder)
        return folder

    return write

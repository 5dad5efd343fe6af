"""The folder that training writes and everything else reads: configuration, preprocessing, weights, history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deit.core.configuration import CONFIG_NAME, read_config
from deit.core.image_processor import DeiTImageProcessor, open_image_processor
from deit.core.weight_files import PICKLE_NAME, WEIGHTS_NAME

TRAINING_NAME, STATE_NAME = "training.json", "state"


def is_model_directory(path: Path) -> bool:
    """Whether a folder holds a configuration and weights."""
    weights = (WEIGHTS_NAME, f"{WEIGHTS_NAME}.index.json", PICKLE_NAME, f"{PICKLE_NAME}.index.json")
    return (path / CONFIG_NAME).is_file() and any((path / name).is_file() for name in weights)


def kind_of_model(path: Path) -> str:
    """Returns "deit" for a model of this package (DeiT or ViT) and "timm" for one of timm's.

    Raises:
        FileNotFoundError: There is no configuration.
        ValueError: It describes neither.
    """
    values = read_config(path)
    if values.get("model_type") in ("deit", "vit"):
        return "deit"
    if "architecture" in values:  # timm's own hub format
        return "timm"
    raise ValueError(
        f"The configuration in {path} is of model type {values.get('model_type')!r}. "
        "Needed: 'deit' or 'vit', or a timm model."
    )


def read_image_processor(path: Path) -> DeiTImageProcessor:
    """Reads the preprocessing that the weights were scored with.

    Raises:
        FileNotFoundError: There is none: guessing would silently cost accuracy.
        ValueError: It is of another type, or damaged.
    """
    return open_image_processor(path)


def read_training_record(path: Path) -> dict[str, Any] | None:
    """Returns the content of `training.json`, or None for a model that was not trained here."""
    file = path / TRAINING_NAME
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record

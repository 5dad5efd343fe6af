"""Describes a model directory: which files it has, which are uploaded, and how to read them."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path
from typing import Any

from deit.core.config.config_file import read_config
from deit.core.errors import DamagedFileError, UserError, read_json, shown
from deit.core.file_names import (
    CALIBRATION_NAME,
    CARD_NAME,
    CLOUDS_NAME,
    CONFIG_NAME,
    CURVES_NAME,
    EXPORT_NAME,
    EXPORTED_FILES,
    HISTORY_NAME,
    HISTORY_TABLE_NAME,
    PICKLE_NAME,
    PREPROCESSOR_NAME,
    PROCESSOR_NAME,
    RECIPE_NAME,
    RECONSTRUCTION_NAME,
    STATE_NAME,
    TRAINING_NAME,
    WEIGHTS_NAME,
)
from deit.core.images.known_images import KnownImages
from deit.core.processing.image_processor import DeiTImageProcessor, open_image_processor

_WEIGHT_FILES = (
    WEIGHTS_NAME,
    "model.*.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index*.json",
    PICKLE_NAME,
    "pytorch_model.*.bin",
    "pytorch_model-*-of-*.bin",
    "pytorch_model.bin.index*.json",
)

# What a model directory is made of, and so all that is uploaded of one: nothing that lies beside by chance (.env, .git,
# notes), no training states, no hashes of the images. docs/architecture.md says what each is.
PUBLISHED_FILES = (
    CONFIG_NAME,
    PREPROCESSOR_NAME,
    PROCESSOR_NAME,
    *_WEIGHT_FILES,
    TRAINING_NAME,
    CARD_NAME,
    "LICENSE",
    RECIPE_NAME,
    HISTORY_NAME,
    HISTORY_TABLE_NAME,
    CURVES_NAME,
    RECONSTRUCTION_NAME,
    CALIBRATION_NAME,
    CLOUDS_NAME,
    EXPORT_NAME,
    *EXPORTED_FILES,
)


_WEIGHTS = (WEIGHTS_NAME, f"{WEIGHTS_NAME}.index.json", PICKLE_NAME, f"{PICKLE_NAME}.index.json")


def is_model_directory(path: Path) -> bool:
    """Whether a folder holds a configuration and weights."""
    return (path / CONFIG_NAME).is_file() and any((path / name).is_file() for name in _WEIGHTS)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that the weights of a model directory are in: the one file, or all parts and their index."""
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    names = (name for name in sorted(os.listdir(folder)) if any(fnmatch.fnmatchcase(name, p) for p in _WEIGHT_FILES))
    return [folder / name for name in names]


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a model or a training run, finished or not."""
    begun = (path / RECIPE_NAME).is_file() and (path / STATE_NAME).is_dir()
    return begun or (path / TRAINING_NAME).is_file() or is_model_directory(path)


def published_files(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the files in a folder that are uploaded, and the names of all others.

    Does not follow links out of the folder.
    """
    taken, left = [], []
    inside = folder.resolve()
    for name in sorted(os.listdir(folder)):
        path = folder / name
        listed = any(fnmatch.fnmatchcase(name, pattern) for pattern in PUBLISHED_FILES)
        if listed and path.is_file() and path.resolve().parent == inside:
            taken.append(name)
        elif path.is_symlink():
            left.append(f"{name} (a link to {os.readlink(path)})")
        else:
            left.append(f"{name}/" if path.is_dir() else name)
    return taken, left


def files_to_publish(folder: Path) -> tuple[list[str], list[str]]:
    """Returns `published_files` of a model directory.

    Raises:
        FileNotFoundError: It is none, or its configuration or weights are links that lead out of it.
    """
    if not is_model_directory(folder):
        raise FileNotFoundError(f"{folder} is no model directory: config.json or the weights are missing.")
    taken, left = published_files(folder)
    links = [entry for entry in left if entry.partition(" (")[0] in (CONFIG_NAME, *_WEIGHTS)]
    if links:
        raise FileNotFoundError(
            f"{folder} cannot be uploaded: {', '.join(links)} leads out of it. Copy the file itself into the folder."
        )
    return taken, left


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
    raise UserError(
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
    """Returns the content of `training.json`, or None for a model that was not trained here.

    Raises:
        DamagedFileError: It is damaged: where it has data, images, recipe and scores, they have the right form.
    """
    file = path / TRAINING_NAME
    if not file.is_file():
        return None
    record = read_json(file, "the record of a training")
    for name in ("data", "images", "recipe", "scores"):
        if not isinstance(record.get(name) or {}, dict):
            raise DamagedFileError(f"{file} is damaged: its {name!r} is no table. Received: {shown(record[name])}.")
    recipe, scores = (record.get("recipe") or {}), (record.get("scores") or {})
    settings = recipe.get("data", {})
    if not isinstance(settings, dict) or not isinstance(settings.get("val_fraction", 0.2), (int, float)):
        raise DamagedFileError(f"{file} is damaged: the settings of its data are {shown(settings)}.")
    for head, values in scores.items():
        if not isinstance(values, dict) or not all(isinstance(v, (int, float, type(None))) for v in values.values()):
            raise DamagedFileError(f"{file} is damaged: its scores {shown(head)} are {shown(values)}.")
    return record


def read_known_images(path: Path) -> KnownImages | None:
    """Returns the record of the images that a model was trained on, or None without one.

    Args:
        path: A model directory, or a weight file in one.

    Raises:
        DamagedFileError: A file is damaged.
    """
    folder = path if path.is_dir() else path.parent
    known = KnownImages.read(folder)
    if known is None:
        return None
    images = (read_training_record(folder) or {}).get("images")
    unrecorded = images.get("unrecorded") if isinstance(images, dict) else None
    return KnownImages(known.hashes, known.roles, map(str, unrecorded if isinstance(unrecorded, list) else ()))

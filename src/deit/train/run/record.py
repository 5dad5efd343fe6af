"""Collects what `training.json` holds."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

import torch

import deit
from deit.data.few_labels import count_unlabelled
from deit.data.sources import Data
from deit.train.optimization import planned_rates
from deit.train.recipes.recipe import Recipe


def data_record(
    data: Data, identity: Mapping[str, Any], left_out: Mapping[int, str], val_images_scored: int
) -> dict[str, Any]:
    """Returns the section "data" of `training.json`.

    Args:
        data: Data of the run.
        identity: From `identity_of_run`.
        left_out: Number of a training image -> why it could not be read during the run.
        val_images_scored: Number of validation images that were scored.
    """
    images, unlabelled = len(data.train.labels), count_unlabelled(data.train)
    unreadable = {
        "train_images_left_out": sorted(left_out.values()),
        "val_images_left_out": len(data.val.labels) - val_images_scored,
    }
    return {
        "train_images": images,
        **({"train_labels": images - unlabelled} if unlabelled else {}),
        "val_images": len(data.val.labels),
        "skipped_files": len(data.skipped),
        **{name: value for name, value in unreadable.items() if value},
        **({} if data.held_out is None else {"held_out": dataclasses.asdict(data.held_out)}),
        "train_fingerprint": identity["training images"],
        "val_fingerprint": identity["validation images"],
    }


def rates_record(recipe: Recipe, steps_per_epoch: int) -> dict[str, float]:
    """Returns the section "learning_rate" of `training.json`."""
    return {**dataclasses.asdict(recipe.learning_rates()), **planned_rates(recipe, steps_per_epoch=steps_per_epoch)}


def scores_record(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section "scores" of `training.json`: head -> scores by name, with the number of images."""
    return {head: {"images": each.images, **each.as_dict()} for head, each in scores.items()}


def flat_scores(scores: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Returns scores for a row of the history: all of the first head, and the main one of each other head."""
    first, *others = scores
    flat = {f"{prefix}_{name}": value for name, value in scores[first].as_dict().items()}
    main = next(iter(scores[first].as_dict()))  # such as top1
    return {**flat, **{f"{prefix}_{head}_{main}": scores[head].as_dict()[main] for head in others}}


def hardware_and_versions(device: torch.device, world_size: int) -> dict[str, Any]:
    """Returns what a result may depend on beside recipe and data."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "processes": world_size,
        "versions": {"deit": deit.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }

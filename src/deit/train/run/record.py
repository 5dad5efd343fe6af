"""Collects what `training.json` holds."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

import torch

import deit
from deit.core.scores.intervals import score_intervals
from deit.data.few_labels import count_unlabelled
from deit.data.sources import Data
from deit.runtime.devices import gpu_name
from deit.train.optimization import planned_rates
from deit.train.recipes.recipe import Recipe
from deit.train.tasks.agreement import unused_settings
from deit.train.tasks.task import Task


def task_record(task: Task, recipe: Recipe, data: Data, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `training.json` says of task, teacher and recipe.

    Args:
        task: Of the run.
        recipe: Of the run.
        data: Of the run.
        identity: From `identity_of_run`.
    """
    return {
        "task": type(task).__name__,
        "teacher": identity["teacher"],
        "teacher_fingerprint": identity["teacher_fingerprint"],
        "recipe": recipe.to_dict(),
        "unused_settings": [*task.unused, *unused_settings(recipe, task.student, task.processor, data)],
    }


def data_record(
    data: Data, identity: Mapping[str, Any], left_out: Mapping[int, str], scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the section "data" of `training.json`.

    Args:
        data: Data of the run.
        identity: From `identity_of_run`.
        left_out: Number of a training image -> why it could not be read during the run.
        scores: Of the validation images, by head; they know how many could be read.
    """
    scored = max((each.images for each in scores.values()), default=0)
    images, unlabelled = len(data.train.labels), count_unlabelled(data.train)
    unreadable = {
        "train_images_left_out": sorted(left_out.values()),
        "val_images_left_out": len(data.val.labels) - scored,
    }
    return {
        "train_images": images,
        **({"train_labels": images - unlabelled} if unlabelled else {}),
        "val_images": len(data.val.labels),
        "skipped_files": len(data.skipped),
        **{name: value for name, value in unreadable.items() if value},
        **({} if data.exclusion is None else {"excluded": data.exclusion.record()}),
        **({} if data.held_out is None else {"held_out": dataclasses.asdict(data.held_out)}),
        "train_fingerprint": identity["training images"],
        "val_fingerprint": identity["validation images"],
    }


def rates_record(recipe: Recipe, steps_per_epoch: int) -> dict[str, float]:
    """Returns the section "learning_rate" of `training.json`."""
    return {**dataclasses.asdict(recipe.learning_rates()), **planned_rates(recipe, steps_per_epoch=steps_per_epoch)}


def scores_record(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections "scores" and "intervals" of `training.json`.

    Both have an entry for each head: scores by name, with the number of images; and the two ends of the 95 % interval
    of each score that is a share of images, in percent.
    """
    return {
        "scores": {head: {"images": each.images, **each.as_dict()} for head, each in scores.items()},
        "intervals": {
            head: {name: list(ends) for name, ends in score_intervals(each).items()} for head, each in scores.items()
        },
    }


def flat_scores(scores: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Returns scores for a row of the history: all of the first head, and the main one of each other head."""
    if not scores:
        return {}
    first, *others = scores
    flat = {f"{prefix}_{name}": value for name, value in scores[first].as_dict().items()}
    main = next(iter(scores[first].as_dict()))  # such as top1
    return {**flat, **{f"{prefix}_{head}_{main}": scores[head].as_dict()[main] for head in others}}


def hardware_and_versions(device: torch.device, world_size: int) -> dict[str, Any]:
    """Returns what a result may depend on beside recipe and data."""
    return {
        "device": gpu_name(device) or platform.processor() or "cpu",
        "processes": world_size,
        "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        "versions": {"deit": deit.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }

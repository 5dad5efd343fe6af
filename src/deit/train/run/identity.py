"""Finds out what must stay the same for a run to go on, beside its recipe: teacher, images, student, preprocessing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deit.core.config.field_values import OPTIONAL_FIELDS
from deit.core.errors import UserError
from deit.data.shard_order import buffer_of
from deit.data.sources import Data, former_fingerprint
from deit.models.pretrained import PreTrainedModel
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.values import flat
from deit.train.tasks.task import Task

_IMAGES = {"training images": "train", "validation images": "val"}  # in an identity -> in the data
_BUFFER = "shuffle buffer"  # follows from where the images are if the recipe does not tell it


def identity_of_run(task: Task, data: Data, recipe: Recipe) -> dict[str, Any]:
    """Returns plain values that identify teacher, images, student and preprocessing. Hashes every image once."""
    teacher, student = task.teacher, task.student
    return {
        "teacher": teacher and teacher.name,
        "teacher_fingerprint": teacher and teacher.fingerprint(),
        **{name: getattr(data, part).fingerprint() for name, part in _IMAGES.items()},
        "student": _plain_settings(student.config) if isinstance(student, PreTrainedModel) else None,
        "preprocessing": _plain_settings(task.processor),
        _BUFFER: buffer_of(data.train, recipe.data.shuffle_buffer),
    }


def facts_of_start(identity: dict[str, Any], student: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Returns what all processes of a run must have alike when it starts: identity, settings and initial weights."""
    content = hashlib.blake2b(digest_size=8)
    for name, tensor in student.state_dict().items():
        content.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {**identity, "initial weights": content.hexdigest(), **flat(recipe.to_dict())}


def check_identity(identity: dict[str, Any], state: dict[str, Any], data: Data, out: Path) -> None:
    """Checks that a training state is of the same run.

    Args:
        identity: Of the run, from `identity_of_run`.
        state: Values of the state.
        data: Data of the run; states of older versions identify images by another rule.
        out: Folder of the run, for the message.

    Raises:
        ValueError: The state has another teacher, other images, another student or another preprocessing.
    """
    for name, value in identity.items():
        if _is_same(name, value, state, data):
            continue
        what, (found, received) = name.replace("_", " "), _differing(state.get(name), value)
        why = " Images were added, left out or swapped for others." if name in _IMAGES else ""
        raise UserError(f"The run in {out} has another {what}: {found}. Received: {received}.{why}")


def _is_same(name: str, value: Any, state: dict[str, Any], data: Data) -> bool:
    if name in _IMAGES and name not in state:
        return name == "validation images"  # not recorded by older versions
    found = state.get(name, 0 if name == _BUFFER else None)
    if name == "student" and isinstance(found, dict) and isinstance(value, dict):
        found = {
            **{key: OPTIONAL_FIELDS[key] for key in value if key in OPTIONAL_FIELDS},
            **found,
        }  # of an older version
    if found == value:
        return True
    return name in _IMAGES and state[name] == former_fingerprint(getattr(data, _IMAGES[name]))


def _plain_settings(settings: Any) -> dict[str, Any]:
    """Returns the settings of a model or a processor as JSON gives them back."""
    values: dict[str, Any] = json.loads(json.dumps(settings.to_dict(), default=str))
    return values


def _differing(found: Any, received: Any) -> tuple[Any, Any]:
    """Returns two values; of dicts, only the entries that differ."""
    if not (isinstance(found, dict) and isinstance(received, dict)):
        return found, received
    names = sorted(name for name in found.keys() | received.keys() if found.get(name) != received.get(name))
    return {name: found.get(name) for name in names}, {name: received.get(name) for name in names}

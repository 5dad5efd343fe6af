"""Joins the inputs of pipelines into batches and splits the outputs of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def together(prepared: Sequence[Any]) -> list[tuple[Any, int]]:
    """Joins preprocessed images into one batch, or into batches of one if their tensors differ in size.

    Args:
        prepared: For each image a dict with tensors (1, ...); other values are collected in lists.

    Returns:
        Pairs of a batch and the number of its images. A single image stays as it is.
    """
    shapes = {tuple((k, v.shape) for k, v in one.items() if isinstance(v, Tensor)) for one in prepared}
    if len(prepared) == 1 or len(shapes) > 1:
        return [(one, 1) for one in prepared]
    batch = {name: [one[name] for one in prepared] for name in prepared[0]}
    joined = {k: torch.cat(v) if isinstance(v[0], Tensor) and v[0].ndim else v for k, v in batch.items()}
    return [(joined, len(prepared))]


def apart(outputs: Any, count: int) -> list[Any]:
    """Splits the output of a model for a batch into outputs for single images.

    Args:
        outputs: An output, dict or tuple of tensors (B, ...), or a tensor.
        count: Images in the batch, B.

    Returns:
        For each image the same with tensors (1, ...).
    """
    return [outputs] if count == 1 else [_part(outputs, i, count) for i in range(count)]


def _part(value: Any, i: int, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[i : i + 1] if value.ndim else value
    if isinstance(value, Mapping):
        return _like(value, {k: _part(v, i, count) for k, v in value.items()})
    if isinstance(value, tuple):
        return tuple(_part(v, i, count) for v in value)
    if isinstance(value, list):  # of what is no tensor: one for each image
        return value[i] if len(value) == count else [_part(v, i, count) for v in value]
    return value


def _like(mapping: Mapping[str, Any], values: dict[str, Any]) -> Mapping[str, Any]:
    """Returns values as an output of the same class; of what is no output of a model, as a dict."""
    return type(mapping)(**values) if hasattr(mapping, "to_tuple") else values


def moved(value: Any, device: torch.device) -> Any:
    """Returns dicts, tuples and lists with their tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return _like(value, {k: moved(v, device) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, device) for v in value)
    return value


def first_tensor(outputs: Any) -> Tensor | None:
    """Returns the first tensor of an output, dict or tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)

"""Builds students with timm's architectures, such as convnets to use as teachers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.file_names import CONFIG_NAME
from deit.core.processing.image_processor import evaluation_processor
from deit.core.weights.inferred_config import infer_config
from deit.core.weights.names import network_names
from deit.models.timm.models import create_timm, refuse_large_timm
from deit.models.trunk.position_embedding import resize_position_embedding
from deit.models.weights.finiteness import refuse_non_finite
from deit.models.weights.from_pretrained import Checkpoint, FileOptions, open_checkpoint
from deit.models.weights.initialization import InitReport
from deit.train.recipes.recipe import Recipe
from deit.train.teachers.label_matching import head_rows

_COUNTER = "num_batches_tracked"  # of batch norm; unused here, and old files lack it


def timm_architecture(checkpoint: Checkpoint) -> str | None:
    """Returns timm's name of a checkpoint's architecture if this package does not have it, else None."""
    values = folder_values(checkpoint)
    if "architecture" not in values or "model_type" in values:
        return None
    try:
        infer_config(checkpoint.source.shapes, values)
    except UserError:
        return str(values["architecture"])
    return None


def build_timm(
    architecture: str,
    classes: Sequence[str],
    recipe: Recipe,
    size: tuple[int, int] | None,
    init: str | Path | None,
) -> dict[str, Any]:
    """Builds a model of timm, new or from a checkpoint in timm's dialect.

    Args:
        architecture: timm's name.
        classes: Class names.
        recipe: The evaluation crop is used.
        size: (height, width) in pixels; None uses the checkpoint's, or else the architecture's.
        init: Model directory of timm, or a file of its tensors.

    Returns:
        The fields of a `Student`.

    Raises:
        ValueError: timm has no such model, or the checkpoint has another architecture.
        OSError: The checkpoint cannot be found.
    """
    checkpoint = None if init is None else open_checkpoint(init, FileOptions())
    values: Mapping[str, Any] = {} if checkpoint is None else folder_values(checkpoint)
    own = str(values.get("architecture", architecture))
    if own.partition(".")[0] != architecture.partition(".")[0]:
        raise UserError(f"{init} holds timm's {own}, but the student is timm/{architecture}. Pass the same one.")
    given = values.get("model_args") or {}
    options = {key: value for key, value in given.items() if key != "num_classes"} if isinstance(given, Mapping) else {}
    if checkpoint is not None:
        refuse_large_timm(architecture, options, checkpoint.source, checkpoint.name)
    model = create_timm(architecture, num_classes=len(classes), **options)
    cfg: dict[str, Any] = {**model.pretrained_cfg, **(values.get("pretrained_cfg") or {})}  # type: ignore[dict-item]
    if size is None:
        height, width = cfg["input_size"][1:]
        size = (int(height), int(width))
    if cfg.get("fixed_input_size") and size != tuple(model.pretrained_cfg["input_size"][1:]):  # type: ignore[index]
        # Transformers are built for one size.
        model = create_timm(architecture, num_classes=len(classes), **{**options, "img_size": size})
    processor = evaluation_processor(size, crop_ratio=recipe.crop_ratio, mean=cfg["mean"], std=cfg["std"])
    report = None
    if checkpoint is not None:
        model.name_or_path = str(checkpoint.path)  # type: ignore[assignment]
        report = _fill(model, checkpoint, classes, values.get("label_names"))
    return {"model": model, "processor": processor, "report": report}


def folder_values(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Returns the configuration of a checkpoint that is a folder, else an empty mapping."""
    path = checkpoint.path
    return read_config(path) if path is not None and (path / CONFIG_NAME).is_file() else {}


@torch.no_grad()
def _fill(model: nn.Module, checkpoint: Checkpoint, classes: Sequence[str], known: Sequence[str] | None) -> InitReport:
    files = {own: name for name, own in network_names(checkpoint.source.shapes).items()}
    shapes = {own: checkpoint.source.shapes[name] for own, name in files.items()}
    state: dict[str, Tensor] = model.state_dict()
    named: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = {f"{head}.{kind}" for head in ([named] if isinstance(named, str) else named) for kind in ("weight", "bias")}
    count = next((shapes[name][0] for name in sorted(heads) if name in shapes), 0)
    rows, notes = head_rows(known, count, classes)
    lost = [name for name in state if name not in shapes and name not in heads and not name.endswith(_COUNTER)]
    other = [n for n in state if n in shapes and n not in heads and n != "pos_embed" and shapes[n] != state[n].shape]
    if lost or other:
        what = f"lacks {lost[0]!r}" if lost else f"has {other[0]!r} in another shape, {shapes[other[0]]}"
        raise UserError(
            f"{checkpoint.name} does not fit the student {type(model).__name__}: it {what}. Start from the same "
            "architecture, and from the same image size if the weights depend on it."
        )
    taken = [n for n in state if n in shapes and (n not in heads or rows is not None)]
    tensors = {name: torch.empty(shapes[name], dtype=checkpoint.source.dtypes[files[name]]) for name in taken}
    checkpoint.source.read_into({files[name]: tensor for name, tensor in tensors.items()})
    refuse_non_finite(tensors.items(), checkpoint.name)
    resized = []
    for name, tensor in tensors.items():
        if name in heads and rows is not None:
            tensor = tensor[list(rows)]
        elif name == "pos_embed" and tensor.shape != state[name].shape:
            resized.append((name, tuple(tensor.shape), tuple(state[name].shape)))
            tensor = _resized(tensor, model)
        state[name].copy_(tensor)
    whole = [name for name in taken if name not in {entry[0] for entry in resized}]
    return InitReport(
        source=str(checkpoint.name),
        loaded=tuple((name, tuple(state[name].shape)) for name in whole),
        resized=tuple(resized),
        new=tuple((name, tuple(tensor.shape)) for name, tensor in state.items() if name not in tensors),
        dropped=tuple((name, shape) for name, shape in shapes.items() if name not in tensors),
        notes=notes,
    )


def _resized(positions: Tensor, model: Any) -> Tensor:
    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    side = math.isqrt(positions.shape[1] - prefix)
    if side * side != positions.shape[1] - prefix:
        raise UserError(
            f"pos_embed of the checkpoint has {positions.shape[1]} positions, which with {prefix} prefix "
            "tokens do not form a square image. Start from a checkpoint of square images."
        )
    grid = tuple(model.patch_embed.grid_size)
    return resize_position_embedding(positions.float(), (side, side), grid, num_prefix_positions=prefix)

"""Plans the loading of a checkpoint from names and shapes, for every framework."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deit.core.config.config import as_config
from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.weights.inferred_config import infer_config
from deit.core.weights.names import TRUNK, Part, layout, match_prefix, places

NO_QUANTIZATION = (
    "Quantized weights are not supported. Open weights of 16 or 32 bits (dtype=torch.bfloat16 halves the memory) and "
    "quantize the model afterwards, for example with torchao."
)
MOST_NEW_NUMBERS = 1 << 26  # 256 MiB in fp32: heads of 40,000 classes on DeiT-base, twice


@dataclass(kw_only=True)
class LoadingInfo:
    """Mismatches of a loaded checkpoint, in the names of its dialect.

    Attributes:
        missing_keys: Tensors of the model that the file lacks; they keep their initial values.
        unexpected_keys: Tensors of the file that the model lacks.
        mismatched_keys: (name, shape in the file, shape in the model) of tensors that kept their initial values.
        error_msgs: Always empty, because errors are raised. Exists because transformers has this key.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    error_msgs: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, as sets where transformers has sets."""
        return {name: value if name == "error_msgs" else set(value) for name, value in vars(self).items()}


@dataclass(kw_only=True)
class LoadingPlan:
    """Maps the tensors of a file to those of a model.

    Attributes:
        found: Name in the file -> place in the model.
        missing: Expected name in the file -> place in the model without a tensor of the file.
        unexpected: Names in the file without a place.
    """

    found: dict[str, Part]
    missing: dict[str, Part]
    unexpected: list[str]


def plan_loading(
    file_names: Iterable[str], model_names: Iterable[str], *, base_prefix: str, dialect: str
) -> LoadingPlan:
    """Maps the names of a file to those of a model. Names missing tensors in the dialect of the file.

    Args:
        file_names: Names of all tensors of the file.
        model_names: Names of all tensors of the model.
        base_prefix: Prefix of the trunk in a model with heads, such as `deit.`.
        dialect: Dialect of the file, see `deit.core.weights.names.detect_dialect`.
    """
    file_names, model_names = list(file_names), list(model_names)
    expected = layout(model_names, dialect)
    found = {name: expected[name] for name in file_names if name in expected}
    others = [name for name in file_names if name not in expected]
    translated = places(file_names, dialect) if others else {}
    matched = match_prefix((part.name for part in translated.values()), model_names, base_prefix)
    known = set(model_names)
    unexpected = []
    for name in others:
        part = translated[name]
        own = matched[part.name]
        if own in known:
            found[name] = Part(name=own, index=part.index, count=part.count)
        else:
            unexpected.append(name)
    filled = {(part.name, part.index) for part in found.values()}
    missing = {name: part for name, part in expected.items() if (part.name, part.index) not in filled}
    return LoadingPlan(found=found, missing=missing, unexpected=unexpected)


def refuse_missing_trunk(missing: Mapping[str, Part], model_name: str, source: object) -> None:
    """Checks that only heads and the mask token are missing.

    Raises:
        ValueError: Another tensor is missing.
    """
    lost = [name for name, part in missing.items() if TRUNK in part.name and not part.name.endswith("mask_token")]
    if lost:
        raise UserError(
            f"{source} lacks {len(lost)} tensors that {model_name} needs, such as {lost[0]!r}. "
            "Is it a checkpoint of another architecture or depth?"
        )


def numbers_of(config: Any) -> int:
    """Returns the number of weights of a model, without layer scale and additions of subclasses."""
    width, patches = config.hidden_size, config.grid_size[0] * config.grid_size[1]
    block = width * (4 * width + 2 * config.intermediate_size)
    patch = config.num_channels * config.grid_patch_size[0] * config.grid_patch_size[1]
    heads = config.num_labels * width * (2 if config.num_prefix_tokens == 2 else 1)
    return int(config.num_hidden_layers * block + width * (patch + patches) + heads)


def refuse_larger_than_file(config: Any, shapes: Mapping[str, tuple[int, ...]], source: object) -> None:
    """Checks before a model is built that the file can hold its weights, except for new heads and positions.

    Raises:
        ValueError: The configuration describes a larger model.
    """
    held = sum(math.prod(shape) for shape in shapes.values())
    needed = numbers_of(config)
    if needed > held + MOST_NEW_NUMBERS:
        raise UserError(
            f"The configuration describes {needed:,} numbers, but {source} holds {held:,}. It belongs to other "
            "weights, or is damaged."
        )


def resolve_config(
    config_class: type[Any],
    config: Any,
    kwargs: dict[str, Any],
    *,
    path: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    source: object,
) -> tuple[Any, dict[str, Any]]:
    """Returns the checked configuration of a checkpoint, and the keywords that are not fields of it.

    Weights of the original release and of timm have no complete configuration; it is inferred from their tensors.

    Args:
        config_class: Class of configuration that the model needs.
        config: Configuration that replaces the checkpoint's, or its path.
        kwargs: Overrides of fields, and other keywords.
        path: Folder or file of the checkpoint; None for tensors in memory, which need `config`.
        shapes: Shapes of all its tensors.
        source: Name of the checkpoint for messages.

    Raises:
        FileNotFoundError: The folder has no configuration.
        ValueError: The configuration is damaged, describes another kind of model, or a larger one than the file holds.
    """
    found, rest = _given_or_found(config_class, config, kwargs, path=path, shapes=shapes, source=source)
    found.validate()
    if getattr(found, "quantization_config", None) is not None:
        raise UserError(f"The configuration of {source} has a quantization_config. {NO_QUANTIZATION}")
    refuse_larger_than_file(found, shapes, source)
    return found, rest


def _given_or_found(
    config_class: type[Any],
    config: Any,
    kwargs: dict[str, Any],
    *,
    path: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    source: object,
) -> tuple[Any, dict[str, Any]]:
    if isinstance(config, (str, os.PathLike)):
        return config_class.from_pretrained(config, return_unused_kwargs=True, **kwargs)
    if config is not None:
        return copy.deepcopy(as_config(config, config_class, "from_pretrained")), kwargs
    if path is None:
        raise UserError("A state dict without a path needs config=.")
    values = read_config(path) if path.is_dir() else {}
    if path.is_dir() and "architecture" not in values:
        return config_class.from_pretrained(path, return_unused_kwargs=True, **kwargs)
    inferred = infer_config(shapes, values, source=source)
    if inferred.model_type != config_class.model_type:
        raise UserError(
            f"{source} holds a model of type {inferred.model_type!r}, {config_class.__name__} needs "
            f"{config_class.model_type!r}."
        )
    return config_class.from_dict(inferred.to_dict(), return_unused_kwargs=True, **kwargs)

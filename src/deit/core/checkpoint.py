"""Weight files: their names for each tensor, and reading them without surprises.

Translation works on names alone, so it is the same for every framework: for each tensor of the network it
says which tensors of the file make it up (the three of query, key and value are joined into one).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

WEIGHTS_NAME = "model.safetensors"

# The trunk: name in the network (timm's and the original code's) <-> name in published files.
# "{}" stands for the number of the block.
_TRUNK_NAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("blocks.{}.norm1", "encoder.layer.{}.layernorm_before"),
    ("blocks.{}.attn.qkv", "encoder.layer.{}.attention.attention.{{query,key,value}}"),
    ("blocks.{}.attn.proj", "encoder.layer.{}.attention.output.dense"),
    ("blocks.{}.norm2", "encoder.layer.{}.layernorm_after"),
    ("blocks.{}.mlp.fc1", "encoder.layer.{}.intermediate.dense"),
    ("blocks.{}.mlp.fc2", "encoder.layer.{}.output.dense"),
    ("norm", "layernorm"),
)
_FUSED = re.compile(r"\{query,key,value\}")
_QKV = ("query", "key", "value")

TRUNK = "trunk."


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where a tensor of a file sits in a tensor of the network.

    Attributes:
        name: Name of the tensor in the network.
        index: Which part of it, counted along the first axis.
        count: In how many equal parts the tensor is split in the file (3 for query, key and value).
    """

    name: str
    index: int = 0
    count: int = 1


def _compile_trunk_names() -> list[tuple[re.Pattern[str], str, str]]:
    rows = []
    for ours, theirs in _TRUNK_NAMES:
        pattern = re.escape(ours).replace(r"\{\}", r"(\d+)")
        rows.append((re.compile(rf"^{pattern}(\.weight|\.bias)?$"), ours, theirs))
    return rows


_COMPILED = _compile_trunk_names()


def file_names(name: str, base_prefix: str) -> list[str]:
    """Returns the published names of one tensor of the network.

    Args:
        name: Name in the network, such as `deit.trunk.blocks.0.attn.qkv.weight`.
        base_prefix: Name of the trunk's model in a model with heads, such as `deit.`; in a bare model the
            names have no prefix.

    Returns:
        One name, or three in the order query, key, value.

    Example:
        >>> file_names("deit.trunk.blocks.0.norm1.bias", "deit.")
        ['deit.encoder.layer.0.layernorm_before.bias']
    """
    prefix = base_prefix if name.startswith(base_prefix) else ""
    rest = name.removeprefix(prefix)
    if not rest.startswith(TRUNK):
        return [name]  # heads, pooler and decoder have the same names everywhere
    rest = rest.removeprefix(TRUNK)
    for pattern, _, theirs in _COMPILED:
        match = pattern.match(rest)
        if match:
            groups = match.groups()
            suffix = groups[-1] or ""
            full = prefix + theirs.format(*groups[:-1]) + suffix
            return [_FUSED.sub(part, full) for part in _QKV] if _FUSED.search(full) else [full]
    return [name]


def layout(names: Iterable[str], base_prefix: str) -> dict[str, Part]:
    """Returns, for every tensor of a published file, its place in the network.

    Args:
        names: Names of all tensors of the network.
        base_prefix: See `file_names`.

    Returns:
        File name -> part of a network tensor.
    """
    table = {}
    for name in names:
        published = file_names(name, base_prefix)
        for index, file_name in enumerate(published):
            table[file_name] = Part(name=name, index=index, count=len(published))
    return table


def match_prefix(file_tensor_names: Iterable[str], table: dict[str, Part], base_prefix: str) -> dict[str, str]:
    """Relates the names in a file to those a model expects when one of the two is a bare trunk.

    A model with heads can be started from a bare trunk's file, and a bare trunk from a file with heads.

    Args:
        file_tensor_names: Names found in the file.
        table: Result of `layout` for the model.
        base_prefix: See `file_names`.

    Returns:
        File name -> name in `table`, for all names of the file (unknown ones map to themselves).
    """
    file_tensor_names = list(file_tensor_names)
    file_has_prefix = any(n.startswith(base_prefix) for n in file_tensor_names)
    model_has_prefix = any(n.startswith(base_prefix) for n in table)
    if file_has_prefix and not model_has_prefix:
        return {n: n.removeprefix(base_prefix) for n in file_tensor_names}
    if model_has_prefix and not file_has_prefix:
        return {n: n if n in table else base_prefix + n for n in file_tensor_names}
    return {n: n for n in file_tensor_names}


def find_weights(folder: Path) -> Path:
    """Returns the weight file of a model directory.

    Raises:
        FileNotFoundError: The folder or the file is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No model directory at {folder}.")
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"No {WEIGHTS_NAME} in {folder}. Is it a model directory, as save_pretrained writes it?"
        )
    return file

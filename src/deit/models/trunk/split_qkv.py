"""Query, key and value as three layers in place of one: the layers, and the names of their tensors.

The fused projection is faster. Three layers are what LoRA and other tools look for by name; the numbers are the same. A
model is always filled and written in the fused form, so that files do not depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.models.trunk.construction import linear_like
from deit.models.trunk.vision_transformer import Attention

_FUSED = re.compile(r"(?P<before>(?:.+\.)?blocks\.\d+\.attn\.)qkv(?P<kind>\.weight|\.bias)")


def split_model(model: nn.Module, names: tuple[str, str, str]) -> None:
    """Gives every attention of a model three layers with the values of its fused projection; others stay as they are.

    Args:
        model: A model of this package.
        names: Of the layers for query, key and value.
    """
    for module in list(model.modules()):
        if isinstance(module, Attention):
            split_attention(module, names)


@torch.no_grad()
def split_attention(attention: Attention, names: tuple[str, str, str]) -> None:
    """Puts three layers with the same values in the place of the fused one, unless that was done before.

    Args:
        attention: The module to change.
        names: Of the layers for query, key and value.

    Raises:
        ValueError: The module has an attribute of that name.
    """
    fused = attention.qkv
    if fused is None:
        return
    taken = [name for name in names if hasattr(attention, name)]
    if taken:
        raise UserError(f"qkv_names: {taken[0]!r} is taken by another part of the attention. Choose another name.")
    weights = fused.weight.chunk(3)
    biases = (None,) * 3 if fused.bias is None else fused.bias.chunk(3)
    for name, weight, bias in zip(names, weights, biases, strict=True):
        setattr(attention, name, linear_like(fused, weight, bias))
    attention.qkv, attention.qkv_names = None, names


def split_tensors(state: Mapping[str, Tensor], names: tuple[str, str, str]) -> Mapping[str, Tensor]:
    """Returns a state dict of a fused model under the names of three layers; one that is split already as it is."""
    if not any(_FUSED.fullmatch(name) for name in state):
        return state
    result = {}
    for name, tensor in state.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            result[name] = tensor
            continue
        for own, piece in zip(names, tensor.chunk(3), strict=True):
            result[f"{match['before']}{own}{match['kind']}"] = piece
    return result


def join_tensors(state: Mapping[str, Tensor], names: tuple[str, str, str]) -> Mapping[str, Tensor]:
    """Returns a state dict with three layers under the names of a fused model; one without them as it is."""
    first = re.compile(rf"(?P<before>(?:.+\.)?blocks\.\d+\.attn\.){re.escape(names[0])}(?P<kind>\.weight|\.bias)")
    result = dict(state)
    for name in state:
        match = first.fullmatch(name)
        parts = [f"{match['before']}{own}{match['kind']}" for own in names] if match else []
        if match and all(part in state for part in parts):
            result[f"{match['before']}qkv{match['kind']}"] = torch.cat([result.pop(part) for part in parts])
    return result if len(result) < len(state) else state

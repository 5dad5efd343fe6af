"""Removal of attention heads."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deit.models.trunk.construction import linear_like
from deit.models.trunk.vision_transformer import Attention


@torch.no_grad()
def prune(attention: Attention, heads: Iterable[int]) -> None:
    """Removes heads for good: their rows of the projection to query, key and value, and their columns of the other.

    Args:
        attention: The module to change.
        heads: Numbers as in the whole model; those removed before are ignored.
    """
    removed = set(heads)
    kept = [head for head in attention.heads if head not in removed]
    places = torch.tensor([attention.heads.index(head) for head in kept], device=attention.proj.weight.device)
    within = torch.arange(attention.head_width, device=places.device)
    columns = (places[:, None] * attention.head_width + within).flatten()
    rows = torch.cat([part * len(attention.heads) * attention.head_width + columns for part in range(3)])
    for name in attention.qkv_names or ("qkv",):
        setattr(attention, name, _with_rows(getattr(attention, name), columns if attention.qkv_names else rows))
    attention.proj = linear_like(attention.proj, attention.proj.weight[:, columns], attention.proj.bias)
    attention.heads = kept


def _with_rows(layer: nn.Linear, rows: Tensor) -> nn.Linear:
    return linear_like(layer, layer.weight[rows], None if layer.bias is None else layer.bias[rows])

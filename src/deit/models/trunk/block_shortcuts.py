"""Less work for the same numbers in a block: prefix tokens alone, and no work for samples that drop path skips.

A shortcut is taken only around modules that `is_untouched` knows; everything else is called as it is.

Letters in shape comments: B batch, N tokens, D embedding dimension, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deit.models.trunk.cpu_kernels import Forwards, is_untouched, linear, linear_rows
from deit.models.trunk.gradients import attend_of_few, backward_by_hand


def run_block(
    block: Any, x: Tensor, implementation: str, bias: Tensor | None, head_mask: Tensor | None, forwards: Forwards
) -> tuple[Tensor, Tensor | None]:
    """Calls a block; in training on the CPU it leaves out the samples that drop path skips.

    On a GPU asking which samples are skipped would make it wait.

    Args:
        block: A `Block`, or what a user has put in its place.
        x: (B, N, D).
        implementation: As in `Block.forward`.
        bias: As in `Block.forward`.
        head_mask: As in `Block.forward`.
        forwards: What an untouched block is made of; see `is_untouched`.
    """
    if implementation != "eager" and bias is None and head_mask is None and _skips_samples(block, x, forwards):
        x = _add_kept(block, x, lambda kept: block.attn(block.norm1(kept), implementation, None, None)[0], block.ls1)
        return _add_kept(block, x, lambda kept: block.mlp(block.norm2(kept)), block.ls2), None
    result: tuple[Tensor, Tensor | None] = block(x, implementation, bias, head_mask)
    return result


def _skips_samples(block: nn.Module, x: Tensor, forwards: Forwards) -> bool:
    return block.training and backward_by_hand(x) and is_untouched(block, forwards) and _drops_paths_alone(block)


def _drops_paths_alone(block: Any) -> bool:
    return block.drop_path.is_active and not _has_dropout(block)


def _has_dropout(block: Any) -> bool:
    """Whether dropout acts. A shortcut would give it other shapes to draw for, so a hook would change a run."""
    return (block.drop.training and block.drop.p > 0.0) or (block.attn.training and block.attn.dropout_rate > 0.0)


def _add_kept(block: Any, x: Tensor, branch: Callable[[Tensor], Tensor], scale: nn.Module) -> Tensor:
    """Adds a residual branch that is computed for those samples only that drop path lets through."""
    kept = block.drop_path.draw(x).flatten().nonzero().flatten()
    factor = 0.0
    if len(kept):
        factor = 1.0 / (1.0 - block.drop_path.rate)
    else:  # one sample for nothing, so that every parameter has a gradient
        kept = kept.new_zeros(1)
    if len(kept) == len(x):
        return torch.add(x, scale(branch(x)).to(x.dtype), alpha=factor)
    y = scale(branch(x.index_select(0, kept)))
    return x.index_add(0, kept, y.to(x.dtype), alpha=factor)


def can_compute_prefix(block: nn.Module, forwards: Forwards) -> bool:
    """Whether `compute_prefix` may stand for a block: nobody watches or changed anything in it, and no dropout acts."""
    return is_untouched(block, forwards) and not _has_dropout(block)


def compute_prefix(block: Any, x: Tensor, count: int) -> Tensor:
    """Computes an untouched block for its first tokens alone, without masks.

    Args:
        block: A `Block`.
        x: (B, N, D).
        count: Number of first tokens; all N are attended to.

    Returns:
        (B, count, D), the first rows of what `Block.forward` would return.
    """
    mixed = _attend_of_first(block.attn, block.norm1(x), count)
    x = x[:, :count] + block.drop_path(block.ls1(mixed)).to(x.dtype)
    branch: Tensor = block.drop_path(block.ls2(block.mlp(block.norm2(x))))
    return x + branch.to(x.dtype)


def _attend_of_first(attention: Any, x: Tensor, count: int) -> Tensor:
    batch, tokens, _ = x.shape
    heads = len(attention.heads)
    inner = heads * attention.head_width
    if attention.qkv is None:
        first, second, third = (getattr(attention, name) for name in attention.qkv_names)
        queries, both = linear(first, x[:, :count]), torch.cat((linear(second, x), linear(third, x)), dim=-1)
    else:
        queries = linear_rows(attention.qkv, x[:, :count], 0, inner)
        both = linear_rows(attention.qkv, x, inner, 3 * inner)
    query = queries.view(batch, count, heads, -1).transpose(1, 2)
    both = both.view(batch, tokens, 2, heads, -1)
    key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, d)
    mixed = attend_of_few(query, key, value)
    return linear(attention.proj, mixed.transpose(1, 2).reshape(batch, count, -1))

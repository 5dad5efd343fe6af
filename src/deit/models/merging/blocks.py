"""Blocks and a trunk that merge tokens; the weights, their names and the configuration are those of the plain ones.

Letters in shape comments: B batch, N tokens, D embedding dimension, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deit.core.errors import UserError
from deit.models.merging.matching import follow, match, merge, most_merged, take_rows
from deit.models.trunk.attention import choose_implementation
from deit.models.trunk.cpu_kernels import Forwards, attend, can_attend, first_tokens, linear
from deit.models.trunk.gradients import attend_by_hand
from deit.models.trunk.vision_transformer import BLOCK_FORWARDS, Attention, Block, TrunkOutput, VisionTransformer


class MergingAttention(Attention):
    """Attention to tokens of several sizes: one that stands for s patches counts as s tokens (section 3, equation 1).

    The logarithm of the size is added to the scores. PyTorch's fused attention for the CPU takes such a bias, so it is
    used as without sizes.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, implementation: str, sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Maps tokens (B, N, D) to tokens (B, N, D), and returns their keys (B, N, H, d).

        Args:
            x: (B, N, D).
            implementation: As in `Attention.forward`.
            sizes: (B, N), how many patches each token stands for; None for one each.
        """
        qkv = self.project(x).unflatten(2, (3, len(self.heads), self.head_width))  # (B, N, 3, H, d)
        dropout_rate = self.dropout_rate if self.training else 0.0
        bias = size_bias(sizes, qkv.dtype)
        if bias is not None and implementation == "sdpa" and not dropout_rate and can_attend(qkv):
            mixed = attend_by_hand(qkv, bias)
        else:
            mixed, _ = attend(qkv, implementation, bias, None, dropout_rate)
        return linear(self.proj, mixed), qkv[:, :, 1]


class MergingBlock(Block):
    """A block that merges patch tokens between its attention and its MLP."""

    def forward(  # type: ignore[override]
        self, x: Tensor, implementation: str, sizes: Tensor | None, prefix: int, r: int, origins: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Maps tokens (B, N, D) to tokens (B, N - r, D).

        Args:
            x: (B, N, D).
            implementation: As in `Attention.forward`.
            sizes: (B, N), how many patches each token stands for; None for one each.
            prefix: Number of first tokens that are never merged.
            r: Number of tokens to merge, at most half of the patch tokens.
            origins: (B, tokens at first), the token that holds each of them; empty if nothing is merged yet, None where
                nobody asks.

        Returns:
            The tokens, their sizes, and the origins.
        """
        mixed, keys = self.attn(self.norm1(x), implementation, sizes)
        x = x + self.drop_path(self.ls1(self.drop(mixed))).to(x.dtype)
        if r:
            matching = match(keys, prefix, r)
            x, sizes = merge(x, sizes, matching)
            if origins is not None:
                origins = follow(origins if origins.numel() else None, matching)
        x = x + self.drop_path(self.ls2(self.drop(self.mlp(self.norm2(x))))).to(x.dtype)
        return x, sizes, origins


class MergingTransformer(VisionTransformer):
    """A trunk whose blocks merge tokens.

    What it returns has one row for each token at first: a merged token stands in the place of every token in it. So
    hidden states and patch tokens have the usual shape, and their mean is that of the tokens weighted by their sizes.

    Attributes:
        schedule: Number of tokens that each block but the last merges. The last would merge none that is used.
    """

    schedule: tuple[int, ...]

    def forward(
        self,
        pixels: Tensor,
        patch_mask: Tensor | None = None,
        *,
        interpolate: bool = False,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        need_hidden_states: bool = False,
        need_attentions: bool = False,
        prefix_only: bool = False,
    ) -> TrunkOutput:
        """Runs the network; arguments as in `VisionTransformer.forward`.

        Raises:
            ValueError: Masks or attention maps are asked for; or pixels have the wrong shape.
        """
        _refuse(attention_mask, head_mask, need_attentions)
        x = self.embed(pixels, patch_mask, interpolate)
        prefix, last = self.num_prefix_tokens, len(self.blocks) - 1
        sizes, tokens = None, None
        follows = need_hidden_states or not prefix_only
        origins = x.new_empty(0, dtype=torch.long) if follows else None
        hidden_states = [x]
        plain = self.config._attn_implementation == "sdpa" and not (self.training and self.checkpointing)
        shortens = prefix_only and plain and not need_hidden_states
        for i, block in enumerate(self.blocks):
            if shortens and i == last:
                tokens = first_tokens(block, self.norm, x, prefix, MERGING_FORWARDS, size_bias(sizes, x.dtype))
            if tokens is None:
                r = most_merged(self.schedule[i], x.shape[1] - prefix) if i < last else 0
                implementation = choose_implementation(self.config._attn_implementation, False, None, sizes)
                x, sizes, origins = self._run(i, block, x, implementation, sizes, prefix, r, origins)
            if need_hidden_states:
                hidden_states.append(_spread(x, origins))
        tokens = self.norm(x) if tokens is None else tokens
        return TrunkOutput(
            tokens=tokens[:, :prefix] if prefix_only else _spread(tokens, origins),
            hidden_states=tuple(hidden_states) if need_hidden_states else None,
            attentions=None,
        )

    def _run(self, number: int, block: Any, *arguments: Any) -> Any:
        if self.training and self.checkpointing is not None and number % self.checkpointing.every == 0:
            return self.checkpointing(_call, block, *arguments)
        return block(*arguments)

    def extra_repr(self) -> str:
        """Shows the schedule."""
        return f"merges={self.schedule}"


# What an untouched block that merges is made of; see `cpu_kernels.is_untouched`.
MERGING_FORWARDS: Forwards = {
    **BLOCK_FORWARDS,
    MergingBlock: MergingBlock.forward,
    MergingAttention: MergingAttention.forward,
}


def size_bias(sizes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns what sizes (B, N) add to the scores, (B, 1, 1, N), or None."""
    return None if sizes is None else sizes.log().to(dtype)[:, None, None]


def _refuse(attention_mask: Tensor | None, head_mask: Tensor | None, need_attentions: bool) -> None:
    asked = {
        "attention_mask": attention_mask is not None,
        "head_mask": head_mask is not None,
        "output_attentions": need_attentions,
    }
    received = [name for name, is_asked in asked.items() if is_asked]
    if received:
        raise UserError(
            f"This model merges tokens, so its blocks have different tokens and {received[0]} has no meaning. Turn "
            "merging off first: deit.merge_tokens(model, 0), or token_merging={} in from_pretrained."
        )


def _call(block: Any, *arguments: Any) -> Any:
    return block(*arguments)


def _spread(x: Tensor, origins: Tensor | None) -> Tensor:
    """Returns the tokens in the places of those that they hold, (B, tokens at first, D)."""
    return x if origins is None or not origins.numel() else take_rows(x, origins)


def turn_on(trunk: VisionTransformer, schedule: Sequence[int]) -> None:
    """Lets a trunk merge tokens from now on; `schedule` as in `MergingTransformer`."""
    for block in trunk.blocks:
        block.__class__ = MergingBlock
        block.attn.__class__ = MergingAttention
    trunk.__class__ = MergingTransformer
    trunk.schedule = tuple(schedule)  # type: ignore[assignment]


def turn_off(trunk: MergingTransformer) -> None:
    """Ends `turn_on`."""
    for block in trunk.blocks:
        block.__class__ = Block
        block.attn.__class__ = Attention
    del trunk.schedule
    trunk.__class__ = VisionTransformer  # type: ignore[assignment]

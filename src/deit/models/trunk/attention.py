"""How attention is computed: the implementations that a configuration can name, and the masks they take.

Letters in shape comments: B batch, N tokens, H heads, d width of a head, L depth.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import MissingPackageError, UserError
from deit.runtime.library_order import make_order_safe

logger = logging.getLogger(__name__)

_FLASH_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_FLASH_INSTALLATION = {
    "flash_attention_2": "pip install flash-attn --no-build-isolation",
    "flash_attention_3": "the instructions in the folder `hopper` of https://github.com/Dao-AILab/flash-attention",
}


def require_implementation(name: str) -> None:
    """Checks that an attention implementation can run here.

    Raises:
        ImportError: Its package is not installed.
    """
    if name in _FLASH_MODULES:
        _flash_function(name)


def attend_by_name(
    qkv: Tensor, implementation: str, bias: Tensor | None, head_mask: Tensor | None, dropout_rate: float
) -> tuple[Tensor, Tensor | None]:
    """Attends by an implementation that can do whatever is asked; arguments and results as in `cpu_kernels.attend`."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, d)
    if implementation == "eager":
        mixed, probabilities = eager_attention(query, key, value, bias, dropout_rate, head_mask)
        return mixed.transpose(1, 2).flatten(2), probabilities
    mixed = fused_attention(implementation, query, key, value, bias, dropout_rate)
    if head_mask is not None:  # the same as masking the probabilities: they enter linearly
        mixed = mixed * head_mask
    return mixed.transpose(1, 2).flatten(2), None


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout_rate: float, head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attends step by step, so that the probabilities can be seen and masked.

    Args:
        query: (B, H, N, d).
        key: (B, H, N, d).
        value: (B, H, N, d).
        bias: Added to the scores, broadcast to (B, H, N, N).
        dropout_rate: Dropout on the probabilities; 0 outside of training.
        head_mask: Multiplies the probabilities, broadcast to (B, H, N, N).

    Returns:
        (B, H, N, d), and the probabilities (B, H, N, N).
    """
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = F.dropout(probabilities, dropout_rate, dropout_rate > 0)
    if head_mask is not None:
        probabilities = probabilities * head_mask
    return probabilities @ value, probabilities


def fused_attention(
    name: str, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout_rate: float
) -> Tensor:
    """Attends with a fused implementation. Returns what `eager_attention` returns first; computes no attention maps.

    Args:
        name: "sdpa", "flash_attention_2", "flash_attention_3" or "flex_attention".
        query: (B, H, N, d).
        key: (B, H, N, d).
        value: (B, H, N, d).
        bias: Added to the scores. Flash attention cannot, so PyTorch's attention replaces it for such a call.
        dropout_rate: Dropout on the probabilities.

    Raises:
        ValueError: The implementation can not do what is asked.
    """
    if name in _FLASH_MODULES and bias is None:
        return _flash_attention(name, query, key, value, dropout_rate)
    if name == "flex_attention":
        return _flex_attention(query, key, value, bias, dropout_rate)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout_rate)


def _flash_attention(name: str, query: Tensor, key: Tensor, value: Tensor, dropout_rate: float) -> Tensor:
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise UserError(
            f"{name} computes in float16 or bfloat16. Received: {query.dtype}. Use model.to(torch.bfloat16)."
        )
    if dropout_rate and name == "flash_attention_3":
        raise UserError("flash_attention_3 has no dropout. Set attention_probs_dropout_prob to 0 or use sdpa.")
    options = {"dropout_p": dropout_rate} if name == "flash_attention_2" else {}
    mixed = _flash_function(name)(*(t.transpose(1, 2) for t in (query, key, value)), **options)
    if isinstance(mixed, tuple):  # some versions return the normalizers as well
        mixed = mixed[0]
    return mixed.transpose(1, 2)


@functools.cache
def _flash_function(name: str) -> Any:
    try:
        return importlib.import_module(_FLASH_MODULES[name]).flash_attn_func
    except ImportError as error:
        raise MissingPackageError(
            f"{name} needs the {_FLASH_MODULES[name]!r} package ({error}). Install it with: "
            f"{_FLASH_INSTALLATION[name]}, or use attn_implementation='sdpa'."
        ) from error


def _flex_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout_rate: float) -> Tensor:
    if dropout_rate:
        raise UserError("flex_attention has no dropout. Set attention_probs_dropout_prob to 0 or use sdpa.")
    function = _flex_function(compiled=query.is_cuda and not torch.compiler.is_compiling())
    if bias is None:
        return function(query, key, value)
    batch, heads, tokens, _ = query.shape
    whole = bias.expand(batch, heads, tokens, tokens)

    def add_bias(score: Tensor, image: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + whole[image, head, row, column]

    return function(query, key, value, score_mod=add_bias)


@functools.cache
def _flex_function(compiled: bool) -> Any:
    make_order_safe()
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


# --- masks --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """How the attention of one call of the trunk is computed.

    Attributes:
        implementation: The name of the implementation, the same for all blocks.
        bias: Added to the scores before softmax, broadcast to (B, H, N, N); None adds nothing.
        head_masks: For each block what multiplies its probabilities, (B or 1, H or 1, N or 1, N or 1), or None.
    """

    implementation: str
    bias: Tensor | None
    head_masks: Sequence[Tensor | None]


def plan_attention(
    config: VisionTransformerConfig,
    tokens: Tensor,
    attention_mask: Tensor | None,
    head_mask: Tensor | None,
    need_attentions: bool,
    depth: int,
) -> AttentionPlan:
    """Prepares masks for all blocks and chooses the implementation.

    Args:
        config: Names the implementation and the sizes.
        tokens: (B, N, D), what enters the first block.
        attention_mask: See `attention_bias`.
        head_mask: See `head_mask_per_block`.
        need_attentions: Whether attention maps are wanted.
        depth: Number of blocks.

    Raises:
        ValueError: A mask has the wrong shape.
    """
    bias = attention_bias(attention_mask, tokens)
    if head_mask is not None:
        head_mask = head_mask_per_block(head_mask, depth, config.num_attention_heads, tokens.dtype)
    return AttentionPlan(
        implementation=choose_implementation(config._attn_implementation, need_attentions, head_mask, bias),
        bias=bias,
        head_masks=[None] * depth if head_mask is None else _without_pruned_heads(head_mask, config.pruned_heads),
    )


def _without_pruned_heads(head_mask: Tensor, pruned_heads: Mapping[int, Sequence[int]]) -> list[Tensor]:
    masks = []
    for i, mask in enumerate(head_mask):
        kept = [head for head in range(mask.shape[1]) if head not in pruned_heads.get(i, ())]
        masks.append(mask if mask.shape[1] == 1 else mask[:, kept])
    return masks


def attention_bias(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Returns what an attention mask adds to the scores, broadcast to (B, H, N, N), or None.

    Args:
        mask: (B, N) with 0 for tokens that nobody may look at, or (B, 1 or H, N, N), boolean or added to the scores.
        tokens: (B, N, D), what enters the first block.

    Raises:
        ValueError: The mask has the wrong shape.
    """
    if mask is None:
        return None
    batch, count, _ = tokens.shape
    if mask.ndim == 2:
        mask = mask[:, None, None, :].bool()
    if mask.ndim != 4:
        raise UserError(f"attention_mask must have 2 or 4 dimensions. Received the shape {tuple(mask.shape)}.")
    if mask.shape[-1] != count or mask.shape[0] not in (1, batch):
        raise UserError(
            f"attention_mask must be for {batch} images of {count} tokens (class token, distillation token if any, "
            f"patches); its size must match. Received: {mask.shape[0]} images of {mask.shape[-1]} tokens."
        )
    if mask.dtype == torch.bool:
        bias = torch.zeros(mask.shape, dtype=tokens.dtype, device=mask.device)
        return bias.masked_fill(~mask, torch.finfo(tokens.dtype).min)
    return mask.to(tokens.dtype)


def head_mask_per_block(head_mask: Tensor, depth: int, heads: int, dtype: torch.dtype) -> Tensor:
    """Returns a head mask as (L, B or 1, H or 1, N or 1, N or 1); a row is what multiplies a block's probabilities.

    Args:
        head_mask: (H,), (L, H), or already of five dimensions.
        depth: L.
        heads: H; heads that were pruned are counted too.
        dtype: Type of the result.

    Raises:
        ValueError: The mask has the wrong shape.
    """
    if head_mask.shape in ((heads,), (depth, heads)):
        head_mask = head_mask.expand(depth, heads)[:, None, :, None, None]
    elif head_mask.ndim != 5 or head_mask.shape[0] not in (1, depth) or head_mask.shape[2] not in (1, heads):
        raise UserError(
            f"head_mask must have the shape (heads,) = ({heads},) or (layers, heads) = ({depth}, {heads}), or five "
            f"dimensions (layers, batch, heads, tokens, tokens). Received: {tuple(head_mask.shape)}."
        )
    return head_mask.expand(depth, *head_mask.shape[1:]).to(dtype)


def choose_implementation(name: str, need_probabilities: bool, head_mask: Tensor | None, bias: Tensor | None) -> str:
    """Returns the implementation for one call; where the configured one can not do what is asked, says so once.

    Args:
        name: The configured one.
        need_probabilities: Whether attention maps are wanted.
        head_mask: Result of `head_mask_per_block`; one that differs from token to token acts on the probabilities.
        bias: Result of `attention_bias`.
    """
    if name != "eager" and (need_probabilities or (head_mask is not None and head_mask.shape[-1] != 1)):
        wanted = "output_attentions" if need_probabilities else "A head mask for each token"
        _say_once(f"{wanted} needs attention maps, which {name!r} does not make: such calls are computed eagerly.")
        return "eager"
    if name in _FLASH_MODULES and bias is not None:
        _say_once(f"{name!r} takes no attention mask: calls with one are computed by 'sdpa'.")
        return "sdpa"
    return name


def _say_once(message: str) -> None:
    if not torch.compiler.is_compiling():  # a line in the log would break the graph
        _warn(message)


@functools.cache
def _warn(message: str) -> None:
    logger.warning(message)

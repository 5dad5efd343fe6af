"""Attention for training on the CPU with a backward pass of its own, because PyTorch's is slow there.

The numbers are the same up to rounding. `cpu_kernels.can_attend` says where it is used.

Letters in shape comments: B batch, N tokens, H heads, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def attend_by_hand(qkv: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multi-head self-attention without dropout.

    Args:
        qkv: Query, key and value, (B, N, 3, H, d).
        bias: (B, 1, 1, N), added to the scores before softmax; it gets no gradient.

    Returns:
        (B, N, H * d).
    """
    return _Attention.apply(qkv, bias)


def _probabilities(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return F.softmax(scores if bias is None else scores + bias, dim=-1)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None) -> Tensor:
        batch, tokens, _, heads, width = qkv.shape
        parts = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, width)  # contiguous: products are faster
        query, key, value = parts
        scores = qkv.new_empty(batch * heads, tokens, tokens)
        added = scores if bias is None else bias.expand(-1, heads, -1, -1).reshape(-1, 1, tokens)
        beta = 0 if bias is None else 1
        torch.baddbmm(added, query, key.transpose(1, 2), beta=beta, alpha=width**-0.5, out=scores)
        probabilities = torch.softmax(scores, dim=-1, out=scores)  # row by row, so the memory can be used again
        ctx.save_for_backward(qkv, parts, probabilities, bias)
        mixed = torch.bmm(probabilities, value).view(batch, heads, tokens, width)
        return mixed.transpose(1, 2).reshape(batch, tokens, heads * width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        qkv, parts, probabilities, bias = ctx.saved_tensors
        batch, tokens, _, heads, width = qkv.shape
        if torch.is_grad_enabled():  # create_graph=True: let PyTorch differentiate what it can see
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            mixed = (_probabilities(query, key, bias) @ value).transpose(1, 2).flatten(2)
            return torch.autograd.grad(mixed, qkv, gradient, create_graph=True)[0], None
        query, key, value = parts
        gradient = gradient.view(batch, tokens, heads, width).transpose(1, 2).reshape(-1, tokens, width)
        result = torch.empty_like(parts)
        torch.bmm(probabilities.transpose(1, 2), gradient, out=result[2])
        scores = torch.bmm(gradient, value.transpose(1, 2))
        torch._softmax_backward_data(scores, probabilities, -1, scores.dtype, grad_input=scores)
        scale = width**-0.5
        torch.baddbmm(result[0], scores, key, beta=0, alpha=scale, out=result[0])
        torch.baddbmm(result[1], scores.transpose(1, 2), query, beta=0, alpha=scale, out=result[1])
        return result.view(3, batch, heads, tokens, width).permute(1, 3, 0, 2, 4).reshape(qkv.shape), None

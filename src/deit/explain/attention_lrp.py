"""AttnLRP: layer-wise relevance propagation with rules for attention (Achtibat et al., arXiv 2402.05602).

Relevance starts as the target logit and is handed back from each operation to its inputs. All rules are written as
changed gradients: where G is the changed gradient of x, x G is its relevance. The softmax needs no change: its rule
(proposition 3.1) is x times its plain gradient.

Letters in shape comments: L blocks, N tokens, P patches, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from deit.explain.network import Arithmetic, Network, optional

# How much more positive contributions count in linear layers. With 0 (the epsilon rule) maps of vision transformers are
# noisy (appendix of the paper).
GAMMA = 0.25
_SMALLEST = 1e-9


class IdentityRule(Function):
    """An activation that hands its relevance to its input as it is: the gradient is f(x) / x (equation 9)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns f(x)."""
        y = function(x)
        ctx.save_for_backward(y / torch.where(x.abs() < _SMALLEST, _SMALLEST, x))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient of x."""
        (slope,) = ctx.saved_tensors
        return slope * gradient, None


class HalfRule(Function):
    """The result of a product of two inputs: half of its relevance is for each (proposition 3.3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Returns x."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Returns half of the gradient."""
        return gradient * 0.5


class GammaRule(Function):
    """A linear layer in whose outputs the contributions of the output's sign count 1 + gamma times.

    The gamma rule of Montavon et al. (2019), for inputs and outputs of any sign. Each output's relevance is shared in
    proportion to the contributions; the bias keeps its share. With gamma 0 it is the plain gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
        """Returns x W' + b.

        Args:
            ctx: PyTorch's.
            x: (..., in).
            matrix: (out, in).
            bias: (out,) or None.
            gamma: At least 0.
        """
        y = F.linear(x, matrix, bias)
        ctx.save_for_backward(x, matrix, y)
        ctx.bias, ctx.gamma = bias, gamma
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Returns the gradient of x."""
        x, matrix, y = ctx.saved_tensors
        up, down = matrix.clamp(min=0), matrix.clamp(max=0)
        positive = F.linear(x.clamp(min=0), up, _clamped(ctx.bias)) + F.linear(x.clamp(max=0), down)
        whole = y + ctx.gamma * torch.where(y > 0, positive, y - positive)  # of the sign of y, and no smaller
        shares = torch.where(y == 0, 0.0, gradient * y / torch.where(y == 0, 1.0, whole))
        above, below = torch.where(y > 0, shares, 0.0), torch.where(y > 0, 0.0, shares)
        of_positive, of_negative = above @ up + below @ down, above @ down + below @ up
        return shares @ matrix + ctx.gamma * torch.where(x > 0, of_positive, of_negative), None, None, None


def _clamped(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.clamp(min=0)


def _norm(x: Tensor, matrix: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """LayerNorm whose deviation is a constant, so that it is linear: its relevance passes (proposition 3.4)."""
    centered = x - x.mean(-1, keepdim=True)
    deviation = (centered.square().mean(-1, keepdim=True) + epsilon).sqrt().detach()
    return centered / deviation * matrix + bias


def lrp_arithmetic(gamma: float = GAMMA) -> Arithmetic:
    """Returns the operations of the network with the rules of AttnLRP.

    Args:
        gamma: Of the linear layers; 0 is the epsilon rule.
    """

    def linear(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = GammaRule.apply(x, matrix, bias, gamma) if gamma else F.linear(x, matrix, bias)
        return result

    return Arithmetic(
        linear=linear,
        norm=_norm,
        activate=lambda function, x: IdentityRule.apply(x, function),
        product=lambda a, b: HalfRule.apply(a @ b),
    )


def attention_lrp(network: Network, pixels: Tensor, head: str, target: int, *, gamma: float = GAMMA) -> Tensor:
    """Returns the relevance of patches for a logit, with its sign.

    Args:
        network: The model.
        pixels: (1, C, H, W).
        head: Name of the head.
        target: Class number.
        gamma: See `lrp_arithmetic`.

    Returns:
        (L + 1, P): of the patch tokens that enter each block; in the last row of the pixels of each patch.
    """
    trace = network.run(pixels, lrp_arithmetic(gamma))
    inputs = [trace.patches, *trace.states[:-1]]
    gradients = torch.autograd.grad(trace.logits[head][0, target], inputs, allow_unused=True)
    assert all(gradient is not None for gradient in gradients)
    bias = optional(network.trunk.patch_embed.proj.bias)
    of_pixels = trace.patches.detach() if bias is None else trace.patches.detach() - bias
    overall = (of_pixels * gradients[0])[0].sum(-1)
    rows = [
        (state.detach() * gradient)[0, network.prefix :].sum(-1)
        for state, gradient in zip(inputs[1:], gradients[1:], strict=True)
    ]
    return torch.stack([*rows, overall])

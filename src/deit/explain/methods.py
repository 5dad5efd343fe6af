"""The methods that read attention: rollout, gradient x attention relevance, LeGrad. Each returns raw maps of patches.

Letters in shape comments: L blocks, H heads, N tokens, P patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deit.explain.network import Network, Trace


def rollout(network: Network, trace: Trace, head: str, target: int) -> Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv 2005.00928, equation 1).

    The attention of a block, averaged over its heads, and the identity for the residual connection, half each; the
    product over the blocks says how much of each patch reaches the token of the head. It does not depend on the class.

    Args:
        network: The model.
        trace: Its forward pass for one image.
        head: Name of the head, whose token's row is taken.
        target: Not used.

    Returns:
        (L, P): after each block; the last row is the overall map.
    """
    row = network.head_names.index(head)
    reached: Tensor | None = None
    rows = []
    for attention in trace.attentions:
        mean = attention[0].detach().mean(0)  # (N, N)
        step = 0.5 * (mean + torch.eye(len(mean), device=mean.device))  # its rows sum to 1 as they are
        reached = step if reached is None else step @ reached
        rows.append(reached[row, network.prefix :])
    return torch.stack(rows)


def relevance(network: Network, trace: Trace, head: str, target: int) -> Tensor:
    """Gradient x attention relevance (Chefer et al., arXiv 2103.15679, equations 5 and 6).

    R starts as the identity. Each block adds A R to it, where A is the mean over heads of the positive part of the
    attention times the gradient of the target logit.

    Args:
        network: The model.
        trace: Its forward pass for one image.
        head: Name of the head, whose logit is differentiated and whose token's row is taken.
        target: Class number.

    Returns:
        (L, P): after each block; the last row is the overall map.
    """
    row = network.head_names.index(head)
    logit = trace.logits[head][0, target]
    gradients = torch.autograd.grad(logit, trace.attentions, retain_graph=True, allow_unused=True)
    found = torch.eye(trace.attentions[0].shape[-1], device=logit.device)
    rows = []
    for attention, gradient in zip(trace.attentions, gradients, strict=True):
        step = (attention * _or_zeros(gradient, attention))[0].detach().clamp(min=0).mean(0)  # (N, N)
        found = found + step @ found
        rows.append(found[row, network.prefix :])
    return torch.stack(rows)


def legrad(network: Network, trace: Trace, head: str, target: int) -> Tensor:
    """LeGrad (Bousselham et al., arXiv 2404.03214, section 3).

    Each block's output, averaged over all tokens, goes through the final norm and the head. The logit of the target is
    differentiated by the attention of that block; the positive part, averaged over heads and rows, is the block's map.

    Args:
        network: The model.
        trace: Its forward pass for one image.
        head: Name of the head whose classifier is used.
        target: Class number.

    Returns:
        (L, P): the map of each block; their mean is the overall map.
    """
    rows = []
    for attention, state in zip(trace.attentions, trace.states[1:], strict=True):
        logit = network.logits_of(head, state.mean(1))[0, target]
        (gradient,) = torch.autograd.grad(logit, attention, retain_graph=True)
        rows.append(gradient[0].clamp(min=0).mean((0, 1))[network.prefix :])
    return torch.stack(rows)


def _or_zeros(gradient: Tensor | None, like: Any) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient

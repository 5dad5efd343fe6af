"""A classifier of this package with everything that inference does not need folded into its weights.

Each step gives the same numbers up to rounding; `docs/graph.md` says why. `folding.py` computes the weights.

Letters in shape comments: as in `operations.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deit.inference.contract import FEATURES, Contract
from deit.inference.graph.operations import TORCH, Mlp, Operations, Value


class LeanBlock(nn.Module):
    """A block without affine norms, scales and useless biases.

    Args:
        weights: Tensors by the names that `run` uses.
        heads: Attention heads H.
        epsilons: Added to the variance in the first and the second norm.
        activation: See `operations.ACTIVATIONS`.
    """

    query_weight: Tensor  # (H * d, D), the scale of the scores included
    query_bias: Tensor
    key_weight: Tensor
    value_weight: Tensor
    proj_weight: Tensor
    proj_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], heads: int, epsilons: tuple[float, float], activation: str
    ) -> None:
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name, tensor)
        self.heads, self.epsilons, self.activation = heads, epsilons, activation

    def run(self, ops: Operations[Value], x: Value, count: int | None) -> Value:
        """Maps tokens (B, N, D) to (B, N, D), or to the first (B, count, D)."""
        width = self.query_weight.shape[1]
        normed = ops.normalize(x, width, self.epsilons[0])
        if count is None:
            query = ops.linear(normed, self.query_weight, self.query_bias)
            key, value = (ops.linear(normed, weight, None) for weight in (self.key_weight, self.value_weight))
            mixed = ops.attend(query, key, value, self.heads)
        else:
            x = ops.first(x, count)
            query = ops.linear(ops.first(normed, count), self.query_weight, self.query_bias)
            key_weight, value_weight = (
                weight.view(self.heads, -1, width) for weight in (self.key_weight, self.value_weight)
            )
            mixed = ops.attend_of_few(query, normed, key_weight, value_weight)
        x = ops.add(x, ops.linear(mixed, self.proj_weight, self.proj_bias))
        layers = Mlp(self.fc1_weight, self.fc1_bias, self.activation, self.fc2_weight, self.fc2_bias)
        return ops.add(x, ops.feed_forward(ops.normalize(x, width, self.epsilons[1]), layers))


class LeanClassifier(nn.Module):
    """Pixels (B, C, H, W) to the logits (B, K) of each head; fixed image size.

    `run` builds the network with the operations of any library; `forward` runs it in PyTorch.

    Args:
        weights: Tensors by the names that `run` uses.
        blocks: From the first to the last.
        epsilon: Of the final norm.
        grid: Rows and columns of patches.
        num_prefix_tokens: Tokens before those of the patches; the first ones have a head.
        takes_uint8: Whether pixels are integers from 0 to 255, before rescaling and normalizing.
        average: Result of `average_of_heads`.

    Attributes:
        gives_features: Whether the last output is what the class head of the original model is given: `weights` has
            "feature_weight" and "feature_bias".
    """

    patch_weight: Tensor  # (D, C, h, w)
    start: Tensor  # (1, N, D): position of each token, and what else is the same for all images
    head_weight: Tensor  # (M, D, K)
    head_bias: Tensor  # (M, 1, K)
    feature_weight: Tensor  # (1, D, D)
    feature_bias: Tensor  # (1, 1, D)

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        blocks: list[LeanBlock],
        epsilon: float,
        *,
        grid: tuple[int, int],
        num_prefix_tokens: int,
        takes_uint8: bool,
        average: str,
    ) -> None:
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name, tensor)
        self.blocks = nn.ModuleList(blocks)
        self.epsilon, self.grid, self.num_prefix_tokens = epsilon, grid, num_prefix_tokens
        self.takes_uint8, self.average = takes_uint8, average
        self.gives_features = "feature_weight" in weights

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits (B, K) of each head, of two heads their mean first; then the features (B, D), if asked."""
        return self.run(TORCH, pixels)

    def run(self, ops: Operations[Value], pixels: Value) -> tuple[Value, ...]:
        """Does what `forward` does, with the operations of another library."""
        count = self.head_weight.shape[0]
        if self.takes_uint8:
            pixels = ops.to_float(pixels)
        x = ops.put_in_front(ops.cut_in_patches(pixels, self.patch_weight, self.grid), self.num_prefix_tokens)
        x = ops.add(x, self.start)
        for i, block in enumerate(self.blocks):
            lean: Any = block
            x = lean.run(ops, x, count if i == len(self.blocks) - 1 else None)
        return self.answers(ops, ops.normalize(x, self.head_weight.shape[1], self.epsilon))

    def answers(self, ops: Operations[Value], x: Value) -> tuple[Value, ...]:
        """Maps the normalized tokens (B, M, D) that have a head to what `forward` returns."""
        count = self.head_weight.shape[0]
        heads = ops.split_heads(ops.linear_heads(x, self.head_weight, self.head_bias), count)
        outputs = heads if count == 1 else (self._average(ops, *heads), *heads)
        if not self.gives_features:
            return outputs
        features = ops.linear_heads(ops.first(x, 1), self.feature_weight, self.feature_bias)
        return (*outputs, *ops.split_heads(features, 1))

    def _average(self, ops: Operations[Value], first: Value, second: Value) -> Value:
        """Returns what `models.deit.average_heads` returns."""
        if self.average == "logits":
            return ops.scale(ops.add(first, second), 0.5)
        if self.average == "softmax":
            both = _log_add(ops, ops.log_softmax(first), ops.log_softmax(second))
            return ops.add(both, torch.tensor(-math.log(2), dtype=torch.float64))
        yes = _log_add(ops, *(_log_sigmoid(ops, logits) for logits in (first, second)))
        no = _log_add(ops, *(_log_sigmoid(ops, ops.scale(logits, -1.0)) for logits in (first, second)))
        return ops.add(yes, ops.scale(no, -1.0))


def output_names(graph: nn.Module, contract: Contract) -> tuple[str, ...]:
    """Returns the names of a classifier graph's outputs."""
    features = (FEATURES,) if isinstance(graph, LeanClassifier) and graph.gives_features else ()
    return (*contract.head_names, *features)


def _log_add(ops: Operations[Value], x: Value, y: Value) -> Value:
    """Returns log(exp(x) + exp(y)) without overflow."""
    difference = ops.absolute(ops.add(x, ops.scale(y, -1.0)))
    return ops.add(ops.maximum(x, y), ops.softplus(ops.scale(difference, -1.0)))


def _log_sigmoid(ops: Operations[Value], x: Value) -> Value:
    return ops.scale(ops.softplus(ops.scale(x, -1.0)), -1.0)

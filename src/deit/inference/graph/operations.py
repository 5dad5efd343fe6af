"""The operations that the rewritten network is made of, once for each library that runs it.

The network is written once, in `lean_classifier`. It runs in PyTorch as `TORCH`; with the operations of
another library the same code builds a graph of that library instead. So no conversion traces anything.

Letters in shape comments: B batch, N tokens, M some first tokens, D width, H heads, d width of a head, K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from deit.models.trunk.activations import Activation, sigmoid_gelu, tanh_gelu

ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "tanh_gelu": tanh_gelu,
    "sigmoid_gelu": sigmoid_gelu,
    "relu": F.relu,
    "silu": F.silu,
}

Value = TypeVar("Value")


class Mlp(NamedTuple):
    """Two linear layers with an activation between them.

    Attributes:
        weight: Of the first layer, (E, D).
        bias: Of the first layer, (E,).
        activation: One of `ACTIVATIONS`.
        second_weight: Of the second layer, (D, E).
        second_bias: Of the second layer, (D,).
    """

    weight: Tensor
    bias: Tensor
    activation: str
    second_weight: Tensor
    second_bias: Tensor


def activation_name(function: Any) -> str:
    """Returns the name of an activation in `ACTIVATIONS`; "" if it is not there."""
    return next((name for name, known in ACTIVATIONS.items() if known is function), "")


class Operations(Protocol[Value]):
    """What a library must be able to do. Weights are tensors of PyTorch, whatever the library is."""

    def to_float(self, pixels: Value) -> Value:
        """Converts uint8 to the type of the network."""

    def cut_in_patches(self, pixels: Value, weight: Tensor, grid: tuple[int, int]) -> Value:
        """Maps (B, C, H, W) to (B, P, D), each patch by the weight (D, C, h, w), without a bias.

        The grid says how many rows and columns of patches there are; pixels that fill no patch are left out.
        """

    def put_in_front(self, x: Value, count: int) -> Value:
        """Puts rows of zeros before the tokens (B, N, D)."""

    def add(self, x: Value, y: Value | Tensor) -> Value:
        """Adds two values of broadcastable shapes."""

    def first(self, x: Value, count: int) -> Value:
        """Returns the first tokens (B, M, D) of (B, N, D)."""

    def normalize(self, x: Value, width: int, epsilon: float) -> Value:
        """Gives each token (B, N, D) a mean of 0 and a variance of 1."""

    def linear(self, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
        """Multiplies (B, N, D) with a weight (E, D): (B, N, E)."""

    def feed_forward(self, x: Value, layers: Mlp) -> Value:
        """Maps (B, N, D) to (B, N, D) by two linear layers with an activation between them."""

    def attend(self, query: Value, key: Value, value: Value, heads: int) -> Value:
        """Attends: query, key and value (B, N, H * d) to (B, N, H * d). Scores are not scaled."""

    def attend_of_few(self, query: Value, x: Value, key_weight: Tensor, value_weight: Tensor) -> Value:
        """Attends for a few queries, without keys and values of all tokens.

        A score is q . (W_k x) = (W_k^T q) . x, and an answer is sum(p W_v x) = W_v sum(p x).

        Args:
            query: (B, M, H * d).
            x: (B, N, D).
            key_weight: (H, d, D).
            value_weight: (H, d, D).

        Returns:
            (B, M, H * d).
        """

    def linear_heads(self, x: Value, weight: Tensor, bias: Tensor) -> Value:
        """Multiplies each token (B, M, D) with a weight of its own (M, D, K) and adds a bias (M, 1, K): (M, B, K)."""

    def split_heads(self, x: Value, count: int) -> tuple[Value, ...]:
        """Takes (M, B, K) apart: M times (B, K)."""

    def scale(self, x: Value, factor: float) -> Value:
        """Multiplies with a number."""

    def log_softmax(self, x: Value) -> Value:
        """Returns the logarithm of the softmax over K of (B, K)."""

    def softplus(self, x: Value) -> Value:
        """Returns log(1 + exp(x))."""

    def maximum(self, x: Value, y: Value) -> Value:
        """Returns the larger of two numbers, place by place."""

    def absolute(self, x: Value) -> Value:
        """Returns numbers without their signs."""


class _TorchOperations:
    """The operations in PyTorch; see `Operations`."""

    def to_float(self, pixels: Tensor) -> Tensor:
        return pixels.float()

    def cut_in_patches(self, pixels: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.conv2d(pixels.to(weight.dtype), weight, stride=weight.shape[2:]).flatten(2).transpose(1, 2)

    def put_in_front(self, x: Tensor, count: int) -> Tensor:
        return F.pad(x, (0, 0, count, 0))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def first(self, x: Tensor, count: int) -> Tensor:
        return x[:, :count]

    def normalize(self, x: Tensor, width: int, epsilon: float) -> Tensor:
        return F.layer_norm(x, (width,), eps=epsilon)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def feed_forward(self, x: Tensor, layers: Mlp) -> Tensor:
        hidden = ACTIVATIONS[layers.activation](F.linear(x, layers.weight, layers.bias))
        return F.linear(hidden, layers.second_weight, layers.second_bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        query, key, value = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2).flatten(2)

    def attend_of_few(self, query: Tensor, x: Tensor, key_weight: Tensor, value_weight: Tensor) -> Tensor:
        (heads, width, _), count = key_weight.shape, query.shape[1]
        by_head = query.unflatten(2, (heads, width)).permute(2, 0, 1, 3).flatten(1, 2)  # (H, B * M, d)
        rows = _swapped(torch.bmm(by_head, key_weight), count)  # (B, H * M, D)
        # On a GPU, scores are float32, as those of PyTorch's attention are.
        exact = x.is_cuda and x.dtype != torch.float32
        scores = torch.bmm(rows, x.mT, out_dtype=torch.float32) if exact else torch.bmm(rows, x.mT)
        mixed = torch.bmm(F.softmax(scores, dim=-1).to(x.dtype), x)
        answers = torch.bmm(_swapped(mixed, count), value_weight.transpose(1, 2))  # (H, B * M, d)
        return answers.unflatten(1, (-1, count)).permute(1, 2, 0, 3).flatten(2)

    def linear_heads(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias, x.transpose(0, 1), weight)

    def split_heads(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        return x.unbind(0)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def log_softmax(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, dim=-1)

    def softplus(self, x: Tensor) -> Tensor:
        return torch.logaddexp(x, x.new_zeros(()))  # `softplus` of PyTorch returns x from 20 on

    def maximum(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.maximum(x, y)

    def absolute(self, x: Tensor) -> Tensor:
        return x.abs()


def _swapped(x: Tensor, count: int) -> Tensor:
    """Maps (H, B * M, D) to (B, H * M, D), and the other way round."""
    return x.unflatten(1, (-1, count)).transpose(0, 1).flatten(1, 2)


TORCH = _TorchOperations()

"""A `LeanClassifier` with the layout that a GPU is fast with.

What differs from `lean_classifier.py`, each step with the same numbers up to rounding:

* Query, key and value are one product.
* A product adds its result to the tokens itself (cuBLAS reads them as its third matrix). That leaves no room for its
  bias, so tokens are kept without the biases so far: their sum, known in advance, is added where tokens are normalized.
* In bf16, the product before GELU also does GELU, in the approximation by tanh: it differs by at most 0.0005, and bf16
  rounds more.
* In fp8 (e4m3), queries, keys, values and the two layers after the attention are products of 8-bit numbers. Their
  inputs need no scale of their own: they are normalized, or results of GELU, far below the largest number of e4m3.

Letters in shape comments: as in `operations.py`; R = B * N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deit.inference.graph.lean_classifier import LeanBlock, LeanClassifier
from deit.inference.graph.operations import ACTIVATIONS, TORCH

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # of FP8
_TANH_GELU_IS_ENOUGH = (torch.bfloat16, torch.float16)


class _Weight(NamedTuple):
    """A matrix in fp8 and the number to multiply the product with; in another type, that is 1 and unused."""

    matrix: Tensor  # (E, D)
    scale: Tensor  # ()


class _Block(NamedTuple):
    """Weights of a block but the last."""

    qkv: _Weight
    qkv_bias: Tensor
    proj: Tensor
    fc1: _Weight
    fc1_bias: Tensor
    fc2: _Weight
    shifts: tuple[Tensor, Tensor]  # what the tokens lack, before the first norm and before the second
    epsilons: tuple[float, float]
    heads: int
    activation: str


class CudaClassifier(nn.Module):
    """Pixels (B, C, H, W) to what a `LeanClassifier` returns.

    Args:
        lean: Its weights, on the device of the result; its blocks are taken apart.
        dtype: To compute in: float32, bfloat16 or float16.
        fp8: Whether most products are in fp8. Needs a GPU with such units, and widths that 16 divides.

    Attributes:
        attention: How attention is computed; None leaves that to PyTorch.
    """

    def __init__(self, lean: LeanClassifier, dtype: torch.dtype, *, fp8: bool = False) -> None:
        super().__init__()
        self.dtype, self.fp8 = dtype, fp8
        self.attention: SDPBackend | None = None
        shift = torch.zeros_like(lean.start[0, 0], dtype=torch.float64)
        blocks: list[Any] = list(lean.blocks)
        self._blocks = []
        for block in blocks:
            shifts = (shift.float(), (shift + block.proj_bias).float())
            shift = shift + block.proj_bias + block.fc2_bias
            self._blocks.append(self._taken_apart(block, shifts))
        self._last_shift = shift.float()
        self._one = torch.ones_like(self._last_shift[0])
        lean.blocks = nn.ModuleList(blocks[-1:])
        self.lean = lean.to(dtype)

    def _taken_apart(self, block: LeanBlock, shifts: tuple[Tensor, Tensor]) -> _Block:
        none = torch.zeros_like(block.query_bias)
        qkv = torch.cat((block.query_weight, block.key_weight, block.value_weight))
        return _Block(
            qkv=self._weight(qkv),
            qkv_bias=torch.cat((block.query_bias, none, none)).to(self.dtype),
            proj=block.proj_weight.to(self.dtype),
            fc1=self._weight(block.fc1_weight),
            fc1_bias=block.fc1_bias.to(self.dtype),
            fc2=self._weight(block.fc2_weight),
            shifts=shifts,
            epsilons=block.epsilons,
            heads=block.heads,
            activation=block.activation,
        )

    def _weight(self, matrix: Tensor) -> _Weight:
        if not self.fp8:
            return _Weight(matrix.to(self.dtype), matrix.new_ones(()))
        scale = (matrix.abs().amax().float() / _LARGEST).clamp(min=1e-12)
        return _Weight((matrix / scale).to(FP8), scale)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits (B, K) of each head, of two heads their mean first; then the features (B, D), if asked."""
        x, count = self._tokens(pixels), self.lean.head_weight.shape[0]
        batch, _, width = x.shape
        rows, delta = x.view(-1, width), None
        for block in self._blocks[:-1]:
            normed = self._normalize(rows, block.shifts[0], block.epsilons[0], delta)
            mixed = self.attend(self._product(normed, block.qkv, block.qkv_bias), batch, block.heads)
            rows.addmm_(mixed, block.proj.T)
            delta = self._feed_forward(rows, block)
        rows = self._last_block(rows, delta, batch, count)
        normed = self._normalize(rows, self._last_shift, self.lean.epsilon, None, plain=True)
        return self.lean.answers(TORCH, normed.view(batch, count, width))

    def all_outputs(self, pixels: Tensor) -> Tensor:
        """Returns the outputs of `forward` beside each other, (B, numbers), in float32."""
        return torch.cat([output.float() for output in self(pixels)], dim=1)

    @property
    def output_widths(self) -> list[int]:
        """Numbers of each output of `forward`."""
        heads, width, classes = self.lean.head_weight.shape
        return [classes] * (1 if heads == 1 else heads + 1) + [width] * self.lean.gives_features

    def example_of_attention(self, batch: int) -> Callable[[], Tensor]:
        """Returns a call of `attend` with random numbers, as the first block needs it."""
        block, rows = self._blocks[0], batch * self.lean.start.shape[1]
        qkv = torch.randn(rows, len(block.qkv_bias), dtype=self.dtype, device=block.qkv_bias.device)
        return lambda: self.attend(qkv, batch, block.heads)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Maps pixels to the tokens (B, N, D) before the first block."""
        lean = self.lean
        (height, width), (rows, columns) = lean.patch_weight.shape[2:], lean.grid
        pixels = pixels[:, :, : rows * height, : columns * width].to(self.dtype)
        cut = pixels.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
        patches = F.linear(cut.flatten(3).flatten(1, 2), lean.patch_weight.flatten(1))
        first = lean.num_prefix_tokens
        x = patches.new_empty(len(patches), *lean.start.shape[1:])
        x[:, :first] = lean.start[:, :first]
        torch.add(patches, lean.start[:, first:], out=x[:, first:])
        return x

    def _last_block(self, rows: Tensor, delta: Tensor | None, batch: int, count: int) -> Tensor:
        """Does the last block for the tokens (B * M, D) that have a head."""
        block, width = self._blocks[-1], rows.shape[1]
        last: Any = self.lean.blocks[0]
        normed = self._normalize(rows, block.shifts[0], last.epsilons[0], delta, plain=True).view(batch, -1, width)
        x = rows.view(batch, -1, width)[:, :count].reshape(-1, width)
        query = F.linear(normed[:, :count], last.query_weight, last.query_bias)
        weights = (weight.view(last.heads, -1, width) for weight in (last.key_weight, last.value_weight))
        mixed = TORCH.attend_of_few(query, normed, *weights)
        x.addmm_(mixed.flatten(0, 1), block.proj.T)
        hidden = self._normalize(x, block.shifts[1], last.epsilons[1], None, plain=True)
        hidden = ACTIVATIONS[last.activation](F.linear(hidden, last.fc1_weight, last.fc1_bias))
        return x.addmm_(hidden, last.fc2_weight.T)

    def _feed_forward(self, rows: Tensor, block: _Block) -> Tensor | None:
        """Adds the two layers after the attention to the tokens; or returns what the next norm has to add."""
        normed = self._normalize(rows, block.shifts[1], block.epsilons[1], None)
        activation = block.activation
        if not self.fp8:
            rows.addmm_(self._activated(normed, block.fc1.matrix, block.fc1_bias, activation), block.fc2.matrix.T)
            return None
        hidden = self._product(normed, block.fc1, block.fc1_bias)
        if activation == "gelu":
            from deit.inference.graph.triton_kernels import gelu

            hidden = gelu(hidden, FP8)
        else:
            hidden = ACTIVATIONS[activation](hidden).to(FP8)
        return self._product(hidden, block.fc2, None)

    def _activated(self, x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        if activation == "gelu" and x.is_cuda and self.dtype in _TANH_GELU_IS_ENOUGH:
            return torch._addmm_activation(bias, x, weight.T, use_gelu=True)
        return ACTIVATIONS[activation](F.linear(x, weight, bias))

    def _product(self, x: Tensor, weight: _Weight, bias: Tensor | None) -> Tensor:
        """Multiplies (R, D) with (E, D): (R, E)."""
        if not self.fp8:
            return F.linear(x, weight.matrix, bias)
        scales = {"scale_a": self._one, "scale_b": weight.scale}
        return torch._scaled_mm(x, weight.matrix.T, **scales, bias=bias, out_dtype=self.dtype, use_fast_accum=True)

    def _normalize(
        self, rows: Tensor, shift: Tensor, epsilon: float, delta: Tensor | None, *, plain: bool = False
    ) -> Tensor:
        """Adds delta to rows (R, D); returns rows + shift with a mean of 0 and a variance of 1, in fp8 unless plain."""
        dtype = FP8 if self.fp8 and not plain else self.dtype
        if rows.is_cuda:
            from deit.inference.graph.triton_kernels import normalize

            return normalize(rows, shift, epsilon, delta=delta, dtype=dtype)
        if delta is not None:
            rows += delta
        return F.layer_norm(rows + shift, shift.shape, eps=epsilon).to(dtype)

    def attend(self, qkv: Tensor, batch: int, heads: int) -> Tensor:
        """Maps (R, 3 * H * d) to (R, H * d)."""
        query, key, value = qkv.view(batch, -1, 3, heads, qkv.shape[1] // (3 * heads)).transpose(1, 3).unbind(2)
        with nullcontext() if self.attention is None else sdpa_kernel(self.attention):
            mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return mixed.transpose(1, 2).reshape(qkv.shape[0], -1)

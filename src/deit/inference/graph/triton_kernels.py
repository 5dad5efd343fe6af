"""Kernels in Triton for `cuda_classifier`: what lies between two matrix products, in one pass over memory each.

Letters in shape comments: R rows (tokens of all images), D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS = 4096  # of a program, so that narrow rows fill a multiprocessor too


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]  # a language of its own
    x_pointer,
    delta_pointer,
    shift_pointer,
    out_pointer,
    rows,
    width,
    epsilon,
    ADDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    used = column < width
    inside = (row < rows)[:, None] & used[None, :]
    offset = row[:, None] * width + column[None, :]
    x = tl.load(x_pointer + offset, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(delta_pointer + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(x_pointer + offset, x.to(x_pointer.dtype.element_ty), mask=inside)
    x += tl.load(shift_pointer + column, mask=used, other=0.0)[None, :]
    mean = tl.sum(x, axis=1) / width
    centered = tl.where(used[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centered * centered, axis=1) / width
    normed = centered * tl.rsqrt(variance + epsilon)[:, None]
    tl.store(out_pointer + offset, normed.to(out_pointer.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gelu(x_pointer, out_pointer, count, largest, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < count
    x = tl.load(x_pointer + offset, mask=inside, other=0.0).to(tl.float32)
    y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    y = tl.minimum(y, largest)
    tl.store(out_pointer + offset, y.to(out_pointer.dtype.element_ty), mask=inside)


def normalize(x: Tensor, shift: Tensor, epsilon: float, *, delta: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns x + shift with a mean of 0 and a variance of 1 in each row, (R, D).

    Args:
        x: (R, D), contiguous.
        shift: (D,), float32.
        epsilon: Added to the variance.
        delta: (R, D); added to x first, in place.
        dtype: Of the result.
    """
    rows, width = x.shape
    out = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(width)
    together = max(_NUMBERS // block, 1)
    kernel: Any = _normalize
    kernel[(triton.cdiv(rows, together),)](
        x,
        x if delta is None else delta,
        shift,
        out,
        rows,
        width,
        epsilon,
        ADDS=delta is not None,
        ROWS=together,
        BLOCK=block,
    )
    return out


def gelu(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns GELU of contiguous numbers in another type, at most its largest number; computed in float32."""
    out = torch.empty_like(x, dtype=dtype)
    kernel: Any = _gelu
    kernel[(triton.cdiv(x.numel(), _NUMBERS),)](x, out, x.numel(), torch.finfo(dtype).max, BLOCK=_NUMBERS)
    return out

"""Measures how fast this CPU computes in bf16 and in fp32."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from deit.runtime.devices import Placement

_TOKENS, _HEAD = 197, 64  # of an image of 224 x 224 pixels in patches of 16 x 16; channels of an attention head
_SMALL, _LARGE = 192, 384  # channels of DeiT tiny and small
_MOST_IMAGES = 8
_CLEARLY_SLOWER = 0.7
_SMALL_ROUNDS, _LARGE_ROUNDS = 2, 5


def measure_speedup(*, trains: bool) -> float:
    """Returns the time of a transformer block in fp32 divided by its time in bf16 (autocast), on the CPU.

    Both take turns, and the median of the ratios of the rounds counts: other work on the machine slows both alike. A
    small block comes first. If bf16 is clearly slower there, that is the answer; otherwise a larger one is measured.
    Takes about half a second. Changes no random state.

    Args:
        trains: Whether to compute the gradients too.
    """
    speedup = _speedup(_block(_SMALL, 1, trains), _SMALL_ROUNDS)
    if speedup < _CLEARLY_SLOWER:
        return speedup
    images = min(torch.get_num_threads(), _MOST_IMAGES)
    return _speedup(_block(_LARGE, images, trains), _LARGE_ROUNDS)


def _speedup(run: Callable[[bool], None], rounds: int) -> float:
    for in_bf16 in (False, True):
        run(in_bf16)  # the first call also prepares the kernels
    return statistics.median(_seconds(run, False) / _seconds(run, True) for _ in range(rounds))


def _seconds(run: Callable[[bool], None], in_bf16: bool) -> float:
    started = time.perf_counter()
    run(in_bf16)
    return max(time.perf_counter() - started, 1e-9)


def _block(width: int, images: int, trains: bool) -> Callable[[bool], None]:
    """Returns a function that computes one block of a DeiT; its argument says whether in bf16."""
    placements = {False: Placement(torch.device("cpu")), True: Placement(torch.device("cpu"), torch.bfloat16)}
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.device("cpu"):
        shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
        weights = [
            (torch.randn(shape, generator=generator, dtype=torch.float32) * width**-0.5).requires_grad_(trains)
            for shape in shapes
        ]
        tokens = torch.randn(images, _TOKENS, width, generator=generator, dtype=torch.float32)

    def run(in_bf16: bool) -> None:
        with (
            torch.inference_mode(not trains),
            torch.set_grad_enabled(trains),
            placements[in_bf16].autocast(),
        ):
            answer = _forward(tokens, weights)
            if trains:
                torch.autograd.grad(answer.float().sum(), weights)

    return run


def _forward(x: Tensor, weights: list[Tensor]) -> Tensor:
    qkv, projection, first, second = weights
    images, tokens, width = x.shape
    normalized = F.layer_norm(x, (width,))
    q, k, v = F.linear(normalized, qkv).view(images, tokens, 3, width // _HEAD, _HEAD).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, width)
    x = x + F.linear(attended, projection)
    normalized = F.layer_norm(x, (width,))
    return x + F.linear(F.gelu(F.linear(normalized, first)), second)

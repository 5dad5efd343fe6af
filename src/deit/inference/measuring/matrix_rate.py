"""Measures how fast this machine multiplies matrices: the limit that a transformer can be compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

_SIZES = (1024, 2048, 4096, 8192)  # of square matrices
_LONG_ENOUGH = 0.02  # seconds: a product that takes longer keeps every core busy, and a larger one gains nothing


class MatrixRate:
    """Multiplies matrices with each library that is there.

    Which library is best depends on the processor: PyTorch's products come from MKL and from oneDNN with a weight that
    was laid out beforehand, NumPy's from OpenBLAS. The fastest one counts.

    Args:
        precision: "fp32" or "bf16".
        device: Name of a device of PyTorch.
    """

    def __init__(self, precision: str, device: str = "cpu") -> None:
        self._products: list[tuple[int, Callable[[], Any]]] = []
        for size in _SIZES:
            products = _products(size, precision, device)
            self._products = [*self._products[-len(products) :], *((2 * size**3, each) for each in products)]
            if max(_seconds(each) for each in products) > _LONG_ENOUGH:
                break

    def measure(self, seconds: float) -> float:
        """Returns the best rate in floating-point operations per second.

        Args:
            seconds: Time to measure for; each product is done once in any case.
        """
        best = 0.0
        for operations, product in self._products:
            began, passed, times = time.perf_counter(), 0.0, 0
            while not times or passed < seconds / len(self._products):
                product()
                times += 1
                passed = time.perf_counter() - began
            best = max(best, times * operations / max(passed, 1e-9))
        return best


def _seconds(product: Callable[[], Any]) -> float:
    product()  # the first call also prepares
    before = time.perf_counter()
    product()
    return time.perf_counter() - before


def _products(size: int, precision: str, device: str) -> list[Callable[[], Any]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    on_gpu = torch.device(device).type == "cuda"

    def plain() -> None:
        torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize()

    found: list[Callable[[], Any]] = [plain]
    if torch.device(device).type != "cpu":
        return found
    from deit.models.trunk.cpu_kernels import linear, pack

    layer = torch.nn.Linear(size, size, dtype=dtype).requires_grad_(False).eval()
    pack(layer)

    def packed() -> None:
        with torch.inference_mode():
            linear(layer, left)

    found.append(packed)
    if precision == "fp32":
        a, b = left.numpy(), right.numpy()
        found.append(lambda: np.matmul(a, b))
    return found

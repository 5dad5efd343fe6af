"""Computes batch norm with mean and variance over all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deit.runtime.processes import Processes


class _Sum(torch.autograd.Function):
    """Sums over all processes, forward and backward."""

    @staticmethod
    def forward(context: Any, values: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        return processes.sum_tensor(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.processes.sum_tensor(gradient), None


def summed(values: Tensor, processes: Processes) -> Tensor:
    """Returns the sum of a tensor over all processes; the gradient is summed over them as well."""
    total: Tensor = _Sum.apply(values, processes)
    return total


def normalized(norm: Any, x: Tensor) -> Tensor:
    """Applies batch norm with mean and variance over all processes, which must have equally many images."""
    processes: Processes = norm.share.processes
    kind, wide = x.dtype, x.float()  # statistics in fp32, as in PyTorch
    dims = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() // x.shape[1] * processes.world_size
    mean = summed(wide.sum(dims), processes) / count
    centered = wide - mean.view(shape)
    variance = summed(centered.square().sum(dims), processes) / count
    if norm.track_running_stats and norm.running_mean is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            unbiased = variance * (count / max(count - 1, 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
    y = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(kind)

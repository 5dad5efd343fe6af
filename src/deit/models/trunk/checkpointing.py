"""Gradient checkpointing of blocks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from deit.runtime.library_order import make_order_safe


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Gradient checkpointing: blocks forget what is inside them and compute it again in the backward pass.

    Attributes:
        options: Of `torch.utils.checkpoint.checkpoint`.
        every: Every how many blocks.
        offload: Whether what a block keeps, its input, waits in the memory of the CPU.
    """

    options: dict[str, Any]
    every: int = 1
    offload: bool = False

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function of a block and its input."""
        make_order_safe()  # torch.utils.checkpoint loads torch._dynamo
        with save_on_cpu(pin_memory=arguments[1].is_cuda) if self.offload else nullcontext():
            return checkpoint(function, *arguments, **self.options)

"""The linear layer of the trunk: PyTorch's, and on request a faster one for the CPU with the same numbers.

PyTorch lays the weight out anew for the processor at every call. A packed layer does that once, by oneDNN's own
operators, and the activation that follows joins the multiplication. Measured in `benchmarks/models.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.models.construction import draws_initial_values

_PACKED_TYPES = (torch.float32, torch.bfloat16)


class Linear(nn.Linear):
    """A linear layer that can keep a copy of its weight in the processor's layout.

    The copy takes as much memory as the weight, is never saved, and is not used with gradients, under autocast, when
    compiling or exporting, or away from the CPU. It is made anew when PyTorch knows that the weight has changed, and
    given up in training mode.
    """

    # (first output, after the last one) -> what the weight was, and the copy; None while packing was not asked for.
    _packs: dict[tuple[int, int], tuple[Any, Tensor]] | None = None

    def reset_parameters(self) -> None:
        """Draws PyTorch's initial values, where anybody will see them."""
        if draws_initial_values():
            super().reset_parameters()

    def pack(self) -> None:
        """Asks for the copy; it is made at the first call without gradients."""
        self._packs = {}

    def train(self, mode: bool = True) -> Linear:
        """As in PyTorch; training mode gives up the copy."""
        if mode:
            self._packs = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        return self.rows(x, 0, self.out_features)

    def rows(self, x: Tensor, start: int, stop: int, *, gelu: bool = False) -> Tensor:
        """Computes some of the outputs.

        Args:
            x: (..., in_features).
            start: First output.
            stop: After the last one.
            gelu: Whether exact GELU follows.

        Returns:
            (..., stop - start).
        """
        whole = stop - start == self.out_features
        weight = self.weight if whole else self.weight[start:stop]
        bias = self.bias if whole or self.bias is None else self.bias[start:stop]
        if self._packs is not None and self._may_pack(x):
            pack = self._packed(self._packs, weight, start, stop)
            attribute, algorithm = ("gelu", "none") if gelu else ("none", "")
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), pack, bias, attribute, [], algorithm)
            return result
        result = F.linear(x, weight, bias)
        return F.gelu(result) if gelu else result

    def _may_pack(self, x: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and x.dtype in _PACKED_TYPES
            and not torch.compiler.is_compiling()
            and type(self.weight) is nn.Parameter
            and not torch.is_autocast_enabled("cpu")
            and _operators_exist()
        )

    def _packed(
        self, packs: dict[tuple[int, int], tuple[Any, Tensor]], weight: Tensor, start: int, stop: int
    ) -> Tensor:
        # What identifies the values: a change in place raises the version, a replacement moves the memory.
        version = 0 if self.weight.is_inference() else self.weight._version
        state = (self.weight.data_ptr(), version, self.weight.dtype)
        known, pack = packs.get((start, stop), (None, weight))
        if known != state:
            with torch.inference_mode(False):
                pack = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
            packs[start, stop] = (state, pack)
        return pack

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packs": None}  # neither copied nor pickled


@functools.cache
def _operators_exist() -> bool:
    """Whether this PyTorch has oneDNN's operators; they are not part of its public interface."""
    if not torch.backends.mkldnn.is_available():
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))


def is_watched(module: nn.Module) -> bool:
    """Whether hooks hang on a module, so that it must be called as it is."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks hang on a module or on anything inside it, so that no shortcut may be taken around it."""
    return any(is_watched(inner) for inner in module.modules())

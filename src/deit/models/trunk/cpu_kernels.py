"""Linear layers that run faster on the CPU, with the same numbers, for modules that nobody has changed.

PyTorch lays a weight out anew for the processor at every call. `pack` keeps that layout, by oneDNN's own operators, and
lets the activation that follows join the multiplication. Measured in `benchmarks/models.py`.

The layers stay PyTorch's own `nn.Linear`, so tools that look for that class (quantization, LoRA, hooks) find them. Each
function here calls the module as it is unless `is_untouched` says that nobody could notice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

Forwards = Mapping[type[nn.Module], Callable[..., Any]]

_LINEAR: Forwards = {nn.Linear: nn.Linear.forward}

# Layer -> (first output, after the last one) -> what identifies the weight's values, and the copy. Kept outside of the
# layers, so that copies and pickles of a model never hold them.
_packs: WeakKeyDictionary[nn.Module, dict[tuple[int, int], tuple[Any, Tensor]]] = WeakKeyDictionary()


def is_untouched(module: nn.Module, forwards: Forwards, *, inside: bool = True) -> bool:
    """Whether a module computes exactly what its class says, so that a shortcut may stand for it unnoticed.

    False for another class (a subclass, a swapped `__class__`), a replaced `forward` of the class or of the instance
    (which is how accelerate offloads weights), a compiled module, and a hook of any kind, global ones included.

    Args:
        module: The module.
        forwards: The classes that the shortcut knows, each with the `forward` that it stands for.
        inside: Whether the modules inside it count as well.
    """
    if _has_any_global_hook():
        return False
    modules = module.modules() if inside else (module,)
    return all(_is_untouched(inner, forwards) for inner in modules)


def _is_untouched(module: nn.Module, forwards: Forwards) -> bool:
    kind = type(module)
    return (
        kind in forwards
        and kind.forward is forwards[kind]
        and "forward" not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and module._compiled_call_impl is None
    )


def pack(layer: nn.Linear) -> None:
    """Lets `linear` keep a copy of a layer's weight in the processor's layout.

    The copy is made at the first call without gradients and takes as much memory as the weight. It is not used with
    gradients, in training mode (which gives it up), under autocast, when compiling, exporting or tracing, or away from
    the CPU. It is made anew when PyTorch knows that the weight has changed.
    """
    _packs[layer] = {}


def linear(layer: Any, x: Tensor) -> Tensor:
    """Calls a linear layer, by its packed weight where it has one.

    Args:
        layer: A linear layer, or what a user has put in its place.
        x: (..., in_features).

    Returns:
        (..., out_features).
    """
    if _has_pack(layer) and is_untouched(layer, _LINEAR) and _may_pack(layer, x):
        return _packed_product(layer, x, 0, layer.out_features)
    result: Tensor = layer(x)
    return result


def linear_activation(layer: Any, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Calls a linear layer and the activation that follows it; exact GELU joins the product with a packed weight."""
    if activation is F.gelu and _has_pack(layer) and is_untouched(layer, _LINEAR) and _may_pack(layer, x):
        return _packed_product(layer, x, 0, layer.out_features, gelu=True)
    return activation(layer(x))


def linear_rows(layer: nn.Linear, x: Tensor, start: int, stop: int) -> Tensor:
    """Computes some outputs of an untouched linear layer.

    Args:
        layer: The layer; the caller has asked `is_untouched`.
        x: (..., in_features).
        start: First output.
        stop: After the last one.

    Returns:
        (..., stop - start).
    """
    if _has_pack(layer) and _may_pack(layer, x):
        return _packed_product(layer, x, start, stop)
    return F.linear(x, layer.weight[start:stop], None if layer.bias is None else layer.bias[start:stop])


def _has_pack(layer: nn.Module) -> bool:
    if torch.compiler.is_compiling() or layer not in _packs:
        return False
    if layer.training:
        del _packs[layer]
        return False
    return True


def _may_pack(layer: nn.Linear, x: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype
        and _packs_type(x.dtype)
        and type(x) is Tensor
        and type(layer.weight) is nn.Parameter
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._get_tracing_state()
        and not torch._C._are_functorch_transforms_active()
    )


def _packed_product(layer: nn.Linear, x: Tensor, start: int, stop: int, *, gelu: bool = False) -> Tensor:
    copies = _packs[layer]
    # What identifies the values: a change in place raises the version, a replacement moves the memory.
    version = 0 if layer.weight.is_inference() else layer.weight._version
    state = (layer.weight.data_ptr(), version, layer.weight.dtype)
    known, copy = copies.get((start, stop), (None, layer.weight))
    if known != state:
        with torch.inference_mode(False):
            copy = torch.ops.mkldnn._reorder_linear_weight(layer.weight[start:stop].detach().contiguous())
        copies[start, stop] = (state, copy)
    bias = None if layer.bias is None else layer.bias[start:stop]
    attribute, algorithm = ("gelu", "none") if gelu else ("none", "")
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), copy, bias, attribute, [], algorithm)
    return result


@functools.cache
def _packs_type(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this type here. Its operators are not part of PyTorch's public interface."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    # Without AVX-512 or better, oneDNN refuses bfloat16 with an error.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())

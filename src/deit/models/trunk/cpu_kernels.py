"""The operations of the network, each computed by the fastest way that gives the same numbers.

The network calls one function for each operation: `linear` and `linear_activation`, `attend`, `run_block` (which leaves
out the samples that drop path skips) and `first_tokens` (the last block for the class and distillation tokens alone).
They decide; the network does not. A shortcut is taken only around modules for which `is_untouched` holds; everything
else is called as it is, so hooks, replaced methods, swapped classes and other modules act as anywhere in PyTorch.

Most gains are for the CPU. PyTorch lays a weight out anew for the processor at every call: `pack` keeps that layout, by
oneDNN's own operators, and lets the activation that follows join the multiplication. The layers stay PyTorch's own
`nn.Linear`, so tools that look for that class (quantization, LoRA) find them. Measured in `benchmarks/models.py` and
`benchmarks/training.py`.

Letters in shape comments: B batch, N tokens, D embedding dimension, H heads, d = D / H.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from deit.models.trunk.attention import attend_by_name
from deit.models.trunk.gradients import attend_by_hand

Forwards = Mapping[type[nn.Module], Callable[..., Any]]

# Attention by hand keeps its probabilities (B, H, N, N) for the backward pass; above this N it is too much memory.
MAX_TOKENS = 640

# What an instance of a layer in a block can replace: the methods of every module, and those of our layers.
METHODS = frozenset(name for name in dir(nn.Module) if callable(getattr(nn.Module, name))) | {"draw", "project"}

_LINEAR: Forwards = {nn.Linear: nn.Linear.forward}

# Layer -> (first output, after the last one) -> what identifies the weight's values, and the copy. Kept outside of the
# layers, so that copies and pickles of a model never hold them.
_packs: WeakKeyDictionary[nn.Module, dict[tuple[int, int], tuple[Any, Tensor]]] = WeakKeyDictionary()


def is_untouched(module: nn.Module, forwards: Forwards, *, inside: bool = True) -> bool:
    """Whether a module computes exactly what its class says, so that a shortcut may stand for it unnoticed.

    False for another class (a subclass, a swapped `__class__`), a replaced `forward` of the class, a replaced method of
    the instance (accelerate offloads weights by its `forward`), a compiled module, and a hook of any kind, global ones
    included.

    Args:
        module: The module.
        forwards: The classes that the shortcut knows, each with the `forward` that it stands for.
        inside: Whether the modules inside it count as well.
    """
    if _has_any_global_hook():
        return False
    modules = module.modules() if inside else (module,)
    return all(_is_untouched(inner, forwards) for inner in modules)


def are_untouched(modules: Iterable[Any], forwards: Forwards) -> bool:
    """Whether all of some modules are untouched themselves, whatever is inside them; see `is_untouched`.

    Args:
        modules: The modules; anything else among them is not untouched.
        forwards: See `is_untouched`.
    """
    return all(is_untouched(module, forwards, inside=False) for module in modules)


def _is_untouched(module: nn.Module, forwards: Forwards) -> bool:
    kind = type(module)
    return (
        kind in forwards
        and kind.forward is forwards[kind]
        and not any(name in METHODS for name in module.__dict__)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and module._compiled_call_impl is None
    )


# --- linear layers ------------------------------------------------------------------------------------


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
    """Whether oneDNN multiplies this type faster than PyTorch's other libraries here.

    Its operators are not part of PyTorch's public interface.
    """
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    # Without AVX-512, MKL, which PyTorch calls for other weights, is a tenth to a fifth faster than oneDNN, and oneDNN
    # refuses bfloat16 with an error.
    if torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.mkl.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


# --- attention ----------------------------------------------------------------------------------------


def attend(
    qkv: Tensor, implementation: str, bias: Tensor | None, head_mask: Tensor | None, dropout_rate: float
) -> tuple[Tensor, Tensor | None]:
    """Attends; without masks, dropout and maps by the fastest way on this device.

    Args:
        qkv: Query, key and value, (B, N, 3, H, d).
        implementation: What `choose_implementation` returned.
        bias: Added to the scores before softmax, broadcast to (B, H, N, N).
        head_mask: Multiplies the probabilities, broadcast to (B, H, N, N).
        dropout_rate: Dropout on the probabilities; 0 outside of training.

    Returns:
        (B, N, H * d), and the probabilities (B, H, N, N) where the implementation is "eager".
    """
    if implementation != "sdpa" or bias is not None or head_mask is not None or dropout_rate:
        return attend_by_name(qkv, implementation, bias, head_mask, dropout_rate)
    if can_attend(qkv):
        return attend_by_hand(qkv), None
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, d)
    if _is_faster_in_steps(query):
        mixed = F.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3), dim=-1) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2), None


def attend_of_few(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of a few queries, such as those of the class and the distillation token, without dropout.

    Args:
        query: (B, H, M, d), M much less than N.
        key: (B, H, N, d).
        value: (B, H, N, d).
        bias: Added to the scores before softmax, broadcast to (B, H, M, N).

    Returns:
        (B, H, M, d).
    """
    if query.dtype == torch.bfloat16 and backward_by_hand(query):  # PyTorch's backward takes several times as long
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return F.softmax(scores if bias is None else scores + bias, dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def backward_by_hand(x: Tensor) -> bool:
    """Whether ways of training on the CPU may stand for PyTorch's own at this input.

    Everything else (a GPU, compiling, exporting, tracing, function transforms) takes PyTorch's way.
    """
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not torch._C._are_functorch_transforms_active()
    )


def can_attend(qkv: Tensor) -> bool:
    """Whether `attend_by_hand` is the right way for this projection (B, N, 3, H, d)."""
    return qkv.dtype in (torch.float32, torch.bfloat16) and qkv.shape[1] <= MAX_TOKENS and backward_by_hand(qkv)


def _is_faster_in_steps(query: Tensor) -> bool:
    """Whether two plain products beat PyTorch's fused attention: in bfloat16 on the CPU, for images of usual size.

    The scores are rounded to bfloat16, as in the eager path.
    """
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[2] <= 1024
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


# --- blocks -------------------------------------------------------------------------------------------


def run_block(
    block: Any, x: Tensor, implementation: str, bias: Tensor | None, head_mask: Tensor | None, forwards: Forwards
) -> tuple[Tensor, Tensor | None]:
    """Calls a block; in training on the CPU it leaves out the samples that drop path skips.

    On a GPU asking which samples are skipped would make it wait.

    Args:
        block: A `Block`, or what a user has put in its place.
        x: (B, N, D).
        implementation: As in `Block.forward`.
        bias: As in `Block.forward`.
        head_mask: As in `Block.forward`.
        forwards: What an untouched block is made of; see `is_untouched`.
    """
    if implementation != "eager" and bias is None and head_mask is None and _skips_samples(block, x, forwards):
        x = _add_kept(block, x, lambda kept: block.attn(block.norm1(kept), implementation, None, None)[0], block.ls1)
        return _add_kept(block, x, lambda kept: block.mlp(block.norm2(kept)), block.ls2), None
    result: tuple[Tensor, Tensor | None] = block(x, implementation, bias, head_mask)
    return result


def _skips_samples(block: nn.Module, x: Tensor, forwards: Forwards) -> bool:
    return block.training and backward_by_hand(x) and is_untouched(block, forwards) and _drops_paths_alone(block)


def _drops_paths_alone(block: Any) -> bool:
    return block.drop_path.is_active and not _has_dropout(block)


def _has_dropout(block: Any) -> bool:
    """Returns True if dropout is active. A shortcut would draw other shapes, so adding a hook would change the run."""
    return (block.drop.training and block.drop.p > 0.0) or (block.attn.training and block.attn.dropout_rate > 0.0)


def _add_kept(block: Any, x: Tensor, branch: Callable[[Tensor], Tensor], scale: nn.Module) -> Tensor:
    """Adds a residual branch that is computed only for the samples that drop path keeps."""
    kept = block.drop_path.draw(x).flatten().nonzero().flatten()
    factor = 0.0
    if len(kept):
        factor = 1.0 / (1.0 - block.drop_path.rate)
    else:  # one sample for nothing, so that every parameter has a gradient
        kept = kept.new_zeros(1)
    if len(kept) == len(x):
        return torch.add(x, scale(branch(x)).to(x.dtype), alpha=factor)
    y = scale(branch(x.index_select(0, kept)))
    return x.index_add(0, kept, y.to(x.dtype), alpha=factor)


def first_tokens(
    block: Any, norm: nn.Module, x: Tensor, count: int, forwards: Forwards, bias: Tensor | None = None
) -> Tensor | None:
    """Computes the last block and the final norm for the first tokens alone.

    Args:
        block: A `Block`, or what a user has put in its place.
        norm: The final norm, or what a user has put in its place.
        x: (B, N, D).
        count: Number of first tokens; all N are attended to.
        forwards: What an untouched block is made of; see `is_untouched`.
        bias: Added to the scores before softmax, broadcast to (B, H, N, N), the same for all N rows.

    Returns:
        (B, count, D), the first rows of `norm(block(x))`; None where the block must be called as it is.
    """
    if not can_compute_prefix(block, forwards) or not is_untouched(norm, forwards):
        return None
    result: Tensor = norm(compute_prefix(block, x, count, bias))
    return result


def can_compute_prefix(block: nn.Module, forwards: Forwards) -> bool:
    """Whether `compute_prefix` may stand for a block: nobody watches or changed anything in it, and no dropout acts."""
    return is_untouched(block, forwards) and not _has_dropout(block)


def compute_prefix(block: Any, x: Tensor, count: int, bias: Tensor | None = None) -> Tensor:
    """Computes an untouched block for its first tokens alone.

    Args:
        block: A `Block`.
        x: (B, N, D).
        count: Number of first tokens; all N are attended to.
        bias: See `first_tokens`.

    Returns:
        (B, count, D), the first rows of what `Block.forward` would return.
    """
    mixed = _attend_of_first(block.attn, block.norm1(x), count, bias)
    x = x[:, :count] + _drop_path(block, block.ls1(mixed)).to(x.dtype)
    hidden = linear_activation(block.mlp.fc1, block.mlp.activation, block.norm2(x))
    return x + _drop_path(block, block.ls2(linear(block.mlp.fc2, hidden))).to(x.dtype)


def _drop_path(block: Any, branch: Tensor) -> Tensor:
    dropped: Tensor = block.drop_path(branch) if block.drop_path.training else branch
    return dropped


def _attend_of_first(attention: Any, x: Tensor, count: int, bias: Tensor | None) -> Tensor:
    batch, tokens, _ = x.shape
    heads = len(attention.heads)
    inner = heads * attention.head_width
    if attention.qkv is None:
        first, second, third = (getattr(attention, name) for name in attention.qkv_names)
        queries, both = linear(first, x[:, :count]), torch.cat((linear(second, x), linear(third, x)), dim=-1)
    else:
        queries = linear_rows(attention.qkv, x[:, :count], 0, inner)
        both = linear_rows(attention.qkv, x, inner, 3 * inner)
    query = queries.view(batch, count, heads, -1).transpose(1, 2)
    both = both.view(batch, tokens, 2, heads, -1)
    key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, d)
    mixed = attend_of_few(query, key, value, None if bias is None else bias.to(query.dtype))
    return linear(attention.proj, mixed.transpose(1, 2).reshape(batch, count, -1))

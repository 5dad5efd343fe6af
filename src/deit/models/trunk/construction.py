"""Building a model that is about to be filled from a file: no initial values are drawn, no memory is touched twice."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EmptyParts:
    """The parts of a model that were built without values.

    Attributes:
        device: Where they were built.
        dtype: Their type.
        modules: The parts.
    """

    device: torch.device
    dtype: torch.dtype
    modules: list[nn.Module] = field(default_factory=list)

    def everything_inside(self) -> set[nn.Module]:
        """Returns the parts and all modules in them."""
        return {inner for module in self.modules for inner in module.modules()}


_ALIGNMENT = 64  # bytes, as PyTorch's own allocator

Built = TypeVar("Built", bound=nn.Module)

_current: ContextVar[EmptyParts | None] = ContextVar("empty_parts", default=None)


@contextmanager
def without_initial_values(device: torch.device, dtype: torch.dtype) -> Iterator[EmptyParts]:
    """While it lasts, `construct` reserves memory and leaves it as it is.

    Only modules that go through `construct` are concerned, which are the package's own trunks: what a user's subclass
    makes in its constructor keeps its values.

    Args:
        device: Where the modules shall be.
        dtype: Type of their parameters.

    Yields:
        The list of what was built empty; all of it must be filled.
    """
    parts = EmptyParts(device=device, dtype=dtype)
    token = _current.set(parts)
    try:
        yield parts
    finally:
        _current.reset(token)


class _UndrawnLinear(nn.Linear):
    def reset_parameters(self) -> None:
        """Leaves the values as they are."""


class _UndrawnConv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Leaves the values as they are."""


def new_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Builds PyTorch's linear layer; it draws no initial values while a checkpoint is about to fill it."""
    if _current.get() is None:
        return nn.Linear(in_features, out_features, bias)
    layer: nn.Linear = _UndrawnLinear(in_features, out_features, bias)
    layer.__class__ = nn.Linear  # tools look for exactly this class
    return layer


def linear_like(old: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Builds a linear layer with copies of a weight and a bias; it is trained, or not, as an older layer."""
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.clone(), requires_grad=old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), requires_grad=old.bias.requires_grad)
    return new.train(old.training)


def new_projection(channels: int, width: int, patch_size: tuple[int, int]) -> nn.Conv2d:
    """Builds the convolution of a patch embedding; see `new_linear` for its values."""
    if _current.get() is None:
        return nn.Conv2d(channels, width, patch_size, patch_size)
    layer: nn.Conv2d = _UndrawnConv2d(channels, width, patch_size, patch_size)
    layer.__class__ = nn.Conv2d
    return layer


def construct(build: Callable[[], Built]) -> Built:
    """Builds a module whose parameters a checkpoint holds in full, and which has no buffers.

    Args:
        build: Returns the module, with or without initial values.
    """
    parts = _current.get()
    if parts is None:
        return build()
    if parts.device.type == "cpu" and parts.dtype == torch.get_default_dtype():
        module = build()  # memory that nobody writes to costs nothing
        parts.modules.append(module)
        return module
    with torch.device("meta"):
        module = build()
    assert not list(module.buffers()), "a buffer would lose its values"
    for inner in module.modules():
        for name, old in inner._parameters.items():
            if old is not None:
                dtype = parts.dtype if old.is_floating_point() else old.dtype
                memory = torch.empty(old.shape, dtype=dtype, device=parts.device)
                inner._parameters[name] = nn.Parameter(memory, requires_grad=old.requires_grad)
    parts.modules.append(module)
    return module


def waits_for_values() -> bool:
    """Whether models that are built now wait for the values of a file."""
    return _current.get() is not None


def modules_to_initialize(model: nn.Module) -> list[nn.Module]:
    """Returns all modules of a model but those that wait for the values of a file."""
    parts = _current.get()
    if parts is None:
        return list(model.modules())
    empty = set(parts.modules)

    def outside(module: nn.Module) -> Iterator[nn.Module]:
        if module not in empty:
            yield module
            for child in module.children():
                yield from outside(child)

    return list(dict.fromkeys(outside(model)))


def mark_as_initialized(model: nn.Module) -> None:
    """Keeps transformers from giving the modules of a model new values, where it is part of a model of transformers.

    There, `post_init` draws values for every module inside that is not marked so. What was built without memory gets no
    mark: transformers fills it, and initializes what its file lacks.

    Args:
        model: Has its values, or waits for those of a file.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        for module in model.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]


def reserve_memory(parameters: Iterable[nn.Parameter]) -> None:
    """Gives parameters new memory without values, in large pages where the system has them: they are faster to fill.

    Args:
        parameters: On the CPU, and about to be filled.
    """
    places, size = [], 0
    for parameter in parameters:
        if parameter.numel():
            places.append((parameter, size))
            size += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
    if not size:
        return
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    for parameter, offset in places:
        flat = torch.frombuffer(memory, dtype=parameter.dtype, count=parameter.numel(), offset=offset)
        parameter.data = flat.view(parameter.shape)

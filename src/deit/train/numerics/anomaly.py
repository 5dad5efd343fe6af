"""Finds the module in which the first number of a step arose that is not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class AnomalyWatch:
    """Watches what the modules of a student compute, forward and backward. Each value is waited for: it is slow.

    A module is named if what it got was finite and what it gave was not. Between modules, such as in a residual sum or
    the loss, the module whose output was used is named.

    Args:
        student: Its modules and parameters get hooks, which stay.

    Attributes:
        found: Where the first number arose that is not finite, since `begin`; empty if all were finite.
    """

    def __init__(self, student: nn.Module) -> None:
        self.found = ""
        for name, module in student.named_modules():
            title = f"{name or 'the student'} ({type(module).__name__})"
            module.register_forward_pre_hook(partial(self._enter, title), with_kwargs=True)
            module.register_forward_hook(partial(self._leave, title))
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._gradient(f"the backward pass, in the gradient of {name}"))

    def begin(self, pixels: Tensor) -> None:
        """Begins a step.

        Args:
            pixels: What the student will see.
        """
        self.found = ""
        self._look(pixels, "the images of the batch, before the student")

    def _enter(self, title: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._look(tensor, f"the forward pass, in what {title} receives")

        def watched(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            view = value.view_as(value)  # its gradient comes from this module alone
            view.register_hook(self._gradient(f"the backward pass of {title}"))
            return view

        return tuple(map(watched, args)), {name: watched(value) for name, value in kwargs.items()}

    def _leave(self, title: str, module: nn.Module, args: Any, output: Any) -> None:
        weights = [name for name, weight in module.named_parameters(recurse=False) if not _is_finite(weight)]
        why = f", whose {weights[0]} is not finite" if weights else ""
        for tensor in _tensors(output):
            self._look(tensor, f"the forward pass of {title}{why}")
            if tensor.requires_grad:
                tensor.register_hook(self._gradient(f"the backward pass, in what uses the output of {title}"))

    def _gradient(self, place: str) -> Callable[[Tensor], None]:
        return lambda gradient: self._look(gradient, place)

    def _look(self, tensor: Tensor, place: str) -> None:
        if not self.found and not _is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            self.found = f"{place}, in {bad} of {tensor.numel()} numbers"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested tuples, lists, mappings and dataclasses, as modules take and return them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))

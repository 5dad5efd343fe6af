"""Low-rank adapters (LoRA) of Keras's linear layers: adding them to a model, and keeping them in Keras's files.

When Keras saves a layer it adds the adapters to the matrix. The models of this package also write matrix and adapters
separately, so that loading restores both. Readers without adapters get the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
from keras import ops

from deit.core.errors import UserError
from deit.keras.weights import network_slots

_PREFIX = "adapter:"
# Variables of a layer that are written: the matrix without adapters (with scales if quantized), then the adapters.
_TENSORS = ("_kernel", "kernel_scale", "kernel_zero", "lora_kernel_a", "lora_kernel_b")


def named_layers(layer: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a model and all its layers, outer layers first, with their paths below the model."""
    yield name, layer
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield from named_layers(inner, f"{name}/{inner.name}" if name else inner.name)


def _own_adapted_layers(model: Any) -> dict[str, Any]:
    """Returns the layers with adapters by name, without those of a nested model, which writes its own."""
    inner = tuple(f"{name}/" for name, layer in named_layers(model) if name and isinstance(layer, keras.Model))
    return {
        name.replace("/", "."): layer
        for name, layer in named_layers(model)
        if getattr(layer, "lora_enabled", False) and not name.startswith(inner)
    }


def enable_adapters(
    model: Any, rank: int, names: Iterable[str], *, alpha: float | None, trunk: Iterable[Any]
) -> list[Any]:
    """Adds adapters to the linear layers of the given names, and freezes the weights of the trunk.

    Args:
        model: The model whose layers are searched.
        rank: Rank of the adapters.
        names: Names of the layers, such as "qkv".
        alpha: Factor of the adapters, which is alpha / rank; None takes the rank.
        trunk: Layers whose weights are frozen.

    Returns:
        The layers.

    Raises:
        ValueError: The rank is below 1, no layer has the name, or a layer already has adapters.
    """
    if rank < 1:
        raise UserError(f"rank must be at least 1. Received: {rank}.")
    wanted = {names} if isinstance(names, str) else set(names)
    linear = [layer for _, layer in named_layers(model) if isinstance(layer, keras.layers.Dense)]
    found = [layer for layer in linear if layer.name in wanted]
    unknown = wanted - {layer.name for layer in found}
    if unknown or not found:
        known = ", ".join(sorted({layer.name for layer in linear}))
        raise UserError(f"No linear layer is named {min(unknown, default='')!r}. Known: {known}.")
    if any(layer.lora_enabled for layer in found):
        raise UserError("These layers have adapters already.")
    for part in trunk:
        for slot in network_slots(part).values():
            slot.variable.trainable = False
    for layer in found:
        layer.enable_lora(rank, lora_alpha=alpha)
    return found


def save_adapters(model: Any, store: Any) -> None:
    """Writes matrix and adapters of each adapted layer into the store of `save_own_variables`."""
    for name, layer in _own_adapted_layers(model).items():
        for part in _TENSORS:
            variable = getattr(layer, part, None)
            if variable is not None:
                store[f"{_PREFIX}{name}:{part}"] = ops.convert_to_numpy(variable.value)


def load_adapters(model: Any, store: Mapping[str, Any]) -> None:
    """Restores what `save_adapters` wrote, once Keras has loaded the layers (it loads a model before its layers)."""
    for name, layer in _own_adapted_layers(model).items():
        parts = {part: f"{_PREFIX}{name}:{part}" for part in _TENSORS}
        values = {part: store[key] for part, key in parts.items() if key in store.keys()}  # noqa: SIM118 - no mapping
        if values:
            layer.load_own_variables = _Loading(layer, values)


def without_adapters(store: Any) -> dict[str, Any]:
    """Returns the variables of the model itself; Keras checks their number."""
    return {key: store[key] for key in store.keys() if not key.startswith(_PREFIX)}  # noqa: SIM118 - no mapping


class _Loading:
    """Replaces `load_own_variables` of a layer for one call: loads as Keras does, then sets matrix and adapters."""

    def __init__(self, layer: Any, values: Mapping[str, Any]) -> None:
        self.layer, self.values = layer, values

    def __call__(self, store: Any) -> None:
        del self.layer.load_own_variables
        self.layer.load_own_variables(store)
        for part, value in self.values.items():
            getattr(self.layer, part).assign(value)

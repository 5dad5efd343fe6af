"""Low-rank adapters (LoRA) of Keras's linear layers: how a model gets them, and that its own files keep them apart.

Keras adds adapters to the matrix when it saves a layer. A model here also writes matrix and adapters apart, so that a
file opens as what was saved; a reader that knows nothing of adapters finds the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
from keras import ops

from deit.core.errors import UserError
from deit.keras.weights import network_slots

_PREFIX = "adapter:"
# What of a layer is written: the matrix without its adapters (quantized: with scales), then the adapters.
_TENSORS = ("_kernel", "kernel_scale", "kernel_zero", "lora_kernel_a", "lora_kernel_b")


def named_layers(layer: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a model and all its layers, the outer ones first, by their path of names below the model."""
    yield name, layer
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield from named_layers(inner, f"{name}/{inner.name}" if name else inner.name)


def _own_adapted_layers(model: Any) -> dict[str, Any]:
    """Returns the layers with adapters by their names, without those of a model inside, which writes its own."""
    inner = tuple(f"{name}/" for name, layer in named_layers(model) if name and isinstance(layer, keras.Model))
    return {
        name.replace("/", "."): layer
        for name, layer in named_layers(model)
        if getattr(layer, "lora_enabled", False) and not name.startswith(inner)
    }


def enable_adapters(
    model: Any, rank: int, names: Iterable[str], *, alpha: float | None, trunk: Iterable[Any]
) -> list[Any]:
    """Gives the linear layers of some names adapters, and freezes the weights of the trunk.

    Args:
        model: All whose layers are looked at.
        rank: Of the adapters.
        names: Names of the layers, such as "qkv".
        alpha: The adapters are multiplied by alpha / rank.
        trunk: Layers whose own weights are frozen.

    Returns:
        The layers.

    Raises:
        ValueError: The rank is smaller than 1, no layer has such a name, or one has adapters already.
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
    """Writes matrix and adapters of each adapted layer of a model into what Keras gives to `save_own_variables`."""
    for name, layer in _own_adapted_layers(model).items():
        for part in _TENSORS:
            variable = getattr(layer, part, None)
            if variable is not None:
                store[f"{_PREFIX}{name}:{part}"] = ops.convert_to_numpy(variable.value)


def load_adapters(model: Any, store: Mapping[str, Any]) -> None:
    """Sets what `save_adapters` wrote, as soon as Keras has loaded the layers, which come after their model."""
    for name, layer in _own_adapted_layers(model).items():
        parts = {part: f"{_PREFIX}{name}:{part}" for part in _TENSORS}
        values = {part: store[key] for part, key in parts.items() if key in store.keys()}  # noqa: SIM118 - no mapping
        if values:
            layer.load_own_variables = _Loading(layer, values)


def without_adapters(store: Any) -> dict[str, Any]:
    """Returns the variables of the model itself, which Keras counts."""
    return {key: store[key] for key in store.keys() if not key.startswith(_PREFIX)}  # noqa: SIM118 - no mapping


class _Loading:
    """Stands for the `load_own_variables` of a layer once: what Keras loads, then matrix and adapters apart."""

    def __init__(self, layer: Any, values: Mapping[str, Any]) -> None:
        self.layer, self.values = layer, values

    def __call__(self, store: Any) -> None:
        del self.layer.load_own_variables
        self.layer.load_own_variables(store)
        for part, value in self.values.items():
            getattr(self.layer, part).assign(value)

"""What is set on a Keras model after it was built: what is frozen, types, quantization and adapters of single layers.

Keras writes the arguments of a constructor into `.keras` files, pickles and clones. The models here are built by theirs
alone, so that without this all of it would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from deit.keras.adapters import named_layers
from deit.keras.weights import network_slots


def layer_states(model: Any) -> dict[str, Any]:
    """Returns, as JSON has it, what `restore_layer_states` sets on a new model.

    Args:
        model: One of this package's, with `network_parts`.
    """
    frozen_layers, types, quantized, adapted = [], {}, {}, {}
    for name, layer in named_layers(model):
        if not layer.trainable:
            frozen_layers.append(name)
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            config = keras.saving.serialize_keras_object(getattr(layer, "quantization_config", None))
            quantized[name] = {"mode": mode, "config": config}
        elif layer.dtype_policy != model.dtype_policy:
            types[name] = keras.dtype_policies.serialize(layer.dtype_policy)
        if getattr(layer, "lora_enabled", False):
            adapted[name] = {"rank": layer.lora_rank, "lora_alpha": layer.lora_alpha}
    frozen_tensors = [name for name, slot in network_slots(model).items() if not slot.variable.trainable]
    states = {
        "frozen_layers": frozen_layers,
        "frozen_tensors": frozen_tensors,
        "types": types,
        "quantized": quantized,
        "adapted": adapted,
    }
    return {name: value for name, value in states.items() if value}


def restore_layer_states(model: Any, states: Mapping[str, Any]) -> None:
    """Sets on a new model what `layer_states` found on the old one; weights are left to Keras."""
    layers = dict(named_layers(model))
    for name, values in states.get("quantized", {}).items():
        layers[name].quantize(values["mode"], config=keras.saving.deserialize_keras_object(values["config"]))
    for name, policy in states.get("types", {}).items():
        layers[name].dtype_policy = keras.dtype_policies.deserialize(policy)
    for name, values in dict(states.get("adapted", {})).items():
        layers[name].enable_lora(**values)
    frozen_layers = set(states.get("frozen_layers", ()))
    if frozen_layers:
        for name, layer in layers.items():  # the outer ones first: a flag is handed down to all that is inside
            layer.trainable = name not in frozen_layers
    frozen_tensors = set(states.get("frozen_tensors", ()))
    for name, slot in network_slots(model).items():
        slot.variable.trainable = name not in frozen_tensors

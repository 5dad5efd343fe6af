"""The state of a Keras model that its constructor does not know: frozen layers, dtypes, quantization, adapters.

`.keras` files, pickles and clones of Keras hold the arguments of a constructor. This module adds what was set later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from deit.keras.adapters import named_layers
from deit.keras.weights import network_slots


def layer_states(model: Any) -> dict[str, Any]:
    """Returns the state of all layers as JSON values, for `restore_layer_states`.

    Args:
        model: A model of this package.
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
    """Applies the result of `layer_states` to a new model. Keras loads the weights."""
    layers = dict(named_layers(model))
    for name, values in states.get("quantized", {}).items():
        layers[name].quantize(values["mode"], config=keras.saving.deserialize_keras_object(values["config"]))
    for name, policy in states.get("types", {}).items():
        layers[name].dtype_policy = keras.dtype_policies.deserialize(policy)
    for name, values in dict(states.get("adapted", {})).items():
        layers[name].enable_lora(**values)
    frozen_layers = set(states.get("frozen_layers", ()))
    if frozen_layers:
        for name, layer in layers.items():  # outer layers first: setting a flag sets it on all inner layers
            layer.trainable = name not in frozen_layers
    frozen_tensors = set(states.get("frozen_tensors", ()))
    for name, slot in network_slots(model).items():
        slot.variable.trainable = name not in frozen_tensors

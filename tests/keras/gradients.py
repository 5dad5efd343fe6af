"""Gradients with the tool of the backend that runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from deit.keras.weights import Slot, network_slots


def objective(output: Any) -> Any:
    """The loss, or the mean of the squares of all that a model without one returns."""
    if "loss" in output:
        return output["loss"]
    names = ("logits", "last_hidden_state", "pooler_output")
    return sum(keras.ops.mean(output[name] ** 2) for name in names if name in output)


def gradients(model: Any, inputs: dict[str, Any], training: bool = False) -> dict[str, np.ndarray]:
    """Gradients of the objective by the name of the tensor in the network, laid out as in PyTorch."""
    found = _FUNCTIONS[keras.backend.backend()](model, inputs, training)
    by_variable = {id(v): g for v, g in zip(model.trainable_variables, found, strict=True)}
    result = {}
    for name, slot in network_slots(model).items():
        gradient = by_variable.get(id(slot.variable))
        if gradient is not None:
            result[name] = _as_in_files(slot, np.asarray(gradient))
    return result


def derivative(function: Callable[[Any], Any], at: np.ndarray) -> np.ndarray:
    """The derivative of a function from a tensor to a number."""
    backend, point = keras.backend.backend(), keras.ops.convert_to_tensor(at)
    if backend == "jax":
        jax = importlib.import_module("jax")
        return np.asarray(jax.jit(jax.grad(function))(point))
    if backend == "torch":
        point.requires_grad_()
        function(point).backward()
        return np.asarray(point.grad)
    tf = importlib.import_module("tensorflow")
    with tf.GradientTape() as tape:
        tape.watch(point)
        value = function(point)
    return np.asarray(tape.gradient(value, point))


def _as_in_files(slot: Slot, value: np.ndarray) -> np.ndarray:
    return (value.T if slot.transposed else value).reshape(slot.shape)


def _with_tensorflow(model: Any, inputs: dict[str, Any], training: bool) -> list[Any]:
    tf = importlib.import_module("tensorflow")
    with tf.GradientTape() as tape:
        value = objective(model(**inputs, training=training))
    return [None if g is None else g.numpy() for g in tape.gradient(value, model.trainable_variables)]


def _with_jax(model: Any, inputs: dict[str, Any], training: bool) -> list[Any]:
    jax = importlib.import_module("jax")

    def value(trainable: Any, other: Any) -> Any:
        return objective(model.stateless_call(trainable, other, **inputs, training=training)[0])

    trainable = [v.value for v in model.trainable_variables]
    return list(jax.jit(jax.grad(value))(trainable, [v.value for v in model.non_trainable_variables]))


def _with_torch(model: Any, inputs: dict[str, Any], training: bool) -> list[Any]:
    model.zero_grad()
    objective(model(**inputs, training=training)).backward()
    return [None if v.value.grad is None else v.value.grad.numpy() for v in model.trainable_variables]


_FUNCTIONS: dict[str, Callable[..., list[Any]]] = {
    "tensorflow": _with_tensorflow,
    "jax": _with_jax,
    "torch": _with_torch,
}

"""The activations that a configuration can name, in Keras; values equal those of `models/trunk/activations.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deit.core.errors import UserError

Activation = Callable[[Any], Any]


def exact_gelu(x: Any) -> Any:
    """The Gaussian error linear unit."""
    if keras.backend.backend() == "jax":  # its own function computes erfc, which is slower
        return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))
    return ops.gelu(x, approximate=False)


def tanh_gelu(x: Any) -> Any:
    """The Gaussian error linear unit with its usual approximation by tanh."""
    return ops.gelu(x, approximate=True)


def sigmoid_gelu(x: Any) -> Any:
    """The Gaussian error linear unit approximated by a sigmoid."""
    return x * ops.sigmoid(1.702 * x)


def clipped_gelu(x: Any) -> Any:
    """The Gaussian error linear unit, cut at 10."""
    return ops.clip(exact_gelu(x), -10.0, 10.0)


def laplace(x: Any) -> Any:
    """The normal distribution function with the mean and deviation of MEGA's attention."""
    return 0.5 * (1.0 + ops.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def squared_relu(x: Any) -> Any:
    """The square of the positive part."""
    return ops.square(ops.relu(x))


def root_softplus(x: Any) -> Any:
    """The square root of the softplus."""
    return ops.sqrt(ops.softplus(x))


def leaky_relu(x: Any) -> Any:
    """The positive part, plus 0.01 times the negative part, as in PyTorch."""
    return ops.leaky_relu(x, negative_slope=0.01)


def hard_swish(x: Any) -> Any:
    """The input times a piecewise linear sigmoid."""
    return x * ops.relu6(x + 3.0) / 6.0


def mish(x: Any) -> Any:
    """The input times the hyperbolic tangent of its softplus."""
    return x * ops.tanh(ops.softplus(x))


def identity(x: Any) -> Any:
    """The input itself."""
    return x


class PReLU(keras.layers.Layer):
    """The positive part, plus a learned factor times the negative part."""

    def build(self, input_shape: Any) -> None:
        """Creates the factor: one number, initially 0.25."""
        self.weight = self.add_weight(shape=(1,), initializer=keras.initializers.Constant(0.25), name="weight")

    def call(self, x: Any) -> Any:
        """Computes the activation elementwise."""
        return ops.where(x >= 0, x, self.weight * x)

    def network_parts(self) -> dict[str, Any]:
        """Returns the tensors by their names in PyTorch's layer."""
        return {"weight": self.weight}


class XIELU(keras.layers.Layer):
    """A learned activation: a parabola for positive numbers, an exponential for the others (arXiv 2411.13010).

    Each side has a learned factor, stored before its softplus; both start at 0.8.
    """

    def build(self, input_shape: Any) -> None:
        """Creates the factors and two constants that files also hold. All are bfloat16, as in transformers."""
        self.alpha_p = self._number("alpha_p", 0.2041015625, (1,))
        self.alpha_n = self._number("alpha_n", -1.046875, (1,))
        self.beta = self._number("beta", 0.5, (), trainable=False)
        self.eps = self._number("eps", -9.98377799987793e-07, (), trainable=False)

    def _number(self, name: str, value: float, shape: tuple[int, ...], trainable: bool = True) -> Any:
        start = keras.initializers.Constant(value)
        return self.add_weight(
            shape=shape, initializer=start, trainable=trainable, name=name, dtype="bfloat16", autocast=False
        )

    def call(self, x: Any) -> Any:
        """Computes the activation elementwise."""
        beta, eps = (ops.convert_to_tensor(number) for number in (self.beta, self.eps))
        strengths = ops.softplus(self.alpha_p), beta + ops.softplus(self.alpha_n)  # rounded to bfloat16
        upper, lower, beta, eps = (ops.cast(number, x.dtype) for number in (*strengths, beta, eps))
        negative = (ops.expm1(ops.minimum(x, eps)) - x) * lower
        return ops.where(x > 0, upper * ops.square(x), negative) + beta * x

    def network_parts(self) -> dict[str, Any]:
        """Returns the tensors by their names in PyTorch's layer."""
        return {"alpha_p": self.alpha_p, "alpha_n": self.alpha_n, "beta": self.beta, "eps": self.eps}


ACTIVATIONS: dict[str, Activation] = {
    "gelu": exact_gelu,
    "gelu_10": clipped_gelu,
    "gelu_accurate": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_new": tanh_gelu,
    "gelu_python": exact_gelu,
    "gelu_python_tanh": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "hardswish": hard_swish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": identity,
    "mish": mish,
    "quick_gelu": sigmoid_gelu,
    "relu": ops.relu,
    "relu2": squared_relu,
    "relu6": ops.relu6,
    "selu": ops.selu,
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "sqrtsoftplus": root_softplus,
    "swish": ops.silu,
    "tanh": ops.tanh,
}
# These have weights: each block builds its own.
LEARNT_ACTIVATIONS: dict[str, type[keras.layers.Layer]] = {"prelu": PReLU, "xielu": XIELU}


def find_activation(activation: str | Activation, dtype: Any = None) -> Activation:
    """Returns an activation by its name in configurations; a function is returned as it is.

    Args:
        activation: Name or function.
        dtype: Keras dtype policy of an activation with weights.

    Raises:
        ValueError: The name is unknown.
    """
    if not isinstance(activation, str):
        return activation
    if activation in LEARNT_ACTIVATIONS:
        layer = LEARNT_ACTIVATIONS[activation](name="activation", dtype=dtype)
        layer.build(None)
        return layer
    if activation not in ACTIVATIONS:
        known = ", ".join((*ACTIVATIONS, *LEARNT_ACTIVATIONS))
        raise UserError(f"Unknown activation {activation!r}. Known: {known}.")
    return ACTIVATIONS[activation]

"""The smallest parts of the Keras networks: layers with weights and shapes at once, drop path, layer scale.

Letters in shape comments: B batch, N tokens, D embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from deit.core.config.vision_transformer import VisionTransformerConfig

_DRAWS_INITIAL_VALUES = ContextVar("draws initial values", default=True)


@contextmanager
def without_initial_values() -> Iterator[None]:
    """Initializes all weights with zeros inside the block, for weights that a file overwrites."""
    token = _DRAWS_INITIAL_VALUES.set(False)
    try:
        yield
    finally:
        _DRAWS_INITIAL_VALUES.reset(token)


class NetworkLayer(keras.layers.Layer):
    """Base of the network's layers: `summary(expand_nested=True)` shows inner layers and shapes."""

    # Shape of the main output, for `summary`; None is the batch.
    output_shape: tuple[int | None, ...] = ()

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The direct inner layers, as in Keras's models."""
        return list(self._flatten_layers(include_self=False, recursive=False))

    def __dir__(self) -> Iterable[str]:
        # Keras's files name a layer by the first attribute in `dir` that leads to it. Hides `layers`.
        return [name for name in super().__dir__() if name != "layers"]

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers and variables by their names in the network."""
        return {}

    def finish(self, *output_shape: int | None) -> None:
        """Marks the layer as built.

        Args:
            *output_shape: See `output_shape`.
        """
        self.built = True
        show_shape(self, *output_shape)


def show_shape(layer: Any, *output_shape: int | None, input_shape: tuple[int | None, ...] | None = None) -> None:
    """Sets the output shape that `summary` shows.

    Args:
        layer: A built layer.
        *output_shape: Shape of the main output; None is the batch.
        input_shape: Shape of the input of a model, which TensorFlow writes into a SavedModel.
    """
    if not isinstance(layer, keras.layers.Dropout):  # a Dropout returns its build shape
        layer.output_shape = output_shape
    layer._build_shapes_dict = {"input_shape": input_shape or output_shape}


def dropout(rate: float, *output_shape: int | None, **options: Any) -> keras.layers.Dropout:
    """Builds a dropout layer with the shape of its output."""
    layer = keras.layers.Dropout(rate, **options)
    show_shape(layer, *output_shape)
    return layer


def token_shape(config: VisionTransformerConfig) -> tuple[None, int, int]:
    """Returns the shape of the tokens of an image of the trained size, (None, N, D)."""
    return None, config.num_prefix_tokens + config.grid_size[0] * config.grid_size[1], config.hidden_size


def _initializer(kind: type[keras.initializers.Initializer], **options: Any) -> keras.initializers.Initializer:
    return kind(**options) if _DRAWS_INITIAL_VALUES.get() else keras.initializers.Zeros()


def normal_values(std: float) -> keras.initializers.Initializer:
    """Returns the initializer of linear layers, tokens and positions: a normal distribution.

    PyTorch and the paper truncate it at -2 and 2, which is a hundred standard deviations and has no effect.
    """
    return _initializer(keras.initializers.RandomNormal, stddev=std)


def dense(inputs: int, units: int, config: VisionTransformerConfig, **options: Any) -> keras.layers.Dense:
    """Builds a linear layer and its weights: normal values and a zero bias."""
    layer = keras.layers.Dense(units, kernel_initializer=normal_values(config.initializer_range), **options)
    layer.build((None, inputs))
    return layer


def convolution(inputs: int, units: int, **options: Any) -> keras.layers.Dense:
    """Builds a linear layer that replaces a convolution without overlap, with PyTorch's initial values."""
    bound = 1.0 / math.sqrt(inputs)
    draw = _initializer(keras.initializers.RandomUniform, minval=-bound, maxval=bound)
    draw_bias = _initializer(keras.initializers.RandomUniform, minval=-bound, maxval=bound)
    layer = keras.layers.Dense(units, kernel_initializer=draw, bias_initializer=draw_bias, **options)
    layer.build((None, inputs))
    return layer


@dataclass(frozen=True)
class FileConvolution:
    """A linear layer that files hold as a convolution (outputs, channels, height, width).

    Attributes:
        layer: Result of `convolution`.
        kernel_size: (height, width).
    """

    layer: keras.layers.Dense
    kernel_size: tuple[int, int]


def norm(config: VisionTransformerConfig, **options: Any) -> keras.layers.LayerNormalization:
    """Builds a layer norm of tokens, with weights."""
    layer = keras.layers.LayerNormalization(epsilon=config.layer_norm_eps, **options)
    layer.build(token_shape(config))
    return layer


def as_rows(x: Any) -> Any:
    """Reshapes (B, N, D) to (B x N, D): XLA multiplies matrices up to 1.4 times faster than batches."""
    return ops.reshape(x, (-1, x.shape[-1]))


class DropPath(NetworkLayer):
    """Drops a residual branch for random samples in training, and scales up the others (stochastic depth).

    Args:
        rate: Probability of dropping.
        *output_shape: See `NetworkLayer`.
    """

    def __init__(self, rate: float, *output_shape: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator() if rate > 0 else None
        self.finish(*output_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        """Returns (B, N, D); in evaluation the input itself."""
        if not training or self.rate == 0.0:
            return x
        drawn = keras.random.uniform((ops.shape(x)[0], 1, 1), dtype="float32", seed=self.seed_generator)
        kept = x * ops.cast(drawn >= self.rate, x.dtype)
        return kept / (1.0 - self.rate) if self.rate < 1.0 else kept


class LayerScale(NetworkLayer):
    """Multiplies each channel of a residual branch by a learned number (DeiT III).

    Args:
        shape: Shape of the input, (None, N, D).
        initial_value: Initial value of every factor; small, so that a deep network starts near the identity.
    """

    def __init__(self, shape: tuple[None, int, int], initial_value: float, **options: Any) -> None:
        super().__init__(**options)
        with keras.name_scope(self.name):
            start = keras.initializers.Constant(initial_value)
            self.gamma = self.add_weight(shape=shape[-1:], initializer=start, name="gamma")
        self.finish(*shape)

    def call(self, x: Any) -> Any:
        """Returns (B, N, D)."""
        return x * ops.cast(self.gamma, x.dtype)

    def network_parts(self) -> dict[str, Any]:
        """Returns its tensor by its name in the network."""
        return {"gamma": self.gamma}

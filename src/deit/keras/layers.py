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
    """Builds models full of zeros, which is fast, for a file to fill."""
    token = _DRAWS_INITIAL_VALUES.set(False)
    try:
        yield
    finally:
        _DRAWS_INITIAL_VALUES.reset(token)


class NetworkLayer(keras.layers.Layer):
    """What the layers of the network share: `summary(expand_nested=True)` shows what is inside, and shapes."""

    # Of its main output, for `summary`; None stands for the batch.
    output_shape: tuple[int | None, ...] = ()

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers directly inside, as Keras's models have them."""
        return list(self._flatten_layers(include_self=False, recursive=False))

    def __dir__(self) -> Iterable[str]:
        # Keras's files name a layer by the first attribute that leads to it, which shall stay the one of its own.
        return [name for name in super().__dir__() if name != "layers"]

    def network_parts(self) -> dict[str, Any]:
        """Returns its parts by their names in the network."""
        return {}

    def finish(self, *output_shape: int | None) -> None:
        """Says that all weights are there.

        Args:
            *output_shape: See `output_shape`.
        """
        self.built = True
        show_shape(self, *output_shape)


def show_shape(layer: Any, *output_shape: int | None, input_shape: tuple[int | None, ...] | None = None) -> None:
    """Lets `summary` show the shape of a layer's output, also of one that was not built from a shape.

    Args:
        layer: One that is whole.
        *output_shape: Of its main output; None stands for the batch.
        input_shape: Where it matters, which is in models: TensorFlow writes them down with it in a SavedModel.
    """
    if not isinstance(layer, keras.layers.Dropout):  # which returns the shape that it was built from
        layer.output_shape = output_shape
    layer._build_shapes_dict = {"input_shape": input_shape or output_shape}


def dropout(rate: float, *output_shape: int | None, **options: Any) -> keras.layers.Dropout:
    """Builds a dropout layer with the shape of its output."""
    layer = keras.layers.Dropout(rate, **options)
    show_shape(layer, *output_shape)
    return layer


def token_shape(config: VisionTransformerConfig) -> tuple[None, int, int]:
    """Shape of the tokens of an image of the trained size."""
    return None, config.num_prefix_tokens + config.grid_size[0] * config.grid_size[1], config.hidden_size


def _initializer(kind: type[keras.initializers.Initializer], **options: Any) -> keras.initializers.Initializer:
    return kind(**options) if _DRAWS_INITIAL_VALUES.get() else keras.initializers.Zeros()


def normal_values(std: float) -> keras.initializers.Initializer:
    """Returns what linear layers, tokens and positions start with: normal values.

    PyTorch's and the paper's truncated normal cuts at -2 and 2, a hundred deviations away, which never happens.
    """
    return _initializer(keras.initializers.RandomNormal, stddev=std)


def dense(inputs: int, units: int, config: VisionTransformerConfig, **options: Any) -> keras.layers.Dense:
    """Builds a linear layer with weights at once: normal values and a bias of zeros."""
    layer = keras.layers.Dense(units, kernel_initializer=normal_values(config.initializer_range), **options)
    layer.build((None, inputs))
    return layer


def convolution(inputs: int, units: int, **options: Any) -> keras.layers.Dense:
    """Builds a linear layer that stands for a convolution without overlap, with PyTorch's initial values of one."""
    bound = 1.0 / math.sqrt(inputs)
    draw = _initializer(keras.initializers.RandomUniform, minval=-bound, maxval=bound)
    draw_bias = _initializer(keras.initializers.RandomUniform, minval=-bound, maxval=bound)
    layer = keras.layers.Dense(units, kernel_initializer=draw, bias_initializer=draw_bias, **options)
    layer.build((None, inputs))
    return layer


@dataclass(frozen=True)
class FileConvolution:
    """Says that files hold a linear layer as a convolution (outputs, channels, height, width).

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
    """Turns (B, N, D) into (B x N, D): XLA multiplies two matrices up to 1.4 times faster than a batch with one."""
    return ops.reshape(x, (-1, x.shape[-1]))


class DropPath(NetworkLayer):
    """Skips a residual branch for some samples while training, and scales the others up (stochastic depth).

    Args:
        rate: Probability of skipping.
        *output_shape: See `NetworkLayer`.
    """

    def __init__(self, rate: float, *output_shape: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator() if rate > 0 else None
        self.finish(*output_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        """Returns (B, N, D), in evaluation the input itself."""
        if not training or self.rate == 0.0:
            return x
        drawn = keras.random.uniform((ops.shape(x)[0], 1, 1), dtype="float32", seed=self.seed_generator)
        kept = x * ops.cast(drawn >= self.rate, x.dtype)
        return kept / (1.0 - self.rate) if self.rate < 1.0 else kept


class LayerScale(NetworkLayer):
    """Multiplies each channel of a residual branch by a learnt number (DeiT III).

    Args:
        shape: Of what it multiplies, (None, N, D).
        initial_value: What every factor starts with; small, so that a deep network starts near the identity.
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

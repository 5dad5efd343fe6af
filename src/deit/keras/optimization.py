"""The paper's optimizer for a Keras model."""

from __future__ import annotations

from typing import Any

import keras

from deit.core.errors import UserError
from deit.keras.optimizers import (
    PaperAdamW,
    WarmupCosine as WarmupCosine,  # documented under this name
)


def keras_adamw(
    model: keras.Model, learning_rate: float | Any, *, weight_decay: float = 0.05, clip_grad: float = 0.0
) -> keras.optimizers.Optimizer:
    """Returns AdamW as the paper uses it: without decay of norms, biases, tokens and position embeddings.

    Keras adds Adam's eps before the bias correction, PyTorch after it: weights with gradients near 0 move slightly
    less in the first steps.

    Args:
        model: The model to train, or a `KerasDistillation`.
        learning_rate: A number or a schedule, such as `WarmupCosine`.
        weight_decay: 0.05 in the paper.
        clip_grad: Largest norm of the whole gradient; 0 for no limit (the paper's choice).

    Raises:
        ValueError: The model has no trainable weights, or a number is out of range.
    """
    if weight_decay < 0 or clip_grad < 0:
        raise UserError(f"weight_decay and clip_grad must be at least 0. Received: {weight_decay}, {clip_grad}.")
    if not model.trainable_variables:
        raise UserError("The model has no trainable weights. Build it, or set trainable=True on what shall be trained.")
    optimizer = PaperAdamW(learning_rate, weight_decay=weight_decay, epsilon=1e-8, global_clipnorm=clip_grad or None)
    optimizer.leave_out(
        model.trainable_variables
    )  # `build` does this too; here for callers that inspect the optimizer before
    return optimizer

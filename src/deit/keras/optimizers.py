"""The paper's schedule and optimizer as registered Keras classes, so that `.keras` files can hold them."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from deit.core.errors import UserError
from deit.core.weights.names import UNDECAYED_TENSORS
from deit.keras.weights import network_slots


@keras.saving.register_keras_serializable(package="deit")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a cosine over the whole training: the rates of `deit.train.optimization.learning_rate`.

    The cosine is not shifted by the warm-up, as in the paper's code. The defaults are the paper's (Table 9).

    Args:
        peak: Rate after the warm-up; 5e-4 x batch size / 512 in the paper.
        steps_per_epoch: Batches in an epoch.
        epochs: Passes over the training images.
        warmup_epochs: Length of the warm-up, parts of an epoch allowed; at most `epochs`.
        warmup_lr: Rate at the start of the warm-up; at most `peak`. None takes the paper's 1e-6, or 0.002 x peak if the
            peak is not above 1e-6.
        min_lr: Rate at the end of the cosine; at most `peak`. None takes the paper's 1e-5, or 0.02 x peak if the peak
            is not above 1e-5.

    Raises:
        ValueError: A number is out of range.

    Examples:
        >>> rate = WarmupCosine(1e-3, steps_per_epoch=100, epochs=10)
        >>> round(float(rate(500)), 6)
        0.000505
    """

    def __init__(
        self,
        peak: float,
        *,
        steps_per_epoch: int,
        epochs: int = 300,
        warmup_epochs: float = 5,
        warmup_lr: float | None = None,
        min_lr: float | None = None,
    ) -> None:
        super().__init__()
        if not peak > 0:
            raise UserError(f"peak must be positive. Received: {peak}.")
        if steps_per_epoch < 1 or epochs < 1:
            raise UserError(f"steps_per_epoch and epochs must be at least 1. Received: {steps_per_epoch}, {epochs}.")
        if not 0 <= warmup_epochs <= epochs:
            raise UserError(f"warmup_epochs must lie in [0, {epochs}]. Received: {warmup_epochs}.")
        if warmup_lr is None:
            warmup_lr = 1e-6 if peak > 1e-6 else 0.002 * peak
        if min_lr is None:
            min_lr = 1e-5 if peak > 1e-5 else 0.02 * peak
        if warmup_lr < 0 or min_lr < 0:
            raise UserError(f"warmup_lr and min_lr must be at least 0. Received: {warmup_lr}, {min_lr}.")
        if min_lr > peak or (warmup_lr > peak and warmup_epochs):
            raise UserError(
                f"warmup_lr and min_lr must be at most the peak, {peak:g}. Received: {warmup_lr:g}, {min_lr:g}."
            )
        self.peak = peak
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr

    def __call__(self, step: Any) -> Any:
        """Returns the rate of a step (from 0), a float32 scalar."""
        epoch = ops.cast(step, "float32") / self.steps_per_epoch
        low = self.min_lr
        # (1 + cos x) / 2 as a square, which keeps precision near the end.
        cosine = low + (self.peak - low) * ops.square(ops.cos(epoch * (math.pi / 2 / self.epochs)))
        if self.warmup_epochs == 0:
            return cosine
        warmup = self.warmup_lr + (self.peak - self.warmup_lr) / self.warmup_epochs * epoch
        return ops.where(epoch < self.warmup_epochs, warmup, cosine)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        names = ("peak", "steps_per_epoch", "epochs", "warmup_epochs", "warmup_lr", "min_lr")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="deit")
class PaperAdamW(keras.optimizers.AdamW):
    """AdamW that decays only matrices: not norms, biases, tokens or position embeddings.

    The class computes the exclusions from the variables, so that copies and files keep the rule.
    """

    def build(self, variables: Any) -> None:
        """Creates the state, and excludes variables from decay."""
        if not self.built:
            self.leave_out(variables)
        super().build(variables)

    def leave_out(self, variables: Any) -> None:
        """Excludes norms, biases, tokens and position embeddings among the variables from decay."""
        self.exclude_from_weight_decay(var_list=[v for v in variables if _is_plain(v)])


def _is_plain(variable: Any) -> bool:
    return len(variable.shape) <= 1 or variable.name in UNDECAYED_TENSORS


def undecayed(model: Any) -> list[str]:
    """Returns the tensors that the optimizer of a compiled model does not decay, by their names in the network."""
    optimizer = _inner(model.optimizer)
    if optimizer is None or not optimizer.weight_decay:
        return []
    return [name for name, slot in network_slots(model).items() if not optimizer._use_weight_decay(slot.variable)]


def leave_undecayed(model: Any, names: list[str]) -> None:
    """Excludes tensors from the decay of a model's optimizer; `names` as `undecayed` returns them."""
    slots = network_slots(model)
    _inner(model.optimizer).exclude_from_weight_decay(var_list=[slots[name].variable for name in names])


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)  # inside a LossScaleOptimizer

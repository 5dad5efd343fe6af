"""Lets a student forget its activations and compute them again in the backward pass, to save memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from deit.core.errors import UserError
from deit.models.pretrained import PreTrainedModel


def checkpoint_activations(student: nn.Module) -> None:
    """Turns on gradient checkpointing: only the input of each block is kept.

    The numbers stay the same: random draws of the second forward pass are those of the first.

    Args:
        student: A model of this package, or one of timm that can.

    Raises:
        ValueError: It cannot.
    """
    if isinstance(student, PreTrainedModel):
        student.gradient_checkpointing_enable()
        return
    enable: Any = getattr(student, "set_grad_checkpointing", None)
    try:
        if enable is not None:
            enable(True)
            return
    except AssertionError:  # how timm says that this model cannot
        pass
    raise UserError(f"{type(student).__name__} has no gradient checkpointing. Leave out gradient_checkpointing.")

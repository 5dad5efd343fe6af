"""Weights and answers that are no numbers: found when a model is opened or answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.errors import UserError, shown

_REMEDY = "Take weights from before the training diverged."


class NonFiniteError(UserError):
    """Weights or answers are NaN or infinite."""


def refuse_non_finite(tensors: Iterable[tuple[str, Tensor]], source: object) -> None:
    """Checks that all numbers are finite, in one pass over the memory.

    Args:
        tensors: Pairs of name and tensor; those of whole numbers are passed over.
        source: Where they come from, for the message.

    Raises:
        NonFiniteError: A number is NaN or infinite; it names the tensor.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or tensor.itemsize == 1:
            continue
        # A sum is one pass without a second tensor; where it overflows by itself, each number is looked at.
        if not torch.isfinite(tensor.detach().sum(dtype=torch.float32)):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise NonFiniteError(
                    f"{source} cannot be used: {bad} of the {tensor.numel()} numbers of its tensor {shown(name)} are "
                    f"NaN or infinite. {_REMEDY}"
                )


def refuse_non_finite_model(model: Any, source: object) -> None:
    """Checks the parameters and buffers of a module; see `refuse_non_finite`."""
    if isinstance(model, nn.Module):
        refuse_non_finite(model.named_parameters(), source)
        refuse_non_finite(model.named_buffers(), source)


def refuse_non_finite_answers(answers: Tensor, source: object) -> Tensor:
    """Returns the answers (B, ...) of a model when all are finite.

    Raises:
        NonFiniteError: Some are not; it says for how many images.
    """
    if answers.is_floating_point() and not bool(torch.isfinite(answers).all()):
        rows = int((~torch.isfinite(answers.flatten(1))).any(dim=1).sum())
        raise NonFiniteError(
            f"{source} answers {rows} of {len(answers)} images with NaN or infinity. Its weights may be damaged, or "
            "too large for the precision: try fp32."
        )
    return answers

"""Turns logits into scores by the problem type, as the pipelines of transformers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.scores.metrics import MULTI_LABEL, REGRESSION, softmax

Function = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns 1 / (1 + exp(-logits)), in their precision and without overflow."""
    result: npt.NDArray[Any] = np.exp(-np.logaddexp(0, -logits))
    return result


FUNCTIONS: dict[str, Function] = {"softmax": softmax, "sigmoid": sigmoid, "none": lambda logits: logits}


def function_name(problem_type: str | None, num_labels: int) -> str:
    """Returns the name in `FUNCTIONS` of what makes scores of logits (..., K).

    Args:
        problem_type: By the names of transformers; None is a classification.
        num_labels: K.

    Returns:
        "none" for a regression, "sigmoid" for several labels or a single output, else "softmax".
    """
    if problem_type == REGRESSION:
        return "none"
    return "sigmoid" if problem_type == MULTI_LABEL or num_labels == 1 else "softmax"

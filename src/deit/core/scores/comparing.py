"""Names the scores of each problem type, and says which of two values is the better one."""

from __future__ import annotations

from dataclasses import fields

from deit.core.errors import UserError
from deit.core.scores.metrics import (
    MULTI_LABEL,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    MultiLabelScores,
    RegressionScores,
    Scores,
)

_CLASSES = {SINGLE_LABEL: Scores, MULTI_LABEL: MultiLabelScores, REGRESSION: RegressionScores}
_LOWER_IS_BETTER = ("loss", "mean_absolute_error", "root_mean_squared_error")


def score_names(problem_type: str) -> tuple[str, ...]:
    """Returns the names of the scores of a problem type, the most important first.

    Raises:
        ValueError: The problem type is unknown.

    Examples:
        >>> score_names("single_label_classification")
        ('top1', 'top5', 'loss')
    """
    if problem_type not in PROBLEM_TYPES:
        raise UserError(f"The problem type must be one of {', '.join(PROBLEM_TYPES)}. Received: {problem_type!r}.")
    return tuple(each.name for each in fields(_CLASSES[problem_type]) if each.name not in ("images", "unanswered"))


def all_score_names() -> tuple[str, ...]:
    """Returns the names of the scores of all problem types, each once."""
    return tuple(dict.fromkeys(name for each in PROBLEM_TYPES for name in score_names(each)))


def is_better(name: str, value: float, than: float) -> bool:
    """Whether a score is better than another of the same name: lower for losses and errors, higher for all others."""
    return value < than if name in _LOWER_IS_BETTER else value > than

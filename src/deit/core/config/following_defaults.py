"""Defines defaults that depend on another setting, for PyTorch and Keras."""

from __future__ import annotations

from typing import Any

from deit.core.errors import UserError


class FollowingDefault(float):
    """A default that depends on another setting. It changes with that setting; a chosen number does not.

    It is a float, so that it survives `dataclasses.replace` and copies.
    """


# The values of settings of losses, in PyTorch and in Keras.
CLASSIFICATION_LOSSES = ("ce", "bce")
DISTILLATION_KINDS = ("hard", "soft")
TEACHER_LOSSES = (*DISTILLATION_KINDS, "standardized", "wttm", "dist")  # of a training with PyTorch
REDUCTIONS = ("batchmean", "numel")

# Its default in the code: the number is that of the setting which it follows.
FOLLOWS: Any = None

# Settings that follow another: the numbers for each of its values.
FOLLOWING: dict[str, tuple[str, dict[str, float]]] = {
    # The paper, section 4: hard distillation has no temperature and weighs as much as the labels. The others have the
    # authors' shares: 9 to 0.1 for the labels (standardized), 4 to 1 at the exponent 1/5 (wttm), 2 and 2 to 1 (dist).
    "distillation.temperature": (
        "distillation.kind",
        {"hard": 1.0, "soft": 3.0, "standardized": 2.0, "wttm": 5.0, "dist": 1.0},
    ),
    "distillation.weight": (
        "distillation.kind",
        {"hard": 0.5, "soft": 0.1, "standardized": 0.99, "wttm": 0.8, "dist": 0.67},
    ),
    # Muon's authors use more than SGD has; the others have none.
    "optimizer.momentum": ("optimizer.name", {"adamw": 0.9, "lamb": 0.9, "sgd": 0.9, "muon": 0.95}),
    # DeiT III: the binary loss counts every class above 0 as present.
    "label_smoothing": ("loss", {"ce": 0.1, "bce": 0.0}),
}


def following(name: str, value: float | None, followed: str) -> float:
    """Returns the value of a setting of `FOLLOWING`: the chosen one, or the default for `followed`."""
    if value is None or isinstance(value, FollowingDefault):
        return FollowingDefault(FOLLOWING[name][1].get(followed, 1.0))  # an unknown one is refused by who asks
    return value


def check_distillation_kind(kind: str) -> None:
    """Checks a kind of distillation that the models of PyTorch and of Keras compute.

    Raises:
        ValueError: The kind is unknown, or only a training with PyTorch has it.
    """
    if kind not in DISTILLATION_KINDS:
        elsewhere = " Only the recipes of PyTorch trainings have this kind." if kind in TEACHER_LOSSES else ""
        raise UserError(f"The kind of distillation must be 'hard' or 'soft'. Received: {kind!r}.{elsewhere}")

"""Defines defaults that depend on another setting, for PyTorch and Keras."""

from __future__ import annotations

from typing import Any


class FollowingDefault(float):
    """A default that depends on another setting. It changes with that setting; a chosen number does not.

    It is a float, so that it survives `dataclasses.replace` and copies.
    """


# The values of settings of losses, in PyTorch and in Keras.
CLASSIFICATION_LOSSES = ("ce", "bce")
DISTILLATION_KINDS = ("hard", "soft")
REDUCTIONS = ("batchmean", "numel")

# Its default in the code: the number is that of the setting which it follows.
FOLLOWS: Any = None

# Settings that follow another: the numbers for each of its values.
FOLLOWING: dict[str, tuple[str, dict[str, float]]] = {
    # The paper, section 4: hard distillation has no temperature and weighs as much as the labels.
    "distillation.temperature": ("distillation.kind", {"hard": 1.0, "soft": 3.0}),
    "distillation.weight": ("distillation.kind", {"hard": 0.5, "soft": 0.1}),
    # DeiT III: the binary loss counts every class above 0 as present.
    "label_smoothing": ("loss", {"ce": 0.1, "bce": 0.0}),
}


def following(name: str, value: float | None, followed: str) -> float:
    """Returns the value of a setting of `FOLLOWING`: the chosen one, or the default for `followed`."""
    if value is None or isinstance(value, FollowingDefault):
        return FollowingDefault(FOLLOWING[name][1].get(followed, 1.0))  # an unknown one is refused by who asks
    return value

"""Checks of the fields of a configuration: kinds, ranges, and the most that a size may be."""

from __future__ import annotations

import math
from typing import Any

from deit.core.errors import shown

# The most that a size may be. The largest vision transformers have 56 layers and a width of 6,144; label sets 30,000
# classes; images of 4,096 pixels in patches of 8 make 262,144 patches. A file that says more would fill the memory.
_MOST = {
    "hidden_size": 65_536,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 65_536,
    "intermediate_size": 262_144,
    "num_channels": 65_536,
    "encoder_stride": 16_384,
    "pooler_output_size": 65_536,
    "image_size": 16_384,
    "patch_size": 16_384,
}
MOST_PATCHES = 262_144
MOST_LABELS = 100_000


def check_count(name: str, value: Any) -> None:
    """Checks a whole number from 1 to the most that its field may be."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer. Received: {shown(value)}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1. Received: {shown(value)}.")
    if value > _MOST.get(name, value):
        raise ValueError(f"{name} must be at most {_MOST[name]}. Received: {shown(value)}.")


def check_number(name: str, value: Any, *, low: float, high: float | None = None) -> None:
    """Checks a number between two bounds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number. Received: {shown(value)}.")
    if not math.isfinite(value) or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {bounds}. Received: {shown(value)}.")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Checks one of several values."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}. Received: {shown(value)}.")

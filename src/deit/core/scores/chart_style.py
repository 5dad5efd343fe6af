"""Defines colors and axes of all charts. Imports no plotting library."""

from __future__ import annotations

from typing import Any

INK, SOFT, GREY, LINE = "#1c2430", "#5a6675", "#9aa4b1", "#dfe4ea"
BLUE, LIGHT_BLUE, ORANGE, GREEN, RED = "#2f6fb0", "#8fb8dc", "#d9822b", "#23774a", "#b3261e"
# Told apart by people who do not see red and green apart, too.
SERIES = (BLUE, ORANGE, GREEN, "#8a5fb0", "#b0476f", "#4a9aa8", SOFT)


def tidy(axis: Any) -> None:
    """Removes the frame of matplotlib axes except for the two axis lines, and draws these in gray."""
    axis.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axis.spines[side].set_color(GREY)


def plain_text(texts: Any) -> None:
    """Turns off mathematical text in matplotlib, so that a dollar sign stays one."""
    for text in texts:
        text.set_parse_math(False)

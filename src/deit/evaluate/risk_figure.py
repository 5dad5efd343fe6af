"""Draws the mistakes of a model by the share of images that it answers."""

from __future__ import annotations

from typing import Any

from deit.core.scores.chart_style import BLUE, LIGHT_BLUE, tidy
from deit.evaluate.selective import Trust


def risk_figure(trust: Trust) -> Any:
    """Draws the share of wrong answers, with its interval, over the share of images answered."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    axis = figure.subplots()
    shares = [point.answered for point in trust.risk]
    axis.fill_between(
        shares,
        [point.interval[0] for point in trust.risk],
        [point.interval[1] for point in trust.risk],
        color=LIGHT_BLUE,
        alpha=0.5,
        linewidth=0,
        label="95 % interval",
    )
    axis.plot(shares, [point.risk for point in trust.risk], "o-", color=BLUE, markersize=4, label="wrong answers")
    axis.set(xlim=(0, 100), xlabel="images answered, the surest first (%)", ylabel="wrong among them (%)")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    tidy(axis)
    return figure

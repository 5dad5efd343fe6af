"""Draws the losses and scores of runs over the epochs, on axes from 0, and marks the best epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit.core.files import replaced_file
from deit.core.scores.chart_style import BLUE, GREEN, GREY, INK, ORANGE, SERIES, plain_text, tidy
from deit.core.scores.metrics import score_title

# The first of these scores that a run has is drawn; True: higher is better.
_SCORES = {"top1": True, "micro_f1": True, "mean_absolute_error": False}
_PARTS = {
    "train_loss": "training",
    "val_loss": "validation",
    "train_class_loss": "training, loss on labels",
    "train_distillation_loss": "training, loss on the teacher",
    "train_guidance_loss": "training, loss of guidance",
    "train_labels_loss": "training, loss on labels",
}
_HEADS = {"": "the model's answer", "class": "class head alone", "distillation": "distillation head alone"}
# An inset enlarges the later half if it covers less than this share of the height.
_FLAT = 0.15

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Line:
    label: str
    points: list[tuple[float, float]]
    color: str
    style: str = "-"
    width: float = 1.6


def draw_curves(runs: dict[str, Rows], path: Path, *, over: str = "epoch") -> None:
    """Draws losses and scores of one or several runs.

    Axes start at 0; those of percentages end at 100. If the later half of the curves is nearly flat, an inset enlarges
    it. Training lines are dashed, validation lines solid. A star marks the best validation.

    Args:
        runs: Name -> rows of its `History`. A single run with an empty name shows all its losses and scores; named runs
            show their training loss and one score.
        path: Path of the PNG.
        over: "epoch", or "step" for runs whose epochs differ.
    """
    from matplotlib.figure import Figure

    rows = [row for run in runs.values() for row in run]
    score = next((name for name in _SCORES if any(f"val_{name}" in row for row in rows)), None)
    count = 1 if score is None else 2  # masked images have only a loss
    figure = Figure(figsize=(5.2 * count, 4.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    alone = list(runs) == [""]
    losses = _losses_of(rows, over) if alone else _lines_of(runs, "train_loss", over, "--")
    loss_name = "loss (nats)" if score is not None else "mean absolute error"
    _draw(axes[0], losses, title="Loss" if alone else "Training loss", ylabel=loss_name, over=over)
    if score is not None:
        lines = _scores_of(rows, score, over) if alone else _lines_of(runs, f"val_{score}", over, "-")
        _draw(
            axes[1], lines, title="Validation images", ylabel=_axis_name(score), over=over, percent=_is_percent(score)
        )
    if alone:
        measure = "val_loss" if score is None else f"val_{score}"
        _mark_best(axes, rows, measure, over, most=score is not None and _SCORES[score])
    for axis in axes:
        if axis.has_data():
            legend = axis.legend(
                fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, borderaxespad=0
            )
            plain_text(legend.get_texts())
    with replaced_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, facecolor="white")


def _axis_name(score: str) -> str:
    return "top-1 accuracy (%)" if score == "top1" else score_title(score).replace("%", "(%)")


def _is_percent(score: str) -> bool:
    return score != "mean_absolute_error"


# --- lines --------------------------------------------------------------------------------------------


def _points(rows: Rows, key: str, over: str) -> list[tuple[float, float]]:
    return [(row[over], row[key]) for row in rows if row.get(key) is not None]


def _lines_of(runs: dict[str, Rows], key: str, over: str, style: str) -> list[_Line]:
    colors = {name: SERIES[i % len(SERIES)] for i, name in enumerate(runs)}
    lines = (
        _Line(label=name, points=_points(rows, key, over), color=colors[name], style=style)
        for name, rows in runs.items()
    )
    return [line for line in lines if line.points]


def _losses_of(rows: Rows, over: str) -> list[_Line]:
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key.endswith("loss")]
    shown = [key for key in keys if key.startswith("train_") or key == "val_loss"]
    lines = []
    for key in sorted(shown, key=lambda key: (key not in ("train_loss", "val_loss"), keys.index(key))):
        main, training = key in ("train_loss", "val_loss"), key.startswith("train_")
        name = _PARTS.get(key) or "training, " + key.removeprefix("train_").removesuffix("_loss").replace("_", " ")
        color = (ORANGE if training else BLUE) if main else (GREY if "class" in key else GREEN)
        style = ("--" if training else "-") if main else ":"
        lines.append(_Line(label=name, points=_points(rows, key, over), color=color, style=style))
    return [line for line in lines if line.points]


def _scores_of(rows: Rows, score: str, over: str) -> list[_Line]:
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k.startswith("val_") and k.endswith(score)]
    lines = []
    for number, key in enumerate(keys):
        head = key.removeprefix("val_").removesuffix(score).strip("_")
        label = _HEADS.get(head) or head.replace("_", " ")
        color, width = (BLUE, 2.0) if not head else (SERIES[1:][number % len(SERIES[1:])], 1.2)
        lines.append(_Line(label=label, points=_points(rows, key, over), color=color, width=width))
    return [line for line in lines if line.points]


# --- axes ---------------------------------------------------------------------------------------------


def _draw(axis: Any, lines: list[_Line], *, title: str, ylabel: str, over: str, percent: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    _plot(axis, lines)
    axis.set_title(title, fontsize=11, color=INK, loc="left")
    axis.set_xlabel(over, fontsize=9, color=INK)
    axis.set_ylabel(ylabel, fontsize=9, color=INK)
    values = [y for line in lines for _, y in line.points]
    top = 100.0 if percent else max([*values, 1e-9]) * 1.05
    axis.set_ylim(min([0.0, *values]), top)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ends = [x for line in lines for x, _ in line.points]
    if ends and min(ends) < max(ends):
        axis.set_xlim(min(0 if over == "step" else 1, *ends), max(ends))
    axis.grid(alpha=0.3)
    tidy(axis)
    _show_flat_half(axis, lines, top)


def _plot(axis: Any, lines: list[_Line]) -> None:
    for line in lines:
        marker = "o" if len(line.points) == 1 else None
        axis.plot(
            *zip(*line.points, strict=True),
            label=line.label,
            color=line.color,
            linestyle=line.style,
            linewidth=line.width,
            marker=marker,
            markersize=4,
        )


def _show_flat_half(axis: Any, lines: list[_Line], top: float) -> None:
    """Enlarges the later half of the curves in an inset if it is nearly flat."""
    from matplotlib.ticker import MaxNLocator

    if not lines or max(len(line.points) for line in lines) < 6:
        return
    last = max(line.points[-1][0] for line in lines)
    middle = last / 2
    later = [y for line in lines for x, y in line.points if x >= middle]
    low, high = min(later), max(later)
    if high - low > _FLAT * top or high == low:
        return
    # free space below and above the curves, in shares of the height, minus the tick labels of the inset
    rooms = {0.1: low / top - 0.14, high / top + 0.12: 0.93}
    start, end = max(rooms.items(), key=lambda room: room[1] - room[0])
    if end - start < 0.15:
        return
    inset = axis.inset_axes((0.46, max(start, end - 0.4) if start > 0.1 else start, 0.5, min(end - start, 0.4)))
    _plot(inset, lines)
    space = 0.12 * (high - low)
    inset.set(xlim=(middle, last), ylim=(low - space, high + space))
    inset.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    inset.yaxis.set_major_locator(MaxNLocator(nbins=4))
    inset.grid(alpha=0.3)
    inset.tick_params(labelsize=7, colors=INK)
    for spine in inset.spines.values():
        spine.set_color(GREY)
    inset.set_title("later half, enlarged", fontsize=7, color=INK, pad=2)
    axis.indicate_inset_zoom(inset, edgecolor=GREY, alpha=0.6)


def _mark_best(axes: Any, rows: Rows, measure: str, over: str, *, most: bool) -> None:
    """Marks the best validation: a line in each axis, and a star on the measure."""
    points = _points(rows, measure, over)
    if len(points) < 2:
        return
    x, y = (max if most else min)(points, key=lambda point: point[1])
    for axis in axes:
        axis.axvline(x, color=GREY, linestyle=":", linewidth=1, zorder=0)
    sign = " %" if measure in ("val_top1", "val_micro_f1") else ""
    value = f"{y:.1f}{sign}" if sign else f"{y:.3g}"
    axes[-1].plot(
        [x], [y], "*", color=INK, markersize=11, zorder=5, clip_on=False, label=f"best: {value} at {over} {x:g}"
    )

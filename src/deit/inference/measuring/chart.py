"""Draws a benchmark: images per second, and latencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deit.core.scores.chart_style import INK, LINE, SERIES, SOFT, plain_text, tidy

if TYPE_CHECKING:
    from deit.inference.measuring.result import Benchmark, CellResult

_BAR = 0.8  # of the room for a batch size


def draw(result: Benchmark) -> Any:
    """Returns a figure: on the left images per second by batch size, on the right the latencies.

    Args:
        result: What was measured.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    cells = [each for each in result.cells if each.quiet.latencies]
    series = list(dict.fromkeys((each.cell.engine, each.cell.precision) for each in cells))
    sizes = list(dict.fromkeys(each.cell.batch_size for each in cells))
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    width = _BAR / max(len(series), 1)
    for i, name in enumerate(series):
        color = SERIES[i % len(SERIES)]
        here = [each for each in cells if (each.cell.engine, each.cell.precision) == name]
        places = [sizes.index(each.cell.batch_size) + (i - (len(series) - 1) / 2) * width for each in here]
        _bars(speed, here, places, width, color, " ".join(name))
        _latencies(latency, here, places, color)
    for axis, label in ((speed, "images per second"), (latency, "milliseconds for a call")):
        axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axis.set_xlabel("batch size", color=INK)
        axis.set_ylabel(label, color=INK)
        axis.grid(axis="y", color=LINE, linewidth=0.8)
        axis.set_axisbelow(True)
        tidy(axis)
    latency.set_yscale("log")
    latency.set_title("median (dot) to 95th percentile (line)", fontsize=9, color=SOFT)
    noisy = any(each.noisy.rounds for each in cells)
    speed.set_title("hatched: beside a spinning neighbor" if noisy else "", fontsize=9, color=SOFT)
    if series:
        figure.legend(*speed.get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    state = {None: "", True: " (busy)", False: " (quiet)"}[result.busy]
    place = f"{result.machine.cpu}{state}, {result.machine.threads} thread(s)"
    title = figure.suptitle(f"{result.model}\n{place}", fontsize=10, x=0.01, ha="left", color=INK)
    plain_text([title])
    return figure


def _bars(axis: Any, cells: list[CellResult], places: list[float], width: float, color: str, label: str) -> None:
    quiet = [each.quiet.throughput or 0.0 for each in cells]
    axis.bar(places, quiet, 0.92 * width, color=color, label=label)
    noisy = [(place, each.noisy.throughput) for place, each in zip(places, cells, strict=True) if each.noisy.rounds]
    if noisy:
        axis.bar(*zip(*noisy, strict=True), 0.92 * width, color="none", edgecolor="white", hatch="////", linewidth=0.8)


def _latencies(axis: Any, cells: list[CellResult], places: list[float], color: str) -> None:
    for place, each in zip(places, cells, strict=True):
        low, high = each.quiet.percentile(50), each.quiet.percentile(95)
        assert low is not None
        axis.plot([place], [1e3 * low], "o", color=color, markersize=6)
        if high is not None:
            axis.plot([place, place], [1e3 * low, 1e3 * high], color=color, linewidth=2)

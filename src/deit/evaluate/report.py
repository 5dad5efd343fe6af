"""Writes the report of an evaluation: one self-contained HTML file with tables, pictures and mistakes."""

from __future__ import annotations

import io
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import deit
from deit.core.file_names import CONFIG_NAME, CURVES_NAME, PREPROCESSOR_NAME, RECIPE_NAME
from deit.core.printable import printable
from deit.core.scores.calibration import ReliabilityBin
from deit.core.scores.chart_style import BLUE, GREY, INK, LIGHT_BLUE, ORANGE, plain_text, tidy
from deit.core.scores.intervals import score_intervals, share_interval
from deit.core.scores.metrics import REGRESSION, SINGLE_LABEL, score_text, score_title
from deit.data.sources import Source, place_of
from deit.evaluate.html_page import figure_uri, picture_of, picture_uri, write_page
from deit.evaluate.results import Evaluation, HeadResult
from deit.evaluate.risk_figure import risk_figure

# Above the first the matrix is too dense for names, above the second for numbers in its cells.
_MOST_NAMES, _MOST_NUMBERS = 50, 20
# Of files of the model directory that are shown.
_MOST_FILE_BYTES, _MOST_LINES = 4 * 2**20, 200


def check_report_path(path: Path) -> None:
    """Checks that a report can be made and written, before anything is computed.

    Raises:
        ModuleNotFoundError: Jinja or matplotlib is not installed.
        FileNotFoundError: The folder of the file does not exist.
        IsADirectoryError: The path is a folder.
    """
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Pass a file for the report, such as {path / 'report.html'}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} for the report does not exist. Make it first.")


def write_evaluation_report(
    path: Path,
    evaluation: Evaluation,
    source: Source,
    *,
    model: str,
    data: str,
    command: str = "",
    notes: Sequence[str] = (),
    folder: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Writes the report of an evaluation.

    Args:
        path: Path of the HTML file; its folder must exist.
        evaluation: The results.
        source: The evaluated images, for the pictures of the mistakes.
        model: Name or folder of the model.
        data: Name or folder of the images.
        command: Command that repeats the evaluation.
        notes: Sentences at the top.
        folder: The model directory, for its curves, recipe and preprocessing.
        settings: Settings of the evaluation: name -> value.

    Returns:
        `path`.

    Raises:
        ModuleNotFoundError: Jinja or matplotlib is not installed.
    """
    import torch

    return write_page(
        path,
        "evaluate",
        "report.html.j2",
        evaluation=evaluation,
        model=model,
        data=data,
        command=command,
        notes=notes,
        cards=_cards(evaluation),
        pictures=_pictures(evaluation),
        wide=len(evaluation.classes) > _MOST_NUMBERS,
        pairs=evaluation.confused_pairs(8) if evaluation.problem_type == SINGLE_LABEL else [],
        title=score_title,
        text=score_text,
        interval=share_interval,
        curves=_curves(folder),
        settings=list((settings or {}).items()),
        files=_files(folder),
        mistakes=_mistakes(evaluation, source),
        rows=sorted(
            evaluation.per_class(), key=lambda row: _nan_last(row.get("accuracy", row.get("average_precision")))
        ),
        versions=f"deit {deit.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}",
    )


def _mistakes(evaluation: Evaluation, source: Source) -> list[dict[str, Any]]:
    cells = []
    for mistake in evaluation.mistakes():
        uri, tiny = picture_of(source, mistake.index)
        cells.append({"image": uri, "tiny": tiny, "mistake": mistake, "place": place_of(source, mistake.index)})
    return cells


def _curves(folder: Path | None) -> str:
    """Returns the training curves as a data URI, or an empty string."""
    path = None if folder is None else folder / CURVES_NAME
    if path is None or not path.is_file() or path.stat().st_size > _MOST_FILE_BYTES:
        return ""
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as picture:
            return picture_uri(picture.convert("RGB"))
    except Exception:  # noqa: BLE001  # a damaged picture raises nearly every type, and costs no report
        return ""


def _files(folder: Path | None) -> list[tuple[str, list[str]]]:
    """Returns the texts of recipe, preprocessing and configuration in the model directory."""
    named = {} if folder is None else {name: folder / name for name in (RECIPE_NAME, PREPROCESSOR_NAME, CONFIG_NAME)}
    found = {name: path for name, path in named.items() if path.is_file() and path.stat().st_size <= _MOST_FILE_BYTES}
    return [(name, _lines_of(path)) for name, path in found.items()]


def _lines_of(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    more = [f"... and {len(lines) - _MOST_LINES} lines more"] if len(lines) > _MOST_LINES else []
    return [*(line[:200] for line in lines[:_MOST_LINES]), *more]


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _cards(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Returns the numbers at the top: name, number, explanation."""
    result = evaluation.heads[evaluation.head]
    texts = {name: score_text(name, value) for name, value in result.scores.as_dict().items()}
    if evaluation.problem_type == SINGLE_LABEL:
        cards = [
            ("Top-1", f"{texts['top1']} %", _between("right at first", "top1", result)),
            ("Top-5", f"{texts['top5']} %", _between("right among five", "top5", result)),
            ("Loss", texts["loss"], "cross-entropy, nats"),
            ("ECE", f"{100 * result.calibration_error:.2f} %", "confidence against accuracy"),
        ]
    elif evaluation.problem_type == REGRESSION:
        cards = [
            ("MAE", texts["mean_absolute_error"], "mean absolute error"),
            ("RMSE", texts["root_mean_squared_error"], "root mean squared error"),
            ("R²", texts["r2"], "share of variance explained"),
        ]
    else:
        cards = [
            ("Micro F1", f"{texts['micro_f1']} %", "all answers together"),
            ("Macro F1", f"{texts['macro_f1']} %", "mean over classes"),
            ("mAP", f"{100 * evaluation.mean_average_precision:.2f} %", "mean average precision"),
            (
                "Exact",
                f"{texts['exact_match']} %",
                _between("every class right", "exact_match", result),
            ),
        ]
    speed = evaluation.throughput
    return [
        *cards,
        ("Images", f"{len(evaluation.labels):,}", _what_of(evaluation)),
        ("Throughput", f"{speed.model:,.0f}", f"images/s; {speed.end_to_end:,.0f} with reading"),
    ]


def _between(what: str, score: str, result: HeadResult) -> str:
    low, high = score_intervals(result.scores)[score]
    return what if math.isnan(low) else f"{what}; {low:.1f} to {high:.1f}"


def _what_of(evaluation: Evaluation) -> str:
    if evaluation.problem_type == REGRESSION:
        return f"for {evaluation.classes[0]}"
    return f"{len(evaluation.classes):,} {'class' if len(evaluation.classes) == 1 else 'classes'}"


def _pictures(evaluation: Evaluation) -> dict[str, str]:
    if evaluation.problem_type == SINGLE_LABEL:
        pictures = {"reliability": figure_uri(_reliability_figure(evaluation.heads[evaluation.head].bins))}
        if evaluation.trust is not None and evaluation.trust.risk:
            pictures["risk"] = figure_uri(risk_figure(evaluation.trust))
        if len(evaluation.classes) <= _MOST_NAMES:
            pictures["confusion"] = figure_uri(_confusion_figure(evaluation))
        return pictures
    if evaluation.problem_type == REGRESSION:
        return {"regression": figure_uri(_regression_figure(evaluation))}
    return {}


def _reliability_figure(bins: Sequence[ReliabilityBin]) -> Any:
    """Draws accuracy over confidence, and below it the number of images in each bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    filled = [b for b in bins if b.images]
    middles, width = [(b.lower + b.upper) / 2 for b in filled], 1 / max(len(bins), 1)
    above.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="as sure as right", zorder=3)
    above.bar(middles, [b.accuracy for b in filled], width * 0.92, color=LIGHT_BLUE, label="accuracy", zorder=2)
    above.plot(
        [b.confidence for b in filled],
        [b.accuracy for b in filled],
        "o",
        color=ORANGE,
        markeredgecolor="white",
        markersize=6,
        label="at its mean confidence",
        zorder=4,
    )
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    above.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)
    below.bar(middles, [b.images for b in filled], width * 0.92, color=GREY)
    below.set(xlabel="confidence (highest probability)", ylabel="images")
    for axis in (above, below):
        tidy(axis)
    return figure


def _confusion_figure(evaluation: Evaluation) -> Any:
    """Draws the confusion matrix: rows are true classes, the color is the share of the row."""
    from matplotlib.figure import Figure

    counts, names = evaluation.confusion(), [_short(name) for name in evaluation.classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.6 + 0.22 * len(names), 4.6), 11)
    figure = Figure(figsize=(side, side * 0.94), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if len(names) <= 30 else 7
    axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    plain_text((*axis.get_xticklabels(), *axis.get_yticklabels()))
    axis.set(xlabel="what the model said", ylabel="true class")
    axis.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="#e3e7ec", linewidth=0.6)
    axis.tick_params(which="both", length=0)
    if len(names) <= _MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.55 else INK
            axis.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=8)
    return figure


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 24 else name[:23] + "…"


def _regression_figure(evaluation: Evaluation) -> Any:
    """Draws predicted over true values, and a histogram of the errors."""
    from matplotlib.figure import Figure

    true, said = evaluation.labels[evaluation.kept], evaluation.logits[:, 0]
    finite = np.isfinite(said)
    true, said = true[finite], said[finite]
    figure = Figure(figsize=(9.2, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if len(true):
        ends = [float(min(true.min(), said.min())), float(max(true.max(), said.max()))]
        left.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="exact")
        left.scatter(true, said, s=12, color=BLUE, alpha=0.6, linewidths=0, label="image")
        left.legend(fontsize=8, frameon=False)
        right.hist(said - true, bins=30, color=BLUE)
        right.axvline(0, color=INK, linewidth=1)
    left.set(xlabel="true", ylabel="what the model said")
    right.set(xlabel="said minus true", ylabel="images")
    for axis in (left, right):
        tidy(axis)
    return figure

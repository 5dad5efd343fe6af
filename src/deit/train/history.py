"""What happened in a run, epoch by epoch: JSON lines, a table and a picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from deit.core.errors import parsing, read_bytes
from deit.core.files import replaced_file, write_text_atomically

_MOST_BYTES = 64 * 2**20  # an epoch takes 1 KB
_JSONL, _CSV, CURVES_NAME = "metrics.jsonl", "metrics.csv", "curves.png"
_DRAWN = ("loss", "top1", "micro_f1", "mean_absolute_error")


class History:
    """The metrics of a run's epochs, kept in its folder as `metrics.jsonl`, `metrics.csv` and `curves.png`.

    Args:
        folder: Of the run.
        until_step: Forget epochs that ended later: a resumed run does them again.

    Attributes:
        epochs: A flat dict of numbers for each epoch, with "epoch" and "step".
    """

    def __init__(self, folder: Path, *, until_step: int = 0) -> None:
        self._folder = folder
        self.epochs: list[dict[str, Any]] = []
        file = folder / _JSONL
        if until_step and file.is_file():
            content = read_bytes(file, "the history of a run", _MOST_BYTES)
            with parsing(file, "the history of a run"):
                rows = [json.loads(line) for line in content.decode("utf-8").splitlines()]
                self.epochs = [row for row in rows if row["step"] <= until_step]

    def write(self) -> None:
        """Writes the three files anew, each whole or not at all."""
        write_text_atomically(self._folder / _JSONL, "".join(json.dumps(r) + "\n" for r in self.epochs))
        columns = list(dict.fromkeys(key for r in self.epochs for key in r))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.epochs)
        write_text_atomically(self._folder / _CSV, table.getvalue())
        draw_curves({"": self.epochs}, self._folder / CURVES_NAME)


def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path, *, over: str = "epoch") -> None:
    """Draws the losses and the top-1 accuracy of some runs.

    Args:
        runs: Name -> rows of its `History`; one run without a name shows all its parts.
        path: Of the PNG.
        over: "epoch", or "step" for runs whose epochs differ.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    for name, rows in runs.items():
        keys = [k for k in dict.fromkeys(k for r in rows for k in r) if k.endswith(_DRAWN)]
        if name:  # several runs: the main curves alone, or nobody can read it
            keys = [k for k in keys if k in ("train_loss", "val_top1")]
        for key in keys:
            points = [(r[over], r[key]) for r in rows if r.get(key) is not None]
            axis = losses if key.endswith("loss") else accuracy
            label = name or key
            marker = "o" if len(points) == 1 else None
            axis.plot(*zip(*points, strict=True), label=label, marker=marker, linewidth=1.4)
    scored = accuracy.has_data()  # masked images have a loss alone
    losses.set(xlabel=over, ylabel="loss (nats)" if scored else "mean absolute error", title="Loss")
    accuracy.set(xlabel=over, ylabel=_measure(runs), title="Validation")
    accuracy.set_visible(scored)
    for axis in (losses, accuracy):
        axis.grid(alpha=0.3)
        if axis.has_data():
            for text in axis.legend(fontsize=8).get_texts():
                text.set_parse_math(False)  # a dollar sign in a name is one
    with replaced_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _measure(runs: dict[str, list[dict[str, Any]]]) -> str:
    names = {key.split("_", 1)[1] for rows in runs.values() for row in rows for key in row if key.startswith("val_")}
    drawn = [name for name in _DRAWN if name != "loss" and name in names]
    return "top-1 (%)" if not drawn or drawn[0] == "top1" else drawn[0].replace("_", " ")

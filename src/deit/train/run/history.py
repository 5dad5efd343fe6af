"""What happened in a run, epoch by epoch: JSON lines, a table and a picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from deit.core.errors import DamagedFileError, parsing, read_bytes
from deit.core.file_names import CURVES_NAME, HISTORY_NAME, HISTORY_TABLE_NAME
from deit.core.files import write_text_atomically
from deit.train.run.curves import draw_curves

_MOST_BYTES = 64 * 2**20  # an epoch takes 1 KB


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
        file = folder / HISTORY_NAME
        if until_step and file.is_file():
            content = read_bytes(file, "the history of a run", _MOST_BYTES)
            with parsing(file, "the history of a run"):
                rows = [json.loads(line) for line in content.decode("utf-8").splitlines()]
                if not all(type(value) in (int, float) for row in rows for value in row.values()):
                    raise DamagedFileError(f"{file} is damaged: not all of its values are numbers.")
                self.epochs = [row for row in rows if row["step"] <= until_step]

    def write(self) -> None:
        """Writes the three files anew, each whole or not at all."""
        write_text_atomically(self._folder / HISTORY_NAME, "".join(json.dumps(r) + "\n" for r in self.epochs))
        columns = list(dict.fromkeys(key for r in self.epochs for key in r))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.epochs)
        write_text_atomically(self._folder / HISTORY_TABLE_NAME, table.getvalue())
        draw_curves({"": self.epochs}, self._folder / CURVES_NAME)

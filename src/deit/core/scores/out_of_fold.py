"""Out-of-fold answers: what models that did not learn from an image say of it. Writes and reads their files."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import DamagedFileError, parsing
from deit.core.files import replaced_file, write_text_atomically
from deit.core.labels import NO_LABEL
from deit.core.printable import not_computed
from deit.core.scores.metrics import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL

ANSWERS_NAME, ANSWERS_TABLE_NAME = "out_of_fold.npz", "out_of_fold.csv"
SCORES_NAME = "out_of_fold.json"

_KIND = "a file of out-of-fold answers"


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Answers to N images of K classes.

    Attributes:
        names: (N,) text: images as the data set names them.
        labels: (N,) int64 classes; (N, K) float32 zeros and ones for several classes; (N,) float32 for a regression.
        probabilities: (N, K) float32: softmax, or sigmoid for several classes; (N, 1) numbers for a regression. NaN
            where the image could not be read.
        classes: Class names.
        folds: (N,) int64, the fold in which an image was held out, from 1.
        problem_type: One of `PROBLEM_TYPES`.
        contents: (N,) uint64 hashes of the images, by which a changed data set is known; None where they are unknown.
    """

    names: npt.NDArray[np.str_]
    labels: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float32]
    classes: list[str]
    folds: npt.NDArray[np.int64]
    problem_type: str = SINGLE_LABEL
    contents: npt.NDArray[np.uint64] | None = None

    def write(self, folder: Path) -> None:
        """Writes `out_of_fold.npz` and `out_of_fold.csv`, each whole or not at all."""
        arrays: dict[str, Any] = {
            "names": self.names,
            "labels": self.labels,
            "probabilities": self.probabilities,
            "classes": np.array(self.classes, np.str_),
            "folds": self.folds,
            "problem_type": np.array(self.problem_type),
        }
        if self.contents is not None:
            arrays["contents"] = self.contents
        with replaced_file(folder / ANSWERS_NAME) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        write_text_atomically(folder / ANSWERS_TABLE_NAME, self._table())

    @classmethod
    def read(cls, path: Path) -> OutOfFold:
        """Reads `out_of_fold.npz`.

        Args:
            path: The file, or the folder that holds it.

        Raises:
            FileNotFoundError: There is no such file.
            DamagedFileError: It is no such file, or its parts do not fit each other.
        """
        file = path / ANSWERS_NAME if path.is_dir() else path
        if not file.exists():
            raise FileNotFoundError(f"No out-of-fold answers at {file}. `deit train DATA --folds 5` writes them.")
        with parsing(file, _KIND), file.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            found = cls(
                names=arrays["names"],
                labels=arrays["labels"],
                probabilities=arrays["probabilities"],
                classes=[str(name) for name in arrays["classes"]],
                folds=arrays["folds"],
                problem_type=str(arrays["problem_type"]),
                contents=arrays.get("contents"),
            )
        if not found._fits():
            raise DamagedFileError(f"{file} is not {_KIND}: its parts do not fit each other.")
        return found

    def _fits(self) -> bool:
        count, classes = len(self.names), len(self.classes)
        kinds = {SINGLE_LABEL: ("i", (count,)), MULTI_LABEL: ("f", (count, classes)), REGRESSION: ("f", (count,))}
        if self.problem_type not in PROBLEM_TYPES or not classes:
            return False
        kind, shape = kinds[self.problem_type]
        parts = (
            (self.names, "U", (count,)),
            (self.labels, kind, shape),
            (self.probabilities, "f", (count, classes)),
            (self.folds, "i", (count,)),
            *([] if self.contents is None else [(self.contents, "u", (count,))]),
        )
        if any(array.dtype.kind != wanted or array.shape != size for array, wanted, size in parts):
            return False
        if self.problem_type != SINGLE_LABEL or not count:
            return True
        known = self.labels[self.labels != NO_LABEL]
        return not known.size or 0 <= int(known.min()) <= int(known.max()) < classes

    def _table(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        single, number = self.problem_type == SINGLE_LABEL, self.problem_type == REGRESSION
        writer.writerow(
            [
                "file",
                "label",
                "fold",
                "answer",
                *([] if number else [f"probability of {name}" for name in self.classes]),
            ]
        )
        for name, label, fold, row in zip(self.names, self.labels, self.folds, self.probabilities, strict=True):
            if np.isnan(row).any():
                answer = ""
            elif single:
                answer = self.classes[int(row.argmax())]
            else:
                answer = f"{float(row[0]):.6g}" if number else self._several(row > 0.5)
            cells = [] if number else [f"{value:.6g}" for value in row]
            writer.writerow(
                [not_computed(str(name)), not_computed(self._label(label)), int(fold), not_computed(answer), *cells]
            )
        return text.getvalue()

    def _label(self, label: Any) -> str:
        if self.problem_type == SINGLE_LABEL:
            return self.classes[int(label)] if int(label) != NO_LABEL else ""
        return f"{float(label):.6g}" if self.problem_type == REGRESSION else self._several(label > 0)

    def _several(self, has: Any) -> str:
        return "|".join(self.classes[i] for i in np.flatnonzero(has))

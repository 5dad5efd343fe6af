"""Opens all parts of a data set as they are: nothing is divided, and no part stops at what is wrong in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from deit.core.labels import NO_LABEL
from deit.core.scores.metrics import MULTI_LABEL, SINGLE_LABEL
from deit.data.duplicates import label_text
from deit.data.exclusions import WHOLE, name_in, names_in
from deit.data.find_splits import find_splits
from deit.data.readers.reader import DataPath, OpenedSource, ReadOptions
from deit.data.sources import SkippedFile, place_of

NO_LABEL_TEXT = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One part of a data set.

    Attributes:
        name: "train", "val", "test", or "all" of data that is not divided.
        source: Its images.
        files: Names of the images, as `fix.csv` has them.
        labels: (N,) numbers of their labels in `Opened.labels`.
    """

    name: str
    source: OpenedSource
    files: list[str]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A data set whose parts are open.

    Attributes:
        parts: In the order in which the reader names them, training first.
        labels: All labels as texts: class names, several joined by "|", numbers; "" for none.
        classes: Names of the classes over all parts, sorted; one name, of the number, for regression.
        problem_type: One of `PROBLEM_TYPES`, or "unlabelled".
        skipped: Files that cannot be used, by their names in `fix.csv`.
        ignored: Counts of files that are of no interest.
    """

    parts: list[Part]
    labels: list[str]
    classes: list[str]
    problem_type: str
    skipped: list[SkippedFile]
    ignored: Mapping[str, int]

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Returns name of a class -> name of a part -> number of its images; nothing for regression."""
        counts: dict[str, dict[str, int]] = {name: {} for name in self.classes}
        for part in self.parts:
            own, labels = part.source.classes, part.source.labels
            if self.problem_type == MULTI_LABEL:
                found = dict(zip(own, labels.sum(axis=0).astype(int).tolist(), strict=True))
            elif self.problem_type == SINGLE_LABEL:
                found = dict(
                    zip(own, np.bincount(labels[labels != NO_LABEL], minlength=len(own)).tolist(), strict=True)
                )
            else:
                return {}
            for name in self.classes:
                counts[name][part.name] = int(found.get(name, 0))
        return counts


def open_parts(path: DataPath, options: ReadOptions) -> Opened:
    """Opens every part that a reader finds.

    Each part has the classes that it has: classes are matched by their names, and a class that one part lacks is a
    finding, not an error.

    Args:
        path: See `deit.data.open_data.open_data`.
        options: How to read.

    Raises:
        FileNotFoundError: There is nothing at the path.
        UserError: The data is of no known kind or damaged, a column cannot be found, or a part has no usable image.
    """
    splits = find_splits(path, replace(options, keep_empty=True))
    opened = {name: split.open() for name, split in splits.named.items()}
    beside = splits.beside(tuple(opened))
    texts = {
        name: [label_text(source, label) if _is_labelled(source, label) else NO_LABEL_TEXT for label in source.labels]
        for name, source in opened.items()
    }
    labels = sorted({text for part in texts.values() for text in part})
    numbers = {text: number for number, text in enumerate(labels)}
    parts = [
        Part(
            name=name or WHOLE,
            source=source,
            files=names_in(path, (place_of(source, i) for i in range(len(source.labels)))),
            labels=np.array([numbers[text] for text in texts[name]], np.int64),
        )
        for name, source in opened.items()
    ]
    parts.sort(key=lambda part: part.name != "train")
    skipped = [file for part in parts for file in part.source.skipped] + list(beside.skipped)
    return Opened(
        parts=parts,
        labels=labels,
        classes=sorted({name for part in parts for name in part.source.classes}),
        problem_type=options.problem_type,
        skipped=[replace(file, path=name_in(path, file.path)) for file in skipped],
        ignored=sum((Counter(part.source.ignored) for part in parts), Counter(beside.ignored)),
    )


def _is_labelled(source: OpenedSource, label: object) -> bool:
    return bool(source.classes) and (source.problem_type != SINGLE_LABEL or bool(label != NO_LABEL))

"""Defines readers: a reader takes a place and finds its splits, and each split opens its images.

`deit.data.find_splits.READERS` lists the readers. To add one, write a class with the two methods of `Reader` and add it
to that table; docs/data.md shows the smallest one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from deit.core.errors import UserError
from deit.core.images.reading import ValueRange
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.labels.label_columns import UNLABELLED, EncodedLabels
from deit.data.sources import Progress, SkippedFile, Source
from deit.data.storage.image_search import FoundFiles

if TYPE_CHECKING:
    import datasets

DataPath: TypeAlias = (
    "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | datasets.Dataset | datasets.DatasetDict"
)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How images and labels are read; see `deit.data.open_data.open_data`.

    Attributes:
        image_column: Column of images; empty finds it.
        label_column: Column of labels; empty finds it.
        problem_type: One of `PROBLEM_TYPES`, or `UNLABELLED` to ignore labels.
        label_separator: Separator of several classes in one text; empty finds it.
        value_range: Range of gray images with more than 8 bits.
        strict: Raise at the first image that cannot be used.
        check: Decode every image once when a split is opened.
        progress: Called with (images checked, images in all).
        keep_unlabelled: Keep training images that have no label, as `NO_LABEL`.
        for_training: Refuse a folder of a single class before its images are read.
        classes: Class names of the model that is measured; None takes those of the data.
        keep_empty: Keep a class folder of broken images alone, without images, instead of raising.
    """

    image_column: str = ""
    label_column: str = ""
    problem_type: str = SINGLE_LABEL
    label_separator: str = ""
    value_range: ValueRange | None = None
    strict: bool = False
    check: bool = True
    progress: Progress | None = None
    keep_unlabelled: bool = False
    for_training: bool = False
    classes: Sequence[str] | None = None
    keep_empty: bool = False

    @property
    def labelled(self) -> bool:
        """True if labels are read."""
        return self.problem_type != UNLABELLED

    def columns(self) -> dict[str, str]:
        """Returns the options of a reader of tables."""
        return {
            "image_column": self.image_column,
            "label_column": self.label_column,
            "problem_type": self.problem_type,
        }


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place of data as a user passed it; one of three kinds.

    Attributes:
        names: Paths of files, and addresses.
        folder: A folder.
        data: An object in memory.
    """

    names: tuple[str, ...] = ()
    folder: Path | None = None
    data: Any = None


class OpenedSource(Source, Protocol):
    """A source that accounts for the files that it leaves out."""

    @property
    def skipped(self) -> Sequence[SkippedFile]:
        """Files that cannot be used."""
        ...

    @property
    def ignored(self) -> Mapping[str, int]:
        """Counts of other files, such as hidden ones."""
        ...


class Split(Protocol):
    """One split of a data set. Reads nothing before `open`."""

    def open(self, *, classes: Sequence[str] | None = None, labels_needed: bool = False) -> OpenedSource:
        """Reads the labels and checks the images.

        Args:
            classes: Names and order of the classes; None takes those of the options, else those of the labels.
            labels_needed: True raises an error if an image has no label, as in a validation set.
        """
        ...

    def labels_of(self, source: Source, options: ReadOptions) -> EncodedLabels | None:
        """Returns the labels of images that `open` opened without labels, or None if there are none.

        Args:
            source: The opened split.
            options: How to read the labels.
        """
        ...


def _nothing_else(opened: Collection[str]) -> FoundFiles:
    return FoundFiles()


def _cannot_train(splits: Splits, name: str) -> Exception:
    return UserError(
        f"The parts {', '.join(splits.named)} cannot be used for training. Name one train and one val, or pass one."
    )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits that a reader found; none is opened yet.

    Attributes:
        named: Splits by name: "train", "val", "test". Data that is not divided is one split of any name.
        complete: True if a single split must not be divided, because its name implies others beside it.
        beside: Called with the names of the opened splits; logs, counts and returns all files outside of them.
        missing: Returns the error for a missing split, by its name.
    """

    named: Mapping[str, Split]
    complete: bool = False
    beside: Callable[[Collection[str]], FoundFiles] = _nothing_else
    missing: Callable[[Splits, str], Exception] = _cannot_train


class Reader(Protocol):
    """Reads one kind of data."""

    def takes(self, place: Place) -> bool:
        """Returns True if the data at a place is of this kind, judged by names, not by contents."""
        ...

    def splits(self, place: Place, options: ReadOptions) -> Splits:
        """Finds the splits at a place that it takes.

        Raises:
            UserError: The data cannot be read, or its splits are ambiguous.
        """
        ...

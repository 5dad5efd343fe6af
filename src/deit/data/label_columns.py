"""Labels as data sets write them (names, numbers of names, lists of them, plain numbers), turned into arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.labels import id2label_from_names
from deit.core.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from deit.data.sources import Labels, check_problem_type

# Given in place of a problem type, it says that labels are not asked for: a table needs no column of them.
UNLABELLED = "unlabelled"

_CHOOSE = "Choose it with --set data.problem_type="


def column_option(option: str, name: str = "NAME") -> str:
    """Returns how a column is chosen on the command line, for a message: option is "image_column" or "label_column"."""
    return f"--set data.{option}={name} (deit evaluate: --{option.replace('_', '-')} {name})"


_OTHER_COLUMN = f"another column: {column_option('label_column')}"
_SEPARATORS = re.compile(r"[|;]")


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """The labels of one part of a data set, as they were found.

    Attributes:
        name: Of the column.
        values: One for each row: a number, a text, a list of either, or None where there is none.
        class_names: What whole numbers in `values` stand for, where the data set says so.
        zeros_and_ones: Whether each value is a row of zeros and ones, one for each of `class_names`.
    """

    name: str
    values: Sequence[Any]
    class_names: tuple[str, ...] | None = None
    zeros_and_ones: bool = False


def ignored_labels(count: int) -> LabelColumn:
    """Returns a column for images whose labels are not asked for."""
    return LabelColumn(name="", values=[0] * count, class_names=("image",))


@dataclass(frozen=True, kw_only=True)
class EncodedLabels:
    """Labels as a `Source` has them.

    Attributes:
        classes: Class names, or the one name of a regression's number.
        labels: (N,) int64, (N, K) float32 or (N,) float32; zeros where there is no label.
        missing: (N,) bool, True where there is no label.
    """

    classes: list[str]
    labels: Labels
    missing: npt.NDArray[np.bool_]


def encode_labels(
    column: LabelColumn,
    problem_type: str,
    *,
    place: Callable[[int], str],
    classes: Sequence[str] | None = None,
    numbers_fit: bool = False,
) -> EncodedLabels:
    """Turns a column of labels into an array.

    A missing label is None, NaN or an empty text; for single classes also -1, which published test sets write. Whole
    numbers without names are names themselves ("0", "1", ...), sorted by value. A text of several classes separates
    them by | or ;.

    Args:
        column: The labels.
        problem_type: What they are for: one of `PROBLEM_TYPES`.
        place: Names a row in a message.
        classes: Names and order of the classes; those of the column when None: its own list, else the sorted names.
        numbers_fit: Take whole numbers without names as positions in `classes` if none of those is a number.

    Raises:
        ValueError: The values do not fit the problem type, or name a class that `classes` lacks.
    """
    check_problem_type(problem_type)
    if problem_type == REGRESSION:
        return _encode_numbers(column, place, classes)
    read = _one_name if problem_type == SINGLE_LABEL else _several_names
    named = [read(value, column, row, place) for row, value in enumerate(column.values)]
    missing = np.array([names is None for names in named], dtype=bool)
    found = _sorted_names({name for names in named if names for name in names})
    known = list(classes) if classes is not None else list(column.class_names or found)
    id2label_from_names(known)
    if numbers_fit and _are_positions(column, found, known):
        known_as = {name: int(name) for name in found}
    else:
        known_as = {name: i for i, name in enumerate(known)}
    _refuse_unknown(found, known_as, known, column)
    if problem_type == SINGLE_LABEL:
        labels: Labels = np.array([known_as[names[0]] if names else 0 for names in named], dtype=np.int64)
    else:
        labels = np.zeros((len(named), len(known)), dtype=np.float32)
        for row, names in enumerate(named):
            labels[row, [known_as[name] for name in names or ()]] = 1.0
    return EncodedLabels(classes=known, labels=labels, missing=missing)


def _are_positions(column: LabelColumn, found: Sequence[str], known: Sequence[str]) -> bool:
    numbers = column.class_names is None and all(name.isdecimal() for name in found)
    return numbers and not any(name.isdecimal() for name in known) and all(int(name) < len(known) for name in found)


def _refuse_unknown(found: Sequence[str], known_as: dict[str, int], known: Sequence[str], column: LabelColumn) -> None:
    unknown = [name for name in found if name not in known_as]
    if unknown:
        raise ValueError(
            f"Column {column.name!r} has labels that are not among the {len(known)} classes: {_shown(unknown)}. "
            f"Known: {_shown(known)}. Correct the labels, or choose {_OTHER_COLUMN}."
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _sorted_names(names: set[str]) -> list[str]:
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)


def _one_name(value: Any, column: LabelColumn, row: int, place: Callable[[int], str]) -> tuple[str] | None:
    value = value.strip() if isinstance(value, str) else value
    if _is_missing(value):
        return None
    if isinstance(value, (list, tuple)):
        raise ValueError(
            f"Column {column.name!r} holds several labels for an image ({place(row)}). {_CHOOSE}{MULTI_LABEL}, "
            f"or {_OTHER_COLUMN}."
        )
    if value in (-1, "-1"):
        return None
    return (_name(value, column, row, place),)


def _name(value: Any, column: LabelColumn, row: int, place: Callable[[int], str]) -> str:
    """Returns the class name that a text or number stands for."""
    if isinstance(value, str):
        if column.class_names is None and re.fullmatch(r"-?\d*\.\d+|-\d+", value):
            raise ValueError(_not_a_class(value, column, place(row)))
        return value
    if not isinstance(value, (int, float, np.integer)) or value % 1 != 0 or value < 0:
        raise ValueError(_not_a_class(value, column, place(row)))
    if column.class_names is None:
        return str(int(value))
    if value >= len(column.class_names):
        raise ValueError(
            f"{place(row)} has the label {int(value)}, but column {column.name!r} names {len(column.class_names)} "
            "classes. Correct the labels."
        )
    return column.class_names[int(value)]


def _not_a_class(value: Any, column: LabelColumn, where: str) -> str:
    return (
        f"{where} has the label {value!r} in column {column.name!r}, which is neither a name nor a class number. "
        f"Are the labels plain numbers? {_CHOOSE}{REGRESSION}"
    )


def _several_names(value: Any, column: LabelColumn, row: int, place: Callable[[int], str]) -> list[str] | None:
    if isinstance(value, str):
        value = [part for part in (text.strip() for text in _SEPARATORS.split(value)) if part] or None
    if _is_missing(value):
        return None
    if not isinstance(value, (list, tuple)):
        value = [value]
    if not column.zeros_and_ones:
        return [_name(each, column, row, place) for each in value]
    names = column.class_names or ()
    if len(value) != len(names):
        raise ValueError(f"{place(row)} has {len(value)} zeros and ones for {len(names)} classes. Correct the labels.")
    if any(_is_missing(each) for each in value):
        return None
    return [name for name, each in zip(names, value, strict=True) if each]


def _encode_numbers(column: LabelColumn, place: Callable[[int], str], classes: Sequence[str] | None) -> EncodedLabels:
    if column.class_names is not None:
        raise ValueError(
            f"Column {column.name!r} holds classes ({_shown(column.class_names)}), not numbers to learn. "
            f"Choose {_OTHER_COLUMN}."
        )
    if classes is not None and len(classes) != 1:
        raise ValueError(f"A regression has one number for each image. Received: {len(classes)} classes.")
    numbers = [_number(value, column, row, place) for row, value in enumerate(column.values)]
    missing = np.array([number is None for number in numbers], dtype=bool)
    labels = np.array([0.0 if number is None else number for number in numbers], dtype=np.float32)
    return EncodedLabels(classes=[column.name] if classes is None else list(classes), labels=labels, missing=missing)


def _number(value: Any, column: LabelColumn, row: int, place: Callable[[int], str]) -> float | None:
    value = value.strip() if isinstance(value, str) else value
    if _is_missing(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isnan(number):
        return None
    if abs(number) > float(np.finfo(np.float32).max):
        raise ValueError(f"{place(row)} has {value!r} in column {column.name!r}, which is not a finite number.")
    return number


def zeros_and_ones(values: Sequence[Any]) -> bool:
    """Whether lists of numbers are rows of zeros and ones rather than lists of class numbers.

    They are when all are equally long and hold only 0 and 1, and as class numbers at least one would name a class
    twice or, being fractions or truth values, could not be class numbers at all.
    """
    lists = [value for value in values if value is not None]
    if not lists or any(len(each) != len(lists[0]) for each in lists):
        return False
    flat = [number for each in lists for number in each]
    if not flat or any(isinstance(number, str) or number not in (0, 1) for number in flat):
        return False
    return any(isinstance(number, (bool, float)) for number in flat) or any(
        len(set(each)) < len(each) for each in lists
    )

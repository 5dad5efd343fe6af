"""Encodes labels as arrays: names, class numbers, lists of them, plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.config.field_checks import MOST_LABELS
from deit.core.errors import UserError
from deit.core.labels import repeated_names, several_classes
from deit.core.printable import some_of
from deit.core.scores.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from deit.data.labels.cells import (
    are_switches,
    is_class_number,
    is_missing,
    likely_several,
    listed,
    plain_number,
    read_switch,
    split_labels,
    zeros_and_ones,
)
from deit.data.sources import Labels, check_problem_type

# Used as a problem type if labels are not needed: a table then needs no column of labels.
UNLABELLED = "unlabelled"

_CHOOSE = "Choose it with --set data.problem_type="


def column_option(option: str, name: str = "NAME") -> str:
    """Returns the command line option that chooses a column: option is "image_column" or "label_column"."""
    return f"--set data.{option}={name} (deit evaluate: --{option.replace('_', '-')} {name})"


_OTHER_COLUMN = f"another column: {column_option('label_column')}"
_WORDS_FOR_NONE = ("None", "null", "NULL", "NA", "N/A")
_TRUTH = ("False", "True")
_NUMBER = re.compile(r"-?\d+(\.0*)?")


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """The labels of one split of a data set, as stored.

    Attributes:
        name: Name of the column.
        values: One value per row: a number, a text, a list of either, or None if missing.
        class_names: Names for whole numbers in `values`, if the data set has them.
        zeros_and_ones: True if each value is a row of zeros and ones, one for each of `class_names`.
        notes: Notes for the user about reading the column.
    """

    name: str
    values: Sequence[Any]
    class_names: tuple[str, ...] | None = None
    zeros_and_ones: bool = False
    notes: tuple[str, ...] = ()


def ignored_labels(count: int) -> LabelColumn:
    """Returns a column for images whose labels are not needed."""
    return LabelColumn(name="", values=[0] * count, class_names=("image",))


@dataclass(frozen=True, kw_only=True)
class EncodedLabels:
    """Encoded labels for a `Source`.

    Attributes:
        classes: Class names, or one name for regression.
        labels: (N,) int64, (N, K) float32 or (N,) float32; zeros for missing labels.
        missing: (N,) bool, True for missing labels.
        notes: Notes for the user about reading the labels.
    """

    classes: list[str]
    labels: Labels
    missing: npt.NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def encode_labels(
    column: LabelColumn,
    problem_type: str,
    *,
    place: Callable[[int], str],
    classes: Sequence[str] | None = None,
    numbers_fit: bool = False,
    separator: str = "",
) -> EncodedLabels:
    """Encodes a column of labels as an array, for every kind of file.

    A missing label is None, NaN, an empty text or "nan". For single classes -1 is missing too, as in published test
    sets, unless a class is named "-1". Whole numbers without names become names ("0", "1", ...), sorted by value; 1.0
    is 1, as number and as text. Lists may be written as text; `split_labels` finds separators of several classes.

    If several classes have the same name, labels that are class numbers select one; the name alone is an error.

    Args:
        column: The labels.
        problem_type: One of `PROBLEM_TYPES`.
        place: Returns the name of a row for messages.
        classes: Names and order of the classes; None uses the column's own list, or else its sorted names.
        numbers_fit: Use whole numbers without names as positions in `classes` if none of these is a number.
        separator: Separator of several classes in a text; empty detects it.

    Raises:
        ValueError: The values do not fit the problem type, or name a class that `classes` lacks or has twice.
    """
    check_problem_type(problem_type)
    if problem_type == REGRESSION:
        return _encode_numbers(column, place, classes)
    shown_classes = classes if classes is not None else column.class_names
    column, classes = replace(column, class_names=_told_apart(column.class_names)), _told_apart(classes)
    known_names = classes if classes is not None else column.class_names
    if problem_type == SINGLE_LABEL:
        column, minus_one = _prepare_single(column, known_names)
        named: list[Any] = [_one_name(value, column, row, place, minus_one) for row, value in enumerate(column.values)]
    else:
        column = _prepare_several(column, known_names, separator)
        named = [_several_names(value, column, row, place) for row, value in enumerate(column.values)]
    missing = np.array([names is None for names in named], dtype=bool)
    found = _sorted_names({name for names in named if names for name in names})
    known = list(classes) if classes is not None else list(column.class_names or found)
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
    notes = column.notes
    if problem_type == MULTI_LABEL and classes is None and len(labels) > 1 and labels.sum(1).max() <= 1:
        notes = (*notes, _never_two(column))
    shown = known if shown_classes is None else list(shown_classes)
    return EncodedLabels(classes=shown, labels=labels, missing=missing, notes=notes)


def _never_two(column: LabelColumn) -> str:
    example = next((value for value in column.values if not is_missing(value) and value), "")
    example = example[0] if isinstance(example, list) and len(example) == 1 else example
    shown = "" if column.zeros_and_ones else f" (such as {example!r})"
    return (
        f"No image has two labels in column {column.name!r}{shown}. If some should, say what separates them: "
        "--set data.label_separator=, (or space, none, any text)."
    )


# --- before names are looked up -----------------------------------------------------------------------


def _prepare_single(column: LabelColumn, known: Collection[str] | None) -> tuple[LabelColumn, bool]:
    """Returns a column of single classes in uniform spelling with notes, and True if -1 is a class."""
    _refuse_many_values(column)
    names = set(known or ())
    texts = [value.strip() for value in column.values if isinstance(value, str) and not is_missing(value)]
    values = list(column.values)
    if texts and all(text not in names and listed(text) is not None for text in texts):
        values = [listed(value) if isinstance(value, str) and not is_missing(value) else value for value in values]
    values = [value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value for value in values]
    values = [None if isinstance(value, (list, tuple)) and not value else value for value in values]
    values = _plain(values, names)
    notes = list(column.notes)
    if known is None and (several := likely_several([value for value in values if isinstance(value, str)])):
        notes.append(
            f"Column {column.name!r} holds {several[0]!r}, taken as one class. If an image may have several "
            f"({', '.join(several[1])}): --set data.problem_type={MULTI_LABEL}"
        )
    if none := next((value for value in values if value in _WORDS_FOR_NONE), None) if not names else None:
        notes.append(f"Column {column.name!r} has a class named {none!r}. If it means no label, leave the cell empty.")
    count = sum(value in (-1, "-1") for value in values if not isinstance(value, (list, tuple)))
    as_class = "-1" in names
    if count and not as_class:
        notes.append(
            f"{count} of {len(values)} images have the label -1 in column {column.name!r}, which means no label, as "
            "in published test sets. If it is a class, write a name instead."
        )
    return replace(column, values=values, notes=tuple(notes)), as_class


def _plain(values: Sequence[Any], known: Collection[str]) -> list[Any]:
    """Returns class numbers and truth values in one spelling if a column holds nothing else, else the column."""
    texts = {value.strip() for value in values if isinstance(value, str) and not is_missing(value)} - set(known)
    spelled = {text: text for text in texts}
    if all(text.lower() in ("true", "false") for text in texts):
        spelled = {text: text.capitalize() for text in texts}
    elif all(_NUMBER.fullmatch(text) for text in texts):
        spelled = {text: plain_number(text) for text in texts}

    def one(value: Any) -> Any:
        if isinstance(value, (bool, np.bool_)):
            return _TRUTH[int(value)]
        return spelled.get(value.strip(), value.strip()) if isinstance(value, str) else value

    return [one(value) for value in values]


def _prepare_several(column: LabelColumn, known: Collection[str] | None, separator: str) -> LabelColumn:
    """Returns a column of several classes with lists instead of texts, or with rows of zeros and ones."""
    if column.zeros_and_ones:
        return column
    values, notes = split_labels(column.values, separator=separator, classes=known, column=column.name)
    notes = [*column.notes, *notes]
    lists = all(value is None or isinstance(value, (list, tuple)) for value in values)
    if lists and (zeros_and_ones(values) or _one_of_two(values, column)):
        width = next(len(value) for value in values if value is not None)
        names = column.class_names or tuple(str(i) for i in range(width))
        return replace(column, values=values, class_names=names, zeros_and_ones=True, notes=tuple(notes))
    flat = [each for value in values for each in (value if isinstance(value, (list, tuple)) else [value])]
    plain = iter(_plain(flat, set(known or ())))
    values = [[next(plain) for _ in value] if isinstance(value, (list, tuple)) else next(plain) for value in values]
    return replace(column, values=values, notes=tuple(notes))


def _one_of_two(values: Sequence[Any], column: LabelColumn) -> bool:
    """Returns True if lists of 0 and 1 are rows of zeros and ones: [0, 1] and [1, 0] both occur.

    Raises:
        ValueError: All lists are equal, so both readings are possible.
    """
    lists = [value for value in values if value is not None]
    if not lists or not all(list(value) in ([0, 1], [1, 0]) for value in lists):
        return False
    found = {tuple(value) for value in lists}
    if len(found) == 1:
        raise UserError(
            f"Column {column.name!r} holds {list(found.pop())} in every row: two class numbers, or a zero and a one? "
            "Write the names of the classes."
        )
    return True


def switch_columns(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Returns the columns that hold zeros and ones in any spelling. Each may be a class.

    Args:
        columns: Values by name.
    """
    return [name for name, values in columns.items() if are_switches(values)]


def switch_labels(columns: Mapping[str, Sequence[Any]], origin: str) -> LabelColumn:
    """Joins columns of zeros and ones into one column of labels. Each column is a class.

    -1 means 0 if the columns hold only -1 and 1. A row with an empty cell has no label.

    Args:
        columns: Values by name.
        origin: The table, for messages.

    Raises:
        ValueError: A column holds other values, or the columns hold -1, 0 and 1.
    """
    read: dict[str, list[int | None]] = {}
    for name, values in columns.items():
        if not are_switches(values):
            raise UserError(f"Column {name!r} of {origin} does not hold zeros and ones. Leave it out.")
        read[name] = [None if is_missing(value) else read_switch(value) for value in values]
    seen = {value for values in read.values() for value in values}
    notes = []
    if -1 in seen and 0 in seen:
        name = next(name for name, values in read.items() if -1 in values)
        raise UserError(
            f"Columns of {origin} hold -1, 0 and 1 ({name!r} has -1), so the meaning of -1 is unknown. "
            "Replace it by 0 or 1, or by an empty cell, which leaves the image out."
        )
    if -1 in seen:
        notes.append(f"-1 in the columns {_shown(list(read))} of {origin} is read as 0: the image is not of the class.")
        read = {name: [0 if value == -1 else value for value in values] for name, values in read.items()}
    empty = sum(None in row for row in zip(*read.values(), strict=True))
    if empty:
        notes.append(f"{empty} rows of {origin} have an empty cell among {_shown(list(read))}: they have no label.")
    return LabelColumn(
        name=", ".join(read),
        values=list(zip(*read.values(), strict=True)),
        class_names=tuple(read),
        zeros_and_ones=True,
        notes=tuple(notes),
    )


# --- names of one cell --------------------------------------------------------------------------------


def _are_positions(column: LabelColumn, found: Sequence[str], known: Sequence[str]) -> bool:
    numbers = column.class_names is None and all(map(is_class_number, found))
    return numbers and not any(map(is_class_number, known)) and all(int(name) < len(known) for name in found)


def _told_apart(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns unique names: appends a zero byte and a number to names that several classes have."""
    if names is None:
        return None
    repeated = repeated_names(names)
    return tuple(f"{name}\0{number}" if name in repeated else name for number, name in enumerate(names))


def _refuse_many_values(column: LabelColumn) -> None:
    """Refuses more different names than the limit of classes, before they are processed."""
    seen: set[Any] = set()
    names: set[Any] = set()
    for value in column.values:
        if not isinstance(value, (str, int)) or value in seen:
            continue
        seen.add(value)
        if not is_missing(value):  # some numbers have several spellings
            names.add(plain_number(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value)
        if len(names) > MOST_LABELS:
            raise UserError(f"Column {column.name!r} holds more than {MOST_LABELS} classes. Is it the right column?")


def _refuse_too_many(known: Collection[Any], column: LabelColumn) -> None:
    if len(known) > MOST_LABELS:
        raise UserError(
            f"Column {column.name!r} holds {len(known)} classes, more than {MOST_LABELS}. Is it the right column?"
        )


def _refuse_unknown(found: Sequence[str], known_as: dict[str, int], known: Sequence[str], column: LabelColumn) -> None:
    _refuse_too_many(known, column)
    unknown = [name for name in found if name not in known_as]
    plain = [_plain_name(name) for name in known]
    repeated = repeated_names(plain)
    for name in map(_plain_name, unknown):
        if name in repeated:
            raise UserError(f"Column {column.name!r}: {several_classes(name, repeated[name], plain)}")
    if unknown:
        raise UserError(
            f"Column {column.name!r} has labels that are not among the {len(known)} classes: {_shown(unknown)}. "
            f"Known: {_shown(known)}. Correct the labels, or choose {_OTHER_COLUMN}."
        )


def _plain_name(name: str) -> str:
    return name.partition("\0")[0]  # see `_told_apart`


def _shown(names: Sequence[str]) -> str:
    return some_of([_plain_name(name) for name in names], 5)


def _sorted_names(names: set[str]) -> list[str]:
    if all(map(is_class_number, names)):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _one_name(
    value: Any, column: LabelColumn, row: int, place: Callable[[int], str], minus_one: bool
) -> tuple[str] | None:
    if is_missing(value):
        return None
    if isinstance(value, (list, tuple)):
        raise UserError(
            f"Column {column.name!r} holds several labels for an image ({place(row)}). {_CHOOSE}{MULTI_LABEL}, "
            f"or {_OTHER_COLUMN}."
        )
    if value in (-1, "-1"):
        return ("-1",) if minus_one else None
    return (_name(value, column, row, place),)


def _name(value: Any, column: LabelColumn, row: int, place: Callable[[int], str]) -> str:
    """Returns the class name for a text or number."""
    if isinstance(value, str):
        if column.class_names is None and re.fullmatch(r"-?\d*\.\d+|-\d+", value):
            raise UserError(_not_a_class(value, column, place(row)))
        return value
    if not isinstance(value, (int, float, np.integer)) or value % 1 != 0 or value < 0:
        raise UserError(_not_a_class(value, column, place(row)))
    if column.class_names is None:
        return str(int(value))
    if value >= len(column.class_names):
        raise UserError(
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
    if is_missing(value):
        return None
    if not isinstance(value, (list, tuple)):
        value = [value]
    if not column.zeros_and_ones:
        return [_name(each, column, row, place) for each in value if not is_missing(each)]
    names = column.class_names or ()
    if len(value) != len(names):
        raise UserError(f"{place(row)} has {len(value)} zeros and ones for {len(names)} classes. Correct the labels.")
    if any(is_missing(each) for each in value):
        return None
    return [name for name, each in zip(names, value, strict=True) if each]


def _encode_numbers(column: LabelColumn, place: Callable[[int], str], classes: Sequence[str] | None) -> EncodedLabels:
    if column.class_names is not None:
        raise UserError(
            f"Column {column.name!r} holds classes ({_shown(column.class_names)}), not numbers to learn. "
            f"Choose {_OTHER_COLUMN}."
        )
    if classes is not None and len(classes) != 1:
        raise UserError(f"A regression has one number for each image. Received: {len(classes)} classes.")
    numbers = [_number(value, column, row, place) for row, value in enumerate(column.values)]
    missing = np.array([number is None for number in numbers], dtype=bool)
    labels = np.array([0.0 if number is None else number for number in numbers], dtype=np.float32)
    return EncodedLabels(classes=[column.name] if classes is None else list(classes), labels=labels, missing=missing)


def _number(value: Any, column: LabelColumn, row: int, place: Callable[[int], str]) -> float | None:
    if is_missing(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isnan(number):
        return None
    if abs(number) > float(np.finfo(np.float32).max):
        raise UserError(f"{place(row)} has {value!r} in column {column.name!r}, which is not a finite number.")
    return number

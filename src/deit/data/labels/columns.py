"""Chooses the columns of images and labels: by option, by name, or the only candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deit.core.errors import UserError
from deit.core.printable import some_of
from deit.core.scores.metrics import MULTI_LABEL
from deit.data.labels.label_columns import (
    UNLABELLED,
    LabelColumn,
    column_option,
    ignored_labels,
    switch_columns,
    switch_labels,
)

# Zeros and ones of several labels have a column each.
MOST_COLUMNS = 10_000
IMAGE_NAMES = ("image", "img", "picture", "photo")
PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "img", "image_path")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "classes", "target", "targets")


def choose_column(
    columns: Mapping[str, str],
    candidates: Sequence[str],
    known_names: Sequence[str],
    *,
    option: str,
    origin: str,
    asked: str = "",
) -> str:
    """Chooses a column.

    Args:
        columns: All columns with their types, for messages.
        candidates: Columns with a suitable type or content.
        known_names: Names that decide among several candidates.
        option: Setting that chooses the column: "image_column" or "label_column".
        origin: Name of the table, for messages.
        asked: The user's choice; empty to detect it.

    Returns:
        The user's choice if it exists (the caller checks its content), else the only candidate, or the only one with a
        known name.

    Raises:
        ValueError: The user's column does not exist, or there is no candidate or more than one.
    """
    if asked:
        if asked not in columns:
            raise UserError(f"{origin} has no column {asked!r}. Its columns: {described(columns)}.")
        return asked
    named = [name for name in candidates if name.lower() in known_names]
    for found in (named, candidates):
        if len(found) == 1:
            return found[0]
    what = option.removesuffix("_column")
    if not candidates:
        raise UserError(
            f"{origin} has no column that can be the {what}. Its columns: {described(columns)}. "
            f"Choose one with {column_option(option)}."
        )
    raise UserError(
        f"{origin} has several columns that can be the {what}: {', '.join(named or candidates)}. "
        f"Choose one with {column_option(option, (named or candidates)[0])}."
    )


def choose_labels(
    columns: Mapping[str, Sequence[Any]],
    header: Sequence[str],
    *,
    asked: str,
    problem_type: str,
    origin: str,
    count: int,
) -> LabelColumn:
    """Chooses the labels of a table whose columns have no types: one column, or several of zeros and ones.

    Args:
        columns: Values of all columns that may be labels.
        header: Names of all columns, for messages.
        asked: The user's choice: a column, or several of zeros and ones as "cat,dog"; empty to detect it.
        problem_type: Type of the labels, or `UNLABELLED`.
        origin: Name of the table, for messages.
        count: Number of rows.

    Raises:
        ValueError: See `choose_column`, `switch_labels`.
    """
    if problem_type == UNLABELLED:
        return ignored_labels(count)
    if problem_type == MULTI_LABEL:
        several = choose_switches(columns, asked=asked, origin=origin)
        if several:
            return switch_labels({name: columns[name] for name in several}, origin)
    types = dict.fromkeys(header, "")
    name = choose_column(types, list(columns), LABEL_NAMES, option="label_column", origin=origin, asked=asked)
    return LabelColumn(name=name, values=list(columns[name]))


def choose_switches(columns: Mapping[str, Sequence[Any]], *, asked: str, origin: str) -> list[str]:
    """Returns the chosen columns of zeros and ones, or all of them if no column has the name of labels; or none.

    Raises:
        ValueError: A chosen column does not exist.
    """
    if "," in asked and asked not in columns:
        wanted = [name.strip() for name in asked.split(",")]
        for name in wanted:
            choose_column(
                dict.fromkeys(columns, ""), list(columns), (), option="label_column", origin=origin, asked=name
            )
        return wanted
    if asked or any(name.lower() in LABEL_NAMES for name in columns):
        return []
    return switch_columns(columns)


def not_an_image(origin: str, column: str, kind: str, candidates: Sequence[str]) -> UserError:
    """Returns the error for a chosen column that holds no images."""
    other = f"Columns that hold images: {', '.join(candidates)}." if candidates else "No other column holds any."
    return UserError(
        f"Column {column!r} of {origin} does not hold images but {kind}. {other} "
        f"Choose with {column_option('image_column')}."
    )


def described(columns: Mapping[str, str]) -> str:
    """Returns columns and their types in one line, at most ten."""
    return some_of([f"{name} ({kind})" if kind else name for name, kind in columns.items()])

"""Values of a configuration's fields as JSON and texts give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deit.core.config.field_checks import MOST_LABELS
from deit.core.errors import UserError, WrongTypeError, shown


def with_int_keys(name: str, table: Any) -> dict[int, Any]:
    """Returns a table whose keys are numbers: JSON knows text keys only.

    Args:
        name: Of the field, for messages.
        table: As it was read.

    Raises:
        TypeError: It is no table.
        ValueError: A key is no number, or there are too many.
    """
    if not isinstance(table, Mapping):
        raise WrongTypeError(f"{name} must be a dict. Received: {shown(table)}.")
    if len(table) > MOST_LABELS:
        raise UserError(f"{name} must have at most {MOST_LABELS} entries. Received: {len(table)}.")
    try:
        return {int(key): value for key, value in table.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"The keys of {name} must be numbers. Received: {shown(list(table))}.") from error


def with_int_values(label2id: Mapping[str, Any]) -> dict[str, int]:
    """Returns a table of class numbers by name whose numbers are no texts.

    Raises:
        ValueError: A value is no number.
    """
    try:
        return {name: int(number) for name, number in label2id.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"The values of label2id must be numbers. Received: {dict(label2id)!r}.") from error


def with_lists(value: Any) -> Any:
    """Turns tuples into lists, as JSON does, so that a configuration equals the one that was written."""
    if isinstance(value, Mapping):
        return {key: with_lists(item) for key, item in value.items()}
    return [with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def parse_like(old: Any, name: str, text: str) -> Any:
    """Reads a text as a value of the type of another.

    Args:
        old: The other value.
        name: Of the field, for messages.
        text: What to read.

    Raises:
        TypeError: `old` is neither a number, a truth value nor a text.
        ValueError: The text is no value of its type.
    """
    if isinstance(old, bool):
        truth = {"true": True, "1": True, "yes": True, "y": True, "false": False, "0": False, "no": False, "n": False}
        if text.lower() not in truth:
            raise UserError(f"{name} must be true or false. Received: {shown(text)}.")
        return truth[text.lower()]
    if not isinstance(old, (int, float, str)):
        raise WrongTypeError(f"{name} cannot be given as text: it is {old!r}. Set the attribute instead.")
    try:
        return type(old)(text)
    except ValueError as error:
        raise UserError(f"{name} must be a number like {old!r}. Received: {shown(text)}.") from error

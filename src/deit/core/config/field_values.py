"""Holds defaults of a configuration's fields, and converts values from JSON and from text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deit.core.config.field_checks import MOST_LABELS
from deit.core.errors import UserError, WrongTypeError, shown

# Fields that a file leaves out at these defaults: those of transformers' base configuration which change what a model
# computes or returns, and this package's own.
OPTIONAL_FIELDS: dict[str, Any] = {
    "architectures": None,
    "chunk_size_feed_forward": 0,
    "dtype": None,
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "problem_type": None,
    "pruned_heads": {},
    "return_dict": True,
    "drop_path_rate": 0.0,
    "distillation_kind": "hard",
    "distillation_temperature": 1.0,
    "distillation_weight": 0.5,
    "layer_scale_init": 0.0,
    "pos_embed_prefix": True,
    "head_average": "logits",
    "decoder_init": "normal",
    "token_merging": {},
}


def label_tables(count: Any, id2label: Any = None, label2id: Any = None) -> tuple[dict[int, str], dict[str, int]]:
    """Returns class names by number and class numbers by name.

    Args:
        count: Number of classes; None counts `id2label`, or is 2 without it. Where it differs from `id2label`, the
            names start anew, as in transformers 5.
        id2label: Class names by number; LABEL_0, LABEL_1, ... when None.
        label2id: Class numbers by name; derived from `id2label` when None.

    Raises:
        TypeError: A table is no dict, or a name no text.
        ValueError: A number is none, or out of range.
    """
    names = None if id2label is None else with_int_keys("id2label", id2label)
    numbers = None if label2id is None else with_int_values(label2id)
    if names is None:
        names = _numbered(2 if count is None else count)
    elif count is not None and count != len(names):
        names, numbers = _numbered(count), None
    unusable = next((name for name in names.values() if isinstance(name, (Mapping, list))), None)
    if unusable is not None:
        raise WrongTypeError(f"The values of id2label must be texts. Received: {shown(unusable)}.")
    return names, {name: i for i, name in names.items()} if numbers is None else numbers


def _numbered(count: Any) -> dict[int, str]:
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise UserError(f"num_labels must be an integer of at least 0. Received: {shown(count)}.")
    if count > MOST_LABELS:
        raise UserError(f"num_labels must be at most {MOST_LABELS}. Received: {shown(count)}.")
    return {i: f"LABEL_{i}" for i in range(count)}


def with_overrides(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields with overrides; drops class names that no longer fit."""
    values = {**fields, **overrides}
    if "num_labels" in overrides and "id2label" not in overrides:
        names = fields.get("id2label")
        if names is None or len(names) != overrides["num_labels"]:
            values.pop("id2label", None)
            values.pop("label2id", None)
    if "id2label" in overrides and "label2id" not in overrides:
        values.pop("label2id", None)
    return values


def with_int_keys(name: str, table: Any) -> dict[int, Any]:
    """Returns a table with integer keys. JSON has only text keys.

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


def with_int_values(label2id: Any) -> dict[str, int]:
    """Returns a table of class numbers by name with integer values.

    Raises:
        TypeError: It is no table.
        ValueError: A value is no number.
    """
    if not isinstance(label2id, Mapping):
        raise WrongTypeError(f"label2id must be a dict. Received: {shown(label2id)}.")
    try:
        return {name: int(number) for name, number in label2id.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"The values of label2id must be numbers. Received: {dict(label2id)!r}.") from error


def with_lists(value: Any) -> Any:
    """Converts tuples to lists, as JSON does, so that a configuration equals its saved copy."""
    if isinstance(value, Mapping):
        return {key: with_lists(item) for key, item in value.items()}
    return [with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def parse_like(old: Any, name: str, text: str) -> Any:
    """Converts a text to the type of another value.

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


def parse_assignments(fields: Mapping[str, Any], text: str, owner: str) -> dict[str, Any]:
    """Reads a text such as "hidden_size=96,qkv_bias=false". Each value gets the type of the current one.

    Args:
        fields: Present values by name.
        text: Assignments, separated by commas.
        owner: Name of the class, for messages.

    Raises:
        TypeError: A field is neither a number, a truth value nor a text.
        ValueError: There is no such field, or the text is no value of its type.
    """
    values: dict[str, Any] = {}
    for assignment in text.split(","):
        name, equals, value = assignment.partition("=")
        if not equals or name not in fields:
            raise UserError(f"{assignment!r} names no field of {owner}. Write field=value,field=value.")
        values[name] = value if name == "dtype" else parse_like(fields[name], name, value)
    return values

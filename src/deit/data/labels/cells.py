"""Reads cells of label columns: missing values, zeros and ones, lists, several names."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from deit.core.errors import UserError

_TRUTH = {"true": 1, "yes": 1, "y": 1, "t": 1, "false": 0, "no": 0, "n": 0, "f": 0}
# Characters that always separate labels in a cell.
_PLAIN_SEPARATORS = re.compile(r"[|;]")
# Characters that may separate labels or be part of a name; `_certain` decides.
_OPEN_SEPARATORS = (",", "/", "+", "&", "\t", "\n", " ")
_SEPARATOR_WORDS = {"comma": ",", "semicolon": ";", "bar": "|", "space": " ", "tab": "\t", "none": ""}
_LONGEST_LIST = 10_000  # characters of a cell that may be a list
_LONGEST_NUMBER = 1_000  # characters of a number; what is longer is a name. Python converts no more than 4,300 digits
_NOT_A_NUMBER = ("nan", "NaN", "<NA>")  # pandas' texts for empty cells

_ITEM = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"\[\](){}]+"""
# Lists, tuples and sets as Python, NumPy and JSON print them, with commas or spaces between items.
_LIST = re.compile(rf"[\[({{]\s*(?:(?:{_ITEM})(?:\s*,\s*|\s+))*(?:{_ITEM})?\s*[\])}}]", re.DOTALL)


def is_missing(value: Any) -> bool:
    """Returns True for an empty cell: None, NaN, a blank text, or pandas' "nan", "NaN" and "<NA>"."""
    if isinstance(value, str):
        return not value.strip() or value.strip() in _NOT_A_NUMBER
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def read_switch(value: Any) -> int | None:
    """Returns 1, 0 or -1 for a cell with that meaning in any spelling (1.0, True, "yes", "y"), else None."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUTH:
            return _TRUTH[text]
        if not re.fullmatch(r"[+-]?[01](\.0*)?", text):
            return None
        value = float(text)
    if isinstance(value, (bool, int, float, np.number, np.bool_)) and value in (0, 1, -1):
        return int(value)
    return None


def are_switches(values: Sequence[Any]) -> bool:
    """Returns True if a column holds only zeros, ones and empty cells, in any spelling, and not only empty ones."""
    filled = [value for value in values if not is_missing(value)]
    return bool(filled) and all(read_switch(value) is not None for value in filled)


def is_class_number(name: str) -> bool:
    """Returns True for a name that is a whole number, such as "12"."""
    return name.isdecimal() and len(name) <= _LONGEST_NUMBER


def plain_number(text: str) -> str:
    """Returns a class number without ".0": "1" for the "1.0" of pandas. Returns other texts unchanged."""
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0*", text) else text


def listed(text: str) -> list[Any] | None:
    """Parses a list written as text: "['a', 'b']", '["a"]', "[1 2]", "('a',)"; None for other texts."""
    text = text.strip()
    if len(text) > _LONGEST_LIST or not _LIST.fullmatch(text):
        return None
    if text[0] + text[-1] not in ("[]", "()", "{}") or (text[0] == "{" and ":" in text):
        return None
    inside = text[1:-1]
    words = inside.split()
    if not re.search("['\",]", inside) and len(words) > 1 and not all(map(_is_number, words)):
        return None  # words in brackets can be one name
    return [_item(word) for word in re.findall(_ITEM, inside, re.DOTALL)]


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d*)?", word) is not None


def _item(word: str) -> Any:
    if word[0] == '"':
        try:
            return str(json.loads(word))
        except ValueError:
            return word[1:-1]
    if word[0] == "'":
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    if word in ("None", "null"):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if _is_number(word) and len(word) <= _LONGEST_NUMBER:
        return float(word) if "." in word else int(word)
    return word


def zeros_and_ones(values: Sequence[Any]) -> bool:
    """Returns True if lists of numbers are rows of zeros and ones, not lists of class numbers.

    They are if all have the same length and hold only 0 and 1, and at least one cannot be class numbers because it
    repeats a number or holds fractions or truth values.
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


# --- several labels in one text -----------------------------------------------------------------------


def read_separator(setting: str) -> str | None:
    """Returns the separator of labels in a text.

    Args:
        setting: The setting data.label_separator: the separator itself, or the word comma, semicolon, bar, space or
            tab; "none" if each text is one class; empty to detect it.

    Returns:
        The separator; empty for none; None to detect it.
    """
    return None if setting == "" else _SEPARATOR_WORDS.get(setting.strip().lower(), setting)


def split_labels(
    values: Sequence[Any], *, separator: str = "", classes: Collection[str] | None = None, column: str
) -> tuple[list[Any], list[str]]:
    """Splits the texts of a column of several labels. Leaves other values unchanged.

    Parses lists written as text. `|` and `;` always separate. Commas separate if all names of some text also occur
    elsewhere; spaces and / + & if each of the names also occurs alone in a cell. Splits the name of a known class only
    by a separator that the user chose.

    Args:
        values: The cells.
        separator: The user's choice, see `read_separator`.
        classes: Known classes; a text is then split if all its parts are known.
        column: Name of the column, for messages.

    Returns:
        The cells, with lists instead of texts; and notes for the user.

    Raises:
        ValueError: A separator is likely but not certain.
    """
    texts = sorted({value.strip() for value in values if isinstance(value, str) and not is_missing(value)})
    chosen = read_separator(separator)
    known = set(classes or ())
    if not texts:
        return list(values), []
    if chosen is None and all(text not in known and listed(text) is not None for text in texts):
        return [listed(value) if isinstance(value, str) and not is_missing(value) else value for value in values], []
    notes: list[str] = []
    pattern = re.compile(re.escape(chosen)) if chosen else None
    if chosen is None:
        pattern, notes = _found_separator([text for text in texts if text not in known], classes, column)

    def cell(value: Any) -> Any:
        if not isinstance(value, str) or is_missing(value):
            return value
        whole = pattern is None or (chosen is None and value.strip() in known)
        return [value.strip()] if whole else _pieces(value, pattern) or None

    return [cell(value) for value in values], notes


def _pieces(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    parts = pattern.split(text) if pattern is not None else [text]
    return [part for part in (part.strip() for part in parts) if part]


def _found_separator(
    texts: Sequence[str], classes: Collection[str] | None, column: str
) -> tuple[re.Pattern[str] | None, list[str]]:
    if any(_PLAIN_SEPARATORS.search(text) for text in texts):
        return _PLAIN_SEPARATORS, []
    for separator in _OPEN_SEPARATORS:
        pattern = re.compile(re.escape(separator))
        several = {text: parts for text in texts if len(parts := _pieces(text, pattern)) > 1}
        if not several:
            continue
        example = next(iter(several))
        if classes is not None:
            if all(part in classes for parts in several.values() for part in parts):
                return pattern, []
            continue
        certain = _certain(separator, several, texts)
        if certain:
            return pattern, [
                f"Labels of column {column!r} are separated at {separator!r}, as in {example!r}. If that is one name: "
                "--set data.label_separator=none"
            ]
        if certain is None:
            raise UserError(
                f"Column {column!r} holds {example!r}, which may be one name or several, separated by {separator!r}. "
                f"Choose with --set data.label_separator={_shown(separator)} or --set data.label_separator=none"
            )
    return None, []


def _shown(separator: str) -> str:
    return next((word for word, its in _SEPARATOR_WORDS.items() if its == separator), separator)


def _certain(separator: str, several: dict[str, list[str]], texts: Sequence[str]) -> bool | None:
    """Returns True if texts are several names, False if not, None if unknown."""
    alone = {text for text in texts if text not in several}
    all_alone = [all(part in alone for part in parts) for parts in several.values()]
    if all(all_alone):
        return True
    if separator != ",":
        return None if any(all_alone) else False
    counts = Counter(part for parts in several.values() for part in set(parts))
    again = [all(part in alone or counts[part] > 1 for part in parts) for parts in several.values()]
    return True if any(again) else None


def likely_several(texts: Sequence[str]) -> tuple[str, list[str]] | None:
    """Returns a text that seems to hold several classes ("rust scab"), and the classes, which occur alone elsewhere."""
    distinct = sorted(set(texts))
    alone = set(distinct)
    for separator in ("|", ";", *_OPEN_SEPARATORS):
        for text in distinct:
            parts = _pieces(text, re.compile(re.escape(separator)))
            enough = all if separator == " " else any  # commas and similar characters are rare in names
            if len(parts) > 1 and (separator in "|;" or enough(part in alone for part in parts)):
                return text, parts
    return None

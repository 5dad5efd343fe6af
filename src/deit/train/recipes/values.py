"""Converts and checks the values of a recipe that come from text or YAML."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from deit.core.config.following_defaults import FOLLOWING, FOLLOWS, FollowingDefault
from deit.core.errors import UserError, shown

SECTIONS = ("augment", "optimizer", "schedule", "distillation", "pseudo_labels", "data", "masking")
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def without_following(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested values of a file without the values that equal a default depending on another setting.

    A saved recipe holds every value. If the user then changes, for example, the kind of distillation in the file, the
    defaults of the new kind apply.
    """
    kept = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for name, (other, numbers) in FOLLOWING.items():
        section, _, last = name.rpartition(".")
        place: Any = kept.get(section, {}) if section else kept
        followed = other.rpartition(".")[2]
        if isinstance(place, dict) and last in place and place[last] == numbers.get(str(place.get(followed))):
            del place[last]
    return kept


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values under dotted names."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        dotted.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return dotted


def plain(value: Any) -> Any:
    """Returns nested values in the types that YAML supports."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, FollowingDefault):
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def unknown_setting(name: Any, known: Sequence[str], prefix: str = "") -> UserError:
    """Returns the error for an unknown setting, with suggestions.

    Args:
        name: The unknown name.
        known: The known names.
        prefix: Section of the names, with its dot.
    """
    last = str(name).rpartition(".")[2]
    near = [each for each in known if each.rpartition(".")[2] == last] or difflib.get_close_matches(
        str(name), known, n=1
    )
    hint = f" Did you mean {' or '.join(repr(prefix + each) for each in near)}?" if near else ""
    if not near and prefix:
        hint = f" Known: {', '.join(known)}."
    where = "" if hint else " `deit recipes NAME --yaml` prints all of them."
    return UserError(f"Unknown setting {prefix}{shown(name)}.{hint}{where}")


def build(cls: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    """Builds a section or a whole recipe from nested values.

    Raises:
        ValueError: A name is unknown, or a value cannot be used.
    """
    types = get_type_hints(cls)
    unknown = set(values) - set(types)
    if unknown:
        raise unknown_setting(min(unknown, key=str), list(types), prefix)
    built = {}
    for key, value in values.items():
        kind: Any = types[key]
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                raise UserError(f"{prefix}{key} must hold settings. Received: {shown(value)}.")
            built[key] = build(kind, value, f"{prefix}{key}.")
        else:
            default = next(f.default for f in dataclasses.fields(cls) if f.name == key)
            built[key] = convert(prefix + key, value, default)
    return cls(**built)


def convert(name: str, value: Any, default: Any) -> Any:
    """Converts text, and numbers and lists from YAML, to the type of the default; `FOLLOWS` means a number."""
    if isinstance(value, FollowingDefault):
        return value
    try:
        if default is FOLLOWS:
            return None if value is None else _number(value)
        if default == ():  # any number of texts
            parts = value.strip("[]() ").split(",") if isinstance(value, str) else list(value)
            return tuple(str(part).strip() for part in parts if str(part).strip())
        if isinstance(default, tuple):
            parts = value.strip("[]() ").split(",") if isinstance(value, str) else list(value)
            if len(parts) != len(default):
                raise UserError
            return tuple(float(part) for part in parts)
        if isinstance(default, bool):
            return _truth(value)
        if isinstance(value, bool):  # YAML reads a bare `no` as False; it is neither a number nor a name
            raise UserError
        if isinstance(default, int) and float(value) != int(float(value)):
            raise UserError
        return type(default)(float(value)) if isinstance(default, (int, float)) else str(value)
    except (TypeError, ValueError, OverflowError):
        like = "a number" if default is FOLLOWS else f"like {default!r}"
        raise UserError(f"{name} must be {like}. Received: {shown(value)}.") from None


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise UserError
    return float(value)


def _truth(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUTH:
        raise UserError
    return _TRUTH[text]


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises a ValueError unless a value is known."""
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} must be one of {known}. Received: {shown(value)}.{hint}")


def require(condition: bool, message: str, received: Any) -> None:
    """Raises a ValueError unless a condition holds."""
    if not condition:
        raise UserError(f"{message}. Received: {received}.")

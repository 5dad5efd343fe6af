"""Takes values out of tables of JSON files, which may be damaged or hostile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit.core.config.field_checks import is_finite
from deit.core.errors import DamagedFileError


class FileFields:
    """Takes values out of tables of unknown content.

    Args:
        path: The file.
        advice: What to do about a damaged one, without the point.

    Raises:
        DamagedFileError: In every method: the value is missing or another one. Names the file and the field.
    """

    def __init__(self, path: Path, *, advice: str) -> None:
        self._path = path
        self._advice = advice

    def require(self, is_so: bool, name: str, needed: str) -> None:
        """Raises an error unless a condition holds; `needed` says in words what the field must be."""
        if not is_so:
            raise DamagedFileError(f"{self._path} is damaged: its {name} must be {needed}. {self._advice}.")

    def number(self, values: Mapping[str, Any], name: str, low: float, high: float) -> float:
        """Returns a number between two others, ends included."""
        value = values.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        self.require(is_number and low <= value <= high, name, f"a number from {low:g} to {high:g}")  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]

    def whole(self, values: Mapping[str, Any], name: str, low: int, high: int) -> int:
        """Returns a whole number between two others, ends included."""
        value = values.get(name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        self.require(is_whole and low <= value <= high, name, f"a whole number from {low} to {high}")  # type: ignore[operator]
        return int(value)  # type: ignore[arg-type]

    def any_number(self, values: Mapping[str, Any], name: str) -> Any:
        """Returns a number as it is: infinite and NaN too, as Python writes them."""
        self.require(type(values.get(name)) in (int, float), name, "a number")
        return values[name]

    def any_numbers(self, values: Mapping[str, Any], name: str, most: int) -> list[Any]:
        """Returns a list of at most so many numbers; see `any_number`."""
        value = values.get(name)
        ok = isinstance(value, list) and len(value) <= most and all(type(each) in (int, float) for each in value)
        self.require(ok, name, f"a list of at most {most} numbers")
        return list(value or ())

    def text(self, values: Mapping[str, Any], name: str, known: Any = None) -> str:
        """Returns a text; one of `known`, where that is given."""
        value = values.get(name)
        self.require(isinstance(value, str) and (known is None or value in known), name, "a known text")
        return str(value)

    def table(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Returns a table."""
        value = values.get(name)
        self.require(isinstance(value, dict), name, "a table")
        return dict(value)  # type: ignore[arg-type]

    def listed(self, values: Mapping[str, Any], name: str, kind: type, most: int) -> list[Any]:
        """Returns a list of at most so many values of one type; floats are finite, and may be written as integers."""
        value = values.get(name) if isinstance(values, dict) else None
        kinds = (int, float) if kind is float else (kind,)
        ok = isinstance(value, list) and len(value) <= most and all(type(each) in kinds for each in value)
        ok = ok and (kind is not float or all(is_finite(each) for each in value or ()))
        self.require(ok, name, f"a list of at most {most} values of the type {kind.__name__}")
        return list(value or ())

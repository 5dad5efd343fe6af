"""Reads the labels of samples in tar shards: from a .cls, a .txt or a key of a .json."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from deit.core.errors import UserError
from deit.core.scores.metrics import MULTI_LABEL
from deit.data.labels.columns import LABEL_NAMES, choose_switches
from deit.data.labels.label_columns import UNLABELLED, LabelColumn, column_option, ignored_labels, switch_labels
from deit.data.labels.split_names import divide_rows, split_columns

logger = logging.getLogger(__name__)

LABEL_ENDINGS = ("cls", "json", "txt")  # in this order, because a .txt beside others is usually a caption


class Labelled:
    """The files of samples other than images.

    Args:
        contents: Content of the files of each sample, by ending.
        origin: Name of the shards, for messages.
        names: Names of the samples, for messages.
    """

    def __init__(self, contents: Sequence[Mapping[str, bytes]], origin: str, names: Sequence[str]) -> None:
        self._contents = contents
        self._origin = origin
        self._names = names

    def split(self, asked: str) -> list[str]:
        """Returns the split of each sample if a key of the .json gives it, else an empty list.

        Args:
            asked: Key of the labels, which is not used for splits.
        """
        names = [key for key in split_columns(self._keys) if key != asked]
        columns = {name: self._values(name) for name in names}
        split, _, notes = divide_rows(columns, origin=self._origin, place=lambda row: self._names[row])
        for note in notes:
            logger.warning("%s", note)
        return split

    def labels(self, asked: str, problem_type: str) -> LabelColumn:
        """Chooses and reads the labels; see `deit.data.readers.webdataset.read_shards`.

        Raises:
            ValueError: There are no labels, or a label cannot be read.
        """
        if problem_type == UNLABELLED:
            return ignored_labels(len(self._contents))
        found = {kind for content in self._contents for kind in content}
        if problem_type == MULTI_LABEL and asked not in found and ("," in asked or not found - {"json"}):
            dividing = split_columns(self._keys)
            columns = {key: self._values(key) for key in self._keys if key not in dividing}
            switches = choose_switches(columns, asked=asked, origin=self._origin)
            if switches:
                return switch_labels({key: columns[key] for key in switches}, self._origin)
        kind, key = self._chosen(found, asked)
        if kind == "json":
            return LabelColumn(name=key, values=self._values(key))
        values = [
            None if kind not in content else self._read(row, kind, _text) for row, content in enumerate(self._contents)
        ]
        return LabelColumn(name=kind, values=values)

    def _chosen(self, found: set[str], asked: str) -> tuple[str, str]:
        """Returns the ending of the labels, and the key in a JSON file."""
        keys = self._keys
        known = [key for key in keys if key.lower() in LABEL_NAMES]
        own = "label" if "label" in keys or len(known) != 1 else known[0]
        asked = own if asked == "json" else asked
        if asked in ("cls", "txt") or (not asked and "cls" in found):
            kind, key = asked or "cls", ""
        elif asked or own in keys:
            kind, key = "json", asked or own
        else:
            kind, key = "txt", ""
        if kind not in found or (kind == "json" and key not in keys):
            choices = [each for each in LABEL_ENDINGS if each in found and each != "json"] + keys
            raise UserError(
                f"{self._origin} has no labels{f' named {asked!r}' if asked else ''}. A sample needs a .cls, a .txt or "
                f"a .json with a label. Found: {', '.join(dict.fromkeys(choices)) or 'none'}. Choose one with "
                f"{column_option('label_column')}."
            )
        return kind, key

    @cached_property
    def _keys(self) -> list[str]:
        """Returns the keys of the first JSON file; "label" if it is broken, so that reading it reports the error."""
        first = next((content["json"] for content in self._contents if "json" in content), b"{}")
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            return ["label"]
        return list(value) if isinstance(value, dict) else []

    @cached_property
    def _objects(self) -> list[dict[str, Any] | None]:
        return [
            None if "json" not in content else self._read(row, "json", _object)
            for row, content in enumerate(self._contents)
        ]

    def _values(self, key: str) -> list[Any]:
        return [None if value is None else value.get(key) for value in self._objects]

    def _read(self, row: int, kind: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(self._contents[row][kind].decode("utf-8").strip())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._names[row]}.{kind} cannot be read as a label ({error}). Correct it.") from error


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise UserError("it is not an object with a key for each value")
    return value


def _text(text: str) -> str:
    if "\n" in text:
        raise UserError("it has several lines")
    return text

"""Recognizes names of splits, by one table for folders, files, keys of a data set and columns.

The words are those of the `datasets` package of Hugging Face.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deit.core.errors import UserError
from deit.data.labels.cells import is_missing, read_switch

logger = logging.getLogger(__name__)

SPLIT_NAMES = {  # words for splits, in any case -> name of the split
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
SPLITS = ("train", "val", "test")
# Words that add nothing to the name of a split: "Training Set", "train_images".
_FILLING = (
    "data",
    "dataset",
    "folder",
    "images",
    "image",
    "img",
    "part",
    "photos",
    "pictures",
    "samples",
    "set",
    "split",
)
_SPLIT_COLUMNS = ("split", "splits", "data_split", "dataset_split", "split_name", "train_test_split")
# Columns of these names divide the rows if all of their values name a split.
_PERHAPS_SPLIT_COLUMNS = ("subset", "set", "partition", "part", "phase", "usage", "fold", "dataset", "mode", "group")


def split_of(name: str) -> str:
    """Returns the split of a name such as "Train", "train_images", "val2017" or "Test Set"; "" for other names.

    Args:
        name: Name of a folder or split, or a value of a column.
    """
    words = [word for word in _words(name) if word not in _FILLING]
    return SPLIT_NAMES.get(words[0], "") if len(words) == 1 else ""


def split_within(name: str) -> str:
    """Returns the split that one word of a name denotes: "imagenet-train-0001", "seg_train"; "" for none or several."""
    told = {SPLIT_NAMES[word] for word in _words(name) if word in SPLIT_NAMES}
    return told.pop() if len(told) == 1 else ""


def _words(text: str) -> list[str]:
    """Returns the words of a name in lower case, split at non-letters and capitals: "seg_trainSet"."""
    found = []
    for letters in re.findall(r"[^\W\d_]+", text):
        for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+|[A-Z]", letters):
            word = word.lower()
            found.append(word.removesuffix("set") if word.removesuffix("set") in SPLIT_NAMES else word)
    return found


def name_splits(names: Sequence[str], origin: str) -> dict[str, str]:
    """Finds the names, of folders or of keys, that are splits of a data set.

    Uses names that `split_of` recognizes; without any, names that differ only in the word of the split ("seg_train" and
    "seg_test"). Prefers a plain name to a longer one ("train" to "train_small").

    Args:
        names: Names of all folders or keys.
        origin: Name of the data set, for messages.

    Returns:
        The names by split, in the order train, val, test.

    Raises:
        ValueError: Two names are equally good for one split.
    """
    told = {name: split_of(name) for name in names if split_of(name)} or _alike(names)
    found = {}
    for split in SPLITS:
        members = [name for name, its in told.items() if its == split]
        plain = [name for name in members if name.lower() in SPLIT_NAMES]
        members = plain or members
        if len(members) > 1:
            raise UserError(
                f"{origin} has {members[0]!r} and {members[1]!r}, which are both for {split}. Rename or remove one."
            )
        if members:
            found[split] = members[0]
    return found


def _alike(names: Sequence[str]) -> dict[str, str]:
    told = {name: split_within(name) for name in names if split_within(name)}
    rests = {name: tuple(word for word in _words(name) if word not in SPLIT_NAMES) for name in told}
    alike = {name for name in told if any(rests[name] == rests[other] and told[name] != told[other] for other in told)}
    return {name: split for name, split in told.items() if name in alike}


# --- columns that divide the rows ---------------------------------------------------------------------


def split_columns(names: Sequence[str]) -> list[str]:
    """Returns the columns that may divide the rows, by their names: "split", "subset", "is_valid", ..."""
    return [name for name in names if _is_split(name) or _perhaps_split(name) or _switch_of(name)]


def divide_rows(
    columns: Mapping[str, Sequence[Any]], *, origin: str, place: Callable[[int], str]
) -> tuple[list[str], list[str], list[str]]:
    """Reads the columns that divide the rows of a table.

    `split` and similar columns must name a split in each row; `subset`, `set`, `partition`, ... may hold other values.
    `is_valid`, `is_test`, `is_train`, ... hold zeros and ones in any spelling; a row with none of them true belongs to
    a remaining split, first to training.

    Args:
        columns: The values of `split_columns`, None for missing values.
        origin: Name of the table, for messages.
        place: Returns the name of a row for messages.

    Returns:
        The split of each row, or an empty list if no column divides the rows; the names of the dividing columns; and
        notes for the user.

    Raises:
        ValueError: A value names no split, or two columns divide the rows differently.
    """
    found: dict[str, list[str]] = {}
    notes = []
    for name, values in columns.items():
        if _switch_of(name):
            continue
        splits = ["" if is_missing(value) else split_of(str(value)) for value in values]
        if not any(splits) and not _is_split(name):
            notes.append(f"Column {name!r} of {origin} names no parts ({values[0]!r}, ...) and divides nothing.")
            continue
        if not all(splits):
            row = splits.index("")
            raise UserError(
                f"{place(row)} has the {name.lower()} {values[row]!r}. "
                "Use train, val (or validation) or test in each row."
            )
        found[name] = splits
    switches = {name: values for name, values in columns.items() if _switch_of(name)}
    if switches:
        found[", ".join(switches)] = _switched(switches, place)
    if not found:
        return [], [], notes
    (first, splits), *others = found.items()
    for name, others_splits in others:
        if others_splits != splits:
            raise UserError(f"Columns {first!r} and {name!r} of {origin} divide the rows differently. Remove one.")
    if first.lower() != "split":
        counts = Counter(splits)
        shown = ", ".join(f"{counts[split]} {split}" for split in SPLITS if split in counts)
        notes.append(f"Column {first!r} of {origin} divides the rows: {shown}.")
    return splits, [name for key in found for name in key.split(", ") if name in columns], notes


def _is_split(name: str) -> bool:
    return name.strip().lower().replace(" ", "_").replace("-", "_") in _SPLIT_COLUMNS


def _perhaps_split(name: str) -> bool:
    return name.strip().lower() in _PERHAPS_SPLIT_COLUMNS


def _switch_of(name: str) -> str:
    """Returns the split that a column such as "is_valid" or "isTrainingImage" marks."""
    words = _words(name)
    if len(words) > 1 and words[0] == "is":
        words = [word for word in words[1:] if word not in _FILLING]
        return SPLIT_NAMES.get(words[0], "") if len(words) == 1 else ""
    return SPLIT_NAMES.get(words[0].removeprefix("is"), "") if len(words) == 1 and words[0].startswith("is") else ""


def _switched(columns: Mapping[str, Sequence[Any]], place: Callable[[int], str]) -> list[str]:
    told = {name: _switch_of(name) for name in columns}
    rest = next((split for split in SPLITS if split not in told.values()), "")
    splits = []
    for row in range(len(next(iter(columns.values())))):
        true = set()
        for name, values in columns.items():
            switch = read_switch(values[row])
            if switch is None:
                raise UserError(f"{place(row)} has {values[row]!r} in column {name!r}. Write 0 or 1 in each row.")
            if switch > 0:
                true.add(told[name])
        split = true.pop() if true else rest
        if true or not split:
            raise UserError(f"{place(row)} belongs to no part or to two by {', '.join(columns)}. Correct the row.")
        splits.append(split)
    return splits


def note_splits_in_paths(origin: str, paths: Sequence[str]) -> None:
    """Logs paths in folders of several splits if no column divides the rows.

    Args:
        origin: Name of the table or shard.
        paths: Paths of the images, as stored in it.
    """
    folders = {name.replace("\\", "/").rpartition("/")[0] for name in paths}
    named = {split for folder in folders for step in folder.split("/") if (split := split_of(step))}
    if len(named) > 1:
        logger.warning(
            "The paths in %s are in folders of the parts %s, but no column or key divides them. They are used as "
            "one part. Add a split column to keep the parts.",
            origin,
            ", ".join(sorted(named)),
        )

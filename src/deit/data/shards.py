"""Images in tar shards as WebDataset lays them out."""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deit.core.images import ImageError
from deit.core.metrics import SINGLE_LABEL
from deit.data.columns import choose_column
from deit.data.contents import file_stamp, part_stamp
from deit.data.label_columns import UNLABELLED, LabelColumn, column_option, ignored_labels, zeros_and_ones
from deit.data.sources import Progress, SkippedFile
from deit.data.stores import Part

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json", "txt")  # in this order: a .txt beside others is a caption more often than a label
_BLOCK = tarfile.BLOCKSIZE
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """Returns the names that a pattern stands for, as a shell does: "a-{000..002}.tar", "{train,val}.tar".

    Raises:
        ValueError: Braces do not match, or a range runs backwards.
    """
    opening = pattern.find("{")
    if opening < 0:
        if "}" in pattern:
            raise ValueError(f"The braces of {pattern!r} do not match.")
        return [pattern]
    depth, commas = 0, [opening]
    for end in range(opening, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[end], 0)
        if depth == 0:
            break
        if depth == 1 and pattern[end] == ",":
            commas.append(end)
    else:
        raise ValueError(f"The braces of {pattern!r} do not match.")
    inside = [pattern[a + 1 : b] for a, b in itertools.pairwise([*commas, end])]
    found = _RANGE.fullmatch(inside[0])
    if len(inside) == 1 and found:
        first, last = found.groups()
        if int(last) < int(first):
            raise ValueError(f"The range of {pattern!r} runs backwards.")
        width = len(first) if first.startswith("0") else 0
        middles = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        middles = [name for part in inside for name in expand_braces(part)]
    return [pattern[:opening] + middle + end_ for middle in middles for end_ in expand_braces(pattern[end + 1 :])]


# --- what is in a shard -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)  # slots: there can be millions
class _Member:
    name: str
    offset: int
    size: int


@dataclass(kw_only=True, slots=True)
class _Sample:
    key: str
    shard: int
    images: dict[str, _Member] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


def shard_part(
    name: str,
    paths: Sequence[Path],
    *,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    progress: Progress | None = None,
) -> Part:
    """Opens tar shards that together are one part of a data set.

    Neighbours in a shard whose names are equal up to the first dot are one sample: "7.jpg" and "7.cls". Headers are
    read once; an image is later read by its position, in any order. A shard that ends too early gives the samples
    that it holds whole, and the rest is reported as left out.

    Args:
        name: Of the part.
        paths: The shards, in order.
        image_column: Ending of the images where a sample has several: "jpg", "jpeg", "png" or "webp".
        label_column: "cls" (a number), "txt" (a name), or a key of the "json" ("label" when empty); found in this
            order, "json" before "txt", when empty.
        problem_type: What the labels are for.
        progress: Called with (shards read, shards in all).

    Raises:
        ValueError: A file is not a tar archive, or has no images or labels of these names.
    """
    samples: list[_Sample] = []
    skipped: list[SkippedFile] = []
    for number, path in enumerate(paths):
        found, problem = _read_shard(path, number)
        if problem:
            found = [sample for sample in found if sample is not found[-1] or (sample.images and sample.labels)]
            reason = f"{problem} Its {len(found)} whole samples are used."
            skipped.append(SkippedFile(path=str(path), reason=reason))
        samples += found
        if progress is not None:
            progress(number + 1, len(paths))
    if skipped and not samples:
        raise ValueError(f"{skipped[0].path} gives no samples. {skipped[0].reason}")
    origin = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    kind = _image_kind(samples, origin, image_column)
    members = [_chosen_image(sample, kind) for sample in samples]
    unlabelled = problem_type == UNLABELLED
    labels = ignored_labels(len(samples)) if unlabelled else _labels(samples, paths, origin, label_column)
    store = TarImages(paths, [sample.shard for sample in samples], members, [sample.key for sample in samples])
    return Part(name=name, origin=origin, store=store, labels=labels, skipped=tuple(skipped))


class TarImages:
    """The images of tar archives.

    Args:
        paths: The archives.
        shards: Which of them, for each image.
        members: Where in it; None where a sample has no image.
        keys: Names of the samples, for messages.
    """

    def __init__(
        self, paths: Sequence[Path], shards: Sequence[int], members: Sequence[_Member | None], keys: Sequence[str]
    ) -> None:
        self._paths = list(paths)
        self._stamps = [file_stamp(os.path.abspath(path)) for path in paths]
        self._shards = np.array(shards, dtype=np.int32)
        self._offsets = np.array([0 if m is None else m.offset for m in members], dtype=np.int64)
        self._sizes = np.array([-1 if m is None else m.size for m in members], dtype=np.int64)
        self._names = [key if member is None else member.name for key, member in zip(keys, members, strict=True)]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int) -> bytes:
        """Returns the content of an image file."""
        size = int(self._sizes[row])
        if size < 0:
            raise ImageError(f"it has no image (one of {', '.join(IMAGE_ENDINGS)}).")
        with self._paths[self._shards[row]].open("rb", buffering=0) as file:
            file.seek(int(self._offsets[row]))
            data = file.read(size)
        if len(data) != size:
            raise ImageError(f"the shard ends inside of it, after {len(data)} of {size} bytes.")
        return data

    def stamp(self, row: int) -> bytes | None:
        """Stands for the member of the shard as that was when it was opened."""
        return part_stamp(self._stamps[self._shards[row]], f"{self._offsets[row]} {self._sizes[row]}")

    def cache_place(self) -> str:
        """Returns the paths of the shards."""
        return "\0".join(os.path.abspath(path) for path in self._paths)

    def place(self, row: int) -> str:
        """Names shard and member."""
        return f"{self._paths[self._shards[row]]}: {self._names[row]}"


def _read_shard(path: Path, number: int) -> tuple[list[_Sample], str]:
    """Returns the samples of a shard, and what is wrong with it, or an empty string."""
    samples: list[_Sample] = []
    size = path.stat().st_size
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115  # closed by the `with` below
    except tarfile.ReadError as error:
        hint = " Unpack it first: a compressed shard cannot be read in any order." if _is_compressed(path) else ""
        return [], f"It is not a tar archive ({error}).{hint}"
    with archive:
        try:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps all that it has seen
                if member.isreg() and member.sparse is None:
                    if member.offset_data + member.size > size:
                        return samples, f"It is truncated in {member.name!r}."
                    _add(samples, archive, member, number)
        except (tarfile.TarError, EOFError, ValueError) as error:
            return samples, f"It is truncated or damaged after byte {archive.offset} ({error})."
        with path.open("rb") as file:
            file.seek(archive.offset)
            tail = file.read(2 * _BLOCK)
    if len(tail) < _BLOCK or tail.strip(b"\0"):
        return samples, f"It is truncated or damaged after byte {archive.offset}: the end mark is missing."
    return samples, ""


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _add(samples: list[_Sample], archive: tarfile.TarFile, member: tarfile.TarInfo, shard: int) -> None:
    folder, slash, name = member.name.rpartition("/")
    stem, dot, ending = name.partition(".")
    ending = ending.lower()
    if not stem or not dot or ending not in (*IMAGE_ENDINGS, *_LABELS):
        return
    key = folder + slash + stem
    last = samples[-1] if samples else None
    if last is None or last.key != key or ending in last.images or ending in last.labels:
        samples.append(_Sample(key=key, shard=shard))
    sample = samples[-1]
    if ending in _LABELS:
        content = archive.extractfile(member)
        assert content is not None  # it is a regular file
        sample.labels[ending] = content.read()
    else:
        sample.images[ending] = _Member(name=member.name, offset=member.offset_data, size=member.size)


def _image_kind(samples: Sequence[_Sample], origin: str, asked: str) -> str:
    """Returns the ending to take where a sample has images of several; empty where none has."""
    found = sorted({ending for sample in samples for ending in sample.images})
    if asked or any(len(sample.images) > 1 for sample in samples):
        endings = dict.fromkeys(found, "")
        return choose_column(endings, found, (), option="image_column", origin=origin, asked=asked)
    if not found:
        raise ValueError(
            f"{origin} has no images. A sample needs one of: {', '.join('.' + kind for kind in IMAGE_ENDINGS)}."
        )
    return ""


def _chosen_image(sample: _Sample, kind: str) -> _Member | None:
    return sample.images.get(kind) if kind else next(iter(sample.images.values()), None)


# --- labels -------------------------------------------------------------------------------------------


def _labels(samples: Sequence[_Sample], paths: Sequence[Path], origin: str, asked: str) -> LabelColumn:
    kind, key = _label_kind(samples, origin, asked)
    values: list[Any] = []
    for sample in samples:
        content = sample.labels.get(kind)
        if content is None:
            values.append(None)
            continue
        try:
            text = content.decode("utf-8").strip()
            values.append(_from_json(text, key) if kind == "json" else _from_text(text))
        except ValueError as error:
            place = f"{paths[sample.shard]}: {sample.key}.{kind}"
            raise ValueError(f"{place} cannot be read as a label ({error}). Correct it.") from error
    rows = [value for value in values if value is not None]
    if rows and all(isinstance(value, list) for value in rows) and zeros_and_ones(values):
        names = tuple(str(i) for i in range(len(rows[0])))
        return LabelColumn(name=key or kind, values=values, class_names=names, zeros_and_ones=True)
    return LabelColumn(name=key or kind, values=values)


def _label_kind(samples: Sequence[_Sample], origin: str, asked: str) -> tuple[str, str]:
    """Returns the ending of the labels, and the key in a JSON file."""
    found = {kind for sample in samples for kind in sample.labels}
    first = next((sample.labels["json"] for sample in samples if "json" in sample.labels), b"")
    keys = _keys(first)
    choices = dict.fromkeys([kind for kind in _LABELS if kind in found and kind != "json"] + keys, "")
    if asked == "json":
        asked = "label"
    if asked in ("cls", "txt") or (not asked and "cls" in found):
        kind, key = asked or "cls", ""
    elif asked or "label" in keys:
        kind, key = "json", asked or "label"
    else:
        kind, key = "txt", ""
    if kind not in found or (kind == "json" and key not in keys):
        raise ValueError(
            f"{origin} has no labels{f' named {asked!r}' if asked else ''}. A sample needs a .cls, a .txt or a .json "
            f"with a label. Found: {', '.join(choices) or 'none'}. Choose one with "
            f"{column_option('label_column')}."
        )
    return kind, key


def _keys(content: bytes) -> list[str]:
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        return ["label"]  # the error that names the sample comes when its label is read
    return list(value) if isinstance(value, dict) else []


def _from_json(text: str, key: str) -> Any:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not an object with a key for each value")
    return value.get(key)


def _from_text(text: str) -> str:
    if "\n" in text:
        raise ValueError("it has several lines")
    return text

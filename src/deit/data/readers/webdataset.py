"""Reads images in tar shards as WebDataset lays them out."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.reading import IMAGE_SUFFIXES, ImageError
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.labels.columns import choose_column
from deit.data.labels.split_names import note_splits_in_paths
from deit.data.readers.image_stores import Rows, divided
from deit.data.readers.reader import Place, ReadOptions, Splits
from deit.data.readers.split_files import files_at, split_files
from deit.data.readers.webdataset_labels import LABEL_ENDINGS, Labelled
from deit.data.sources import Progress, SkippedFile
from deit.data.storage.contents import part_stamp
from deit.data.storage.image_search import HIDDEN, NOT_IMAGES, OTHER_FORMATS, is_hidden
from deit.data.streams.saved_index import once
from deit.data.streams.shard_files import PART_BYTES, LocalFile, ShardFile, StreamedFile, each_of, shard_files

IMAGE_ENDINGS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_BLOCK = tarfile.BLOCKSIZE
# Long names have hundreds of bytes, labels with captions thousands.
MOST_TAR_READ_BYTES = 2**20
# A sample has an image and a few labels or other files. Headers compress a thousandfold, and each takes time.
MOST_MEMBERS_IN_A_ROW = 20_000
DAMAGED = "damaged shards"  # kind of a `SkippedFile`
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_braces(pattern: str) -> list[str]:
    """Expands the braces of a pattern as a shell does: "a-{000..002}.tar", "{train,val}.tar".

    Raises:
        UserError: Braces do not match, or a range runs backwards.
    """
    if "{" not in pattern and "}" not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    if any(int(last) < int(first) for first, last in _RANGE.findall(pattern)):
        raise UserError(f"The range of {pattern!r} runs backwards.")
    try:
        names = list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise UserError(f"The braces of {pattern!r} do not match.") from error
    return names


class Shards:
    """Reads WebDataset shards, on the disk or elsewhere."""

    def takes(self, place: Place) -> bool:
        """Returns True for tar files."""
        return bool(files_at(place, [".tar"], fetched=True))

    def splits(self, place: Place, options: ReadOptions) -> Splits:
        """Finds the splits by the names of the shards, or by a key of the samples."""
        return split_files(files_at(place, [".tar"], fetched=True), _open_files, options)


def _open_files(name: str, files: Sequence[str], options: ReadOptions) -> dict[str, Rows]:
    shards = shard_files(files, options.progress)
    return divided(read_shards(name, shards, **options.columns(), progress=options.progress))


# --- members of a shard ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)  # slots: there can be millions
class Member:
    """An image in a tar archive: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass(kw_only=True, slots=True)
class _Sample:
    key: str
    shard: int = 0
    images: dict[str, Member] = field(default_factory=dict)  # by ending, the text after the first dot
    labels: dict[str, bytes] = field(default_factory=dict)


def read_shards(
    name: str,
    shards: Sequence[Path | ShardFile],
    *,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    progress: Progress | None = None,
) -> Rows:
    """Opens tar shards that together are one split of a data set.

    Consecutive members with equal names up to the first dot are one sample: "7.jpg" and "7.cls". If all images and
    labels of a sample have longer endings ("0.25.jpg", "0.25.cls"), the dots belong to the names, and each name is a
    sample. A key `split` of the .json, or another that `deit.data.labels.split_names` knows, divides the samples. Reads
    headers once, and images later by position, in any order. Uses the complete samples of a truncated shard and reports
    the rest as left out.

    Args:
        name: Name of the split.
        shards: The shards, in order.
        image_column: Ending of the images if a sample has several: "jpg", "png", ..., or "depth.png".
        label_column: "cls" (a number), "txt" (a name), a key of the "json", or several keys of zeros and ones as
            "cat,dog". Empty tries "cls", a "json" key such as "label", and "txt".
        problem_type: Type of the labels.
        progress: Called with (shards read, shards in all).

    Raises:
        ValueError: A file is not a tar archive, or has no images or labels of these names.
    """
    samples: list[_Sample] = []
    skipped: list[SkippedFile] = []
    ignored: Counter[str] = Counter()
    files = [LocalFile(shard) if isinstance(shard, Path) else shard for shard in shards]
    for number, found in enumerate(each_of(_read_once, files, progress)):
        samples += _samples(found, number, files[number], skipped, ignored, image_column)
    if skipped and not any(sample.images for sample in samples):
        raise UserError(f"{skipped[0].path} gives no samples. {skipped[0].reason}")
    origin = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    kind = _image_kind(samples, origin, image_column)
    members = [_chosen_image(sample, kind) for sample in samples]
    store = TarImages(files, [sample.shard for sample in samples], members, [sample.key for sample in samples])
    names = [f"{files[sample.shard]}: {sample.key}" for sample in samples]
    labelled = Labelled([sample.labels for sample in samples], origin, names)
    split = labelled.split(label_column)
    if not split:
        note_splits_in_paths(origin, [sample.key for sample in samples])
    labels = labelled.labels(label_column, problem_type)
    return Rows(
        name=name, origin=origin, store=store, labels=labels, skipped=tuple(skipped), ignored=ignored, split=split
    )


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What is in a shard: its samples, a description of its damage ("" if none), and what is not used."""

    samples: list[_Sample]
    problem: str
    skipped: list[SkippedFile]
    ignored: Counter[str]


def _samples(
    found: _Contents,
    number: int,
    shard: ShardFile,
    skipped: list[SkippedFile],
    ignored: Counter[str],
    image_column: str,
) -> list[_Sample]:
    """Returns the complete samples of a shard; adds what is left out to `skipped` and `ignored`."""
    samples = found.samples
    skipped += found.skipped
    ignored.update(found.ignored)
    if found.problem:
        samples = [sample for sample in samples if sample is not samples[-1] or (sample.images and sample.labels)]
        reason = f"{found.problem} Its {len(samples)} complete samples are used."
        skipped.append(SkippedFile(path=str(shard), reason=reason, kind=DAMAGED))
    return [each for sample in samples for each in _separated(sample, number, image_column)]


def images_of_shard(
    path: Path, skipped: list[SkippedFile], ignored: Counter[str], image_column: str = ""
) -> list[tuple[str, Member | None]]:
    """Returns key and image of each sample of a shard, in their order; None for a sample without an image.

    Args:
        path: The shard.
        skipped: Gets what is left out, such as the rest of a truncated shard.
        ignored: Counts what is not meant to be used.
        image_column: See `read_shards`.

    Raises:
        UserError: Samples have several images, and `image_column` does not choose one.
    """
    shard = LocalFile(path)
    samples = _samples(_read_shard(shard), 0, shard, skipped, ignored, image_column)
    kind = _image_kind(samples, str(path), image_column) if any(sample.images for sample in samples) else ""
    return [(sample.key, _chosen_image(sample, kind)) for sample in samples]


class TarImages:
    """The images of tar archives.

    Args:
        files: The archives.
        shards: Number of the archive of each image.
        members: Position in the archive; None if a sample has no image.
        keys: Names of the samples, for messages.
    """

    def __init__(
        self, files: Sequence[ShardFile], shards: Sequence[int], members: Sequence[Member | None], keys: Sequence[str]
    ) -> None:
        self.files = list(files)
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
            raise ImageError(f"it has no image ({', '.join(IMAGE_ENDINGS[:4])}, ...).")
        data = self.files[self._shards[row]].read(int(self._offsets[row]), size)
        if len(data) != size:
            raise ImageError(f"the shard ends inside of it, after {len(data)} of {size} bytes.")
        return data

    def fetch_ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Begins to fetch the parts of shards elsewhere that hold some images."""
        shards = self._shards[rows]
        for number in np.unique(shards).tolist():
            file, own = self.files[number], rows[shards == number]
            if isinstance(file, StreamedFile):
                file.fetch_ahead(zip(self._offsets[own].tolist(), self._sizes[own].tolist(), strict=True))

    def stamp(self, row: int) -> bytes | None:
        """Returns the stamp of the member when the shard was opened; see `StampedStore`."""
        return part_stamp(self.files[self._shards[row]].stamp(), f"{self._offsets[row]} {self._sizes[row]}")

    def cache_place(self) -> str:
        """Returns the paths or addresses of the shards."""
        return "\0".join(file.key for file in self.files)

    def pieces(self) -> npt.NDArray[np.int64]:
        """Returns the number of the piece of a shard that each image is in; see `ShardStore`."""
        return self._shards.astype(np.int64) * 2**32 + self._offsets // PART_BYTES

    def place(self, row: int) -> str:
        """Returns shard and member."""
        return f"{self.files[self._shards[row]]}: {self._names[row]}"


# --- reading a shard ----------------------------------------------------------------------------------


def _read_once(shard: ShardFile) -> _Contents:
    """Returns what is in a shard; reads one elsewhere once for all processes."""
    if not isinstance(shard, StreamedFile):
        return _read_shard(shard)
    return _from_json(once(shard, "tar1", lambda: _to_json(_read_shard(shard))))


def _to_json(found: _Contents) -> Any:
    samples = [
        [
            sample.key,
            {ending: [member.name, member.offset, member.size] for ending, member in sample.images.items()},
            {ending: content.decode("latin-1") for ending, content in sample.labels.items()},
        ]
        for sample in found.samples
    ]
    skipped = [[each.path, each.reason, each.kind] for each in found.skipped]
    return {"samples": samples, "problem": found.problem, "skipped": skipped, "ignored": found.ignored}


def _from_json(values: Any) -> _Contents:
    return _Contents(
        samples=[
            _Sample(
                key=key,
                images={e: Member(name=name, offset=at, size=size) for e, (name, at, size) in images.items()},
                labels={ending: content.encode("latin-1") for ending, content in labels.items()},
            )
            for key, images, labels in values["samples"]
        ],
        problem=values["problem"],
        skipped=[SkippedFile(path=path, reason=reason, kind=kind) for path, reason, kind in values["skipped"]],
        ignored=Counter(values["ignored"]),
    )


def _read_shard(shard: ShardFile) -> _Contents:
    """Reads the headers and labels of a shard."""
    found = _Contents(samples=[], problem="", skipped=[], ignored=Counter())
    return replace(found, problem=_read_members(shard, found))


def _read_members(shard: ShardFile, found: _Contents) -> str:
    """Adds the members of a shard to its contents. Returns a description of its damage ("" if none)."""
    file = _BoundedFile(shard.open())
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # closed by the `with` below
    except (tarfile.TarError, RecursionError) as error:
        file.close()
        hint = " Unpack it first: a compressed shard cannot be read by position." if _is_compressed(shard) else ""
        return f"It is not a tar archive ({error}).{hint}"
    with file, archive:
        try:
            position, without = -1, 0
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps all members in memory
                if member.size < 0 or archive.offset <= position:  # otherwise the same member would be read forever
                    return f"It is damaged in {member.name!r}."
                position = archive.offset
                without = 0 if _is_image(member) else without + 1
                if without > MOST_MEMBERS_IN_A_ROW:
                    return f"It has more than {MOST_MEMBERS_IN_A_ROW} consecutive members that are not images."
                if member.isreg() and member.sparse is None:
                    if member.offset_data + member.size > shard.size:
                        return f"It is truncated in {member.name!r}."
                    if not _add(found.samples, archive, member):
                        found.ignored[HIDDEN if _is_hidden(member.name) else NOT_IMAGES] += 1
                elif not member.isdir():
                    reason = "it is a link or has no content of its own."
                    found.skipped.append(
                        SkippedFile(path=f"{shard}: {member.name}", reason=reason, kind="links in shards")
                    )
        except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            return f"It is truncated or damaged after byte {archive.offset} ({error})."
        file.seek(archive.offset)
        tail = file.read(2 * _BLOCK)
    if len(tail) < _BLOCK or tail.strip(b"\0"):
        return f"It is truncated or damaged after byte {archive.offset}: the end mark is missing."
    return ""


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.size > 0 and member.name.lower().endswith(IMAGE_SUFFIXES)


class _BoundedFile(io.BufferedReader):
    """A file that limits each read, because `tarfile` reads names of any length that headers claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > MOST_TAR_READ_BYTES:
            raise tarfile.ReadError(f"a name or label of {size} bytes; at most {MOST_TAR_READ_BYTES} are read")
        return super().read(size)


def _is_compressed(shard: ShardFile) -> bool:
    return shard.read(0, 6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _is_hidden(name: str) -> bool:
    return any(is_hidden(part) for part in name.removeprefix("./").split("/"))


def _add(samples: list[_Sample], archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Adds a member to its sample. Returns False if it belongs to no sample."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    last = ending.lower().rpartition(".")[2]
    if not stem or _is_hidden(member.name) or not ending:
        return False
    if last not in (*IMAGE_ENDINGS, *LABEL_ENDINGS) and f".{last}" not in OTHER_FORMATS:
        return bool(samples) and samples[-1].key == folder + slash + stem  # other files of a sample
    key, ending = folder + slash + stem, ending.lower()
    former = samples[-1] if samples else None
    if former is None or former.key != key or ending in former.images or ending in former.labels:
        samples.append(_Sample(key=key))
    sample = samples[-1]
    if last in LABEL_ENDINGS:
        if member.size > MOST_TAR_READ_BYTES:
            raise tarfile.ReadError(f"the label {member.name!r} has {member.size} bytes")
        content = archive.extractfile(member)
        assert content is not None  # it is a regular file
        sample.labels[ending] = content.read()
    elif last in IMAGE_ENDINGS:
        sample.images[ending] = Member(name=member.name, offset=member.offset_data, size=member.size)
    return True


def _separated(sample: _Sample, shard: int, asked: str) -> list[_Sample]:
    """Splits a sample whose name contains dots, because the text after the first dot is not an ending then.

    The samples that it returns have the number of their shard.
    """
    plain = {ending: member for ending, member in sample.images.items() if "." not in ending}
    labels = {ending: content for ending, content in sample.labels.items() if "." not in ending}
    if plain or labels or not (sample.images or sample.labels):
        images = sample.images if "." in asked or not plain else plain
        return [_Sample(key=sample.key, shard=shard, images=images, labels=labels)]
    apart: dict[str, _Sample] = {}

    def piece(ending: str) -> _Sample:
        stem = ending.rpartition(".")[0]
        return apart.setdefault(stem, _Sample(key=f"{sample.key}.{stem}", shard=shard))

    for ending, member in sample.images.items():
        piece(ending).images[ending.rpartition(".")[2]] = member
    for ending, content in sample.labels.items():
        piece(ending).labels[ending.rpartition(".")[2]] = content
    return list(apart.values())


def _image_kind(samples: Sequence[_Sample], origin: str, asked: str) -> str:
    """Returns the ending of images to use if a sample has several; empty if none has."""
    found = sorted({ending for sample in samples for ending in sample.images})
    if asked or any(len(sample.images) > 1 for sample in samples):
        endings = dict.fromkeys(found, "")
        return choose_column(endings, found, (), option="image_column", origin=origin, asked=asked)
    if not found:
        raise UserError(
            f"{origin} has no images. A sample needs one of: {', '.join('.' + kind for kind in IMAGE_ENDINGS)}."
        )
    return ""


def _chosen_image(sample: _Sample, kind: str) -> Member | None:
    return sample.images.get(kind) if kind else next(iter(sample.images.values()), None)

"""Defines stores of image bytes, and the source made of a store and its labels."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import UserError
from deit.core.images.reading import ImageError, ValueRange, load_image
from deit.core.labels import NO_LABEL
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.labels.label_columns import EncodedLabels, LabelColumn, encode_labels
from deit.data.readers.reader import ReadOptions
from deit.data.sources import Labels, Progress, SkippedFile, Source, WithoutLabels, refuse_skipped
from deit.data.storage.contents import Bytes, Contents, examine, refuse_unknown_ranges, unexamined

logger = logging.getLogger(__name__)


class ImageStore(Protocol):
    """The bytes of images by number, quick in any order, from several threads and after fork or pickle."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes:
        """Returns the content of an image file.

        Raises:
            ImageError: There is none; the message begins with what is wrong and leaves the place out.
            OSError: It cannot be read.
        """
        ...

    def place(self, row: int) -> str:
        """Names the row in a message."""
        ...


@runtime_checkable
class StampedStore(ImageStore, Protocol):
    """A store that detects changed images without reading them, so that unchanged ones are not checked again."""

    def stamp(self, row: int) -> bytes | None:
        """Returns 16 bytes that change when the content does, or None; see `deit.data.storage.contents.Bytes`."""
        ...

    def cache_place(self) -> str:
        """Returns what the cache of these images is called by."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Images and labels of one split as they were found; nothing is checked yet.

    Attributes:
        name: "train", "val", "test", ...; empty for a data set that is not divided.
        origin: What a message calls it.
        store: The images.
        labels: One label for each.
        skipped: What could not even be listed, such as the rest of a truncated shard.
        ignored: Counts of what is of no interest, such as hidden members of a shard.
        split: The split of each row, where a column says it; empty elsewhere.
    """

    name: str
    origin: str
    store: ImageStore
    labels: LabelColumn
    skipped: tuple[SkippedFile, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    split: Sequence[str] = ()


class SomeRows:
    """Some rows of another store.

    Args:
        store: The other store.
        rows: (N,) which of its rows.
    """

    def __init__(self, store: ImageStore, rows: npt.NDArray[np.integer]) -> None:
        self._store = store
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int) -> bytes:
        """Returns the content of an image file; see `ImageStore`."""
        return self._store.read(int(self._rows[row]))

    def stamp(self, row: int) -> bytes | None:
        """Returns what the other store says; see `StampedStore`."""
        return self._store.stamp(int(self._rows[row])) if isinstance(self._store, StampedStore) else None

    def cache_place(self) -> str:
        """Returns the other store's place and the choice of rows."""
        if not isinstance(self._store, StampedStore):
            return ""  # nothing is cached
        return f"{self._store.cache_place()}\0{hashlib.sha256(self._rows.tobytes()).hexdigest()}"

    def place(self, row: int) -> str:
        """Names the row as the other store does."""
        return self._store.place(int(self._rows[row]))


def divided(whole: Rows) -> dict[str, Rows]:
    """Divides rows by their column of splits; without one they are one split."""
    if not whole.split:
        return {whole.name: whole}
    splits: dict[str, Rows] = {}
    names = np.array(whole.split)
    for name in dict.fromkeys(whole.split):
        rows = np.flatnonzero(names == name)
        splits[name] = replace(
            whole,
            name=name,
            origin=f"{whole.origin} ({name})",
            store=SomeRows(whole.store, rows),
            labels=replace(whole.labels, values=[whole.labels.values[row] for row in rows.tolist()]),
            skipped=() if splits else whole.skipped,  # reported once, with the first split
            ignored={} if splits else whole.ignored,
            split=(),
        )
    return splits


class StoredImages:
    """Labelled images of a table or an archive.

    Every image is read and decoded once, cheaply, when it is opened: a broken one is found before hours of work. Its
    length and CRC-32 are kept, so that a file that changes or rots later is noticed when the image is used.

    Args:
        listed: Images and labels as they were found.
        problem_type: What the labels are for: one of `PROBLEM_TYPES`.
        classes: Names and order of the classes; those of the labels when None.
        strict: Raise where an image is broken or has no label, in place of leaving it out.
        labels_needed: Raise where an image has no label, as in a validation set.
        keep_unlabelled: Keep single images without a label, as `NO_LABEL`, in place of leaving them out.
        numbers_fit: See `encode_labels`.
        separator: See `encode_labels`.
        value_range: Of gray images with more than 8 bits, see `load_image`.
        check: False looks at no image now: `contents` is None, and a broken image is found when it is used.
        progress: Called with (images checked, images in all).

    Attributes:
        classes: Class names.
        labels: See `Source`.
        problem_type: See `Source`.
        rows: (N,) their places in the split.
        contents: (N,) uint64 hashes of the images' bytes; None without `check`.
        skipped: What was left out.
        ignored: Counts of what is of no interest.

    Raises:
        ValueError: There are no usable images, the labels do not fit, or one of the two conditions above.
    """

    def __init__(
        self,
        listed: Rows,
        *,
        problem_type: str = SINGLE_LABEL,
        classes: Sequence[str] | None = None,
        strict: bool = False,
        labels_needed: bool = False,
        keep_unlabelled: bool = False,
        numbers_fit: bool = False,
        separator: str = "",
        value_range: ValueRange | None = None,
        check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        store, origin = listed.store, listed.origin
        self._store, self._value_range = store, value_range
        if not len(store):
            raise UserError(f"{origin} has no images. Check that it is the right file.")
        encoded = encode_labels(
            listed.labels,
            problem_type,
            place=store.place,
            classes=classes,
            numbers_fit=numbers_fit,
            separator=separator,
        )
        for note in encoded.notes:
            logger.warning("%s", note)
        self.classes, self.problem_type = encoded.classes, problem_type
        unlabelled = np.flatnonzero(encoded.missing)
        if labels_needed and len(unlabelled):
            raise UserError(
                f"Labels missing from {listed.name or origin}: {len(unlabelled)} of {len(store)} images "
                f"have none, the first is {store.place(int(unlabelled[0]))}. Add them, or choose another part."
            )
        if keep_unlabelled:
            if encoded.missing.all():
                raise UserError(f"No image of {origin} has a label. Images without labels are for deit pretrain.")
            encoded.labels[unlabelled] = NO_LABEL
            unlabelled = unlabelled[:0]
        rows = np.setdiff1d(np.arange(len(store)), unlabelled)
        found = _examined(store, rows, progress, value_range) if check else unexamined(len(rows))
        self.ignored = listed.ignored
        self.skipped = [
            *listed.skipped,
            *(_without_label(store.place(int(row))) for row in unlabelled),
            *(SkippedFile(path=store.place(int(rows[i])), reason=reason) for i, reason in found.reasons.items()),
        ]
        refuse_skipped(self.skipped, origin, strict=strict)
        good = np.array([i for i in range(len(rows)) if i not in found.reasons], dtype=np.int64)
        if not len(good):
            raise UserError(
                f"{origin} has no usable image. The first that was left out: "
                f"{self.skipped[0].path}: {self.skipped[0].reason}"
            )
        self.rows, self._checks = rows[good], found.checks[good] if check else None
        self.contents = found.hashes[good] if check else None
        self.labels: Labels = encoded.labels[self.rows]

    @property
    def rows_in_all(self) -> int:
        """How many rows the split has, used or not."""
        return len(self._store)

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB.

        Raises:
            ImageError: Its bytes are no longer those of the opening, or cannot be read; the message names the place.
        """
        row = int(self.rows[index])
        try:
            data = self._store.read(row)
        except (ImageError, OSError) as error:
            raise ImageError(f"{self._store.place(row)}: {error}") from error
        if self._checks is not None and (len(data), zlib.crc32(data)) != tuple(self._checks[index]):
            raise ImageError(
                f"{self._store.place(row)}: it is not what it was when the data was opened. "
                "Restore the file, or start again."
            )
        try:
            return load_image(data, value_range=self._value_range)
        except ImageError as error:
            raise type(error)(f"{self._store.place(row)}: {str(error).removeprefix('the given bytes ')}") from error

    def place(self, index: int) -> str:
        """Names the image as its store does."""
        return self._store.place(int(self.rows[index]))

    def fingerprint(self) -> str:
        """Returns a hash of labels, classes and the length and CRC-32 of each image, wherever they lie.

        Where those are not known, of the places of the images.
        """
        digest = hashlib.sha256(f"{self.problem_type}\0{self.labels.shape}\0".encode())
        if self._checks is not None:
            images = self._checks.tobytes()
        else:
            images = "\0".join(map(self.place, range(len(self.rows)))).encode("utf-8", "surrogateescape")
        digest.update("\0".join(self.classes).encode("utf-8", "surrogateescape") + self.labels.tobytes() + images)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class StoredSplit:
    """A split whose images lie in a store: in tables, archives or lists of files.

    Attributes:
        read: Returns the images and labels as they are found, for some options.
        options: How to read.
    """

    read: Callable[[ReadOptions], Rows]
    options: ReadOptions

    def open(
        self, *, classes: Sequence[str] | None = None, labels_needed: bool = False
    ) -> StoredImages | WithoutLabels:
        """Reads the labels and checks the images; see `Split`."""
        options = self.options
        classes = options.classes if classes is None else classes
        images = StoredImages(
            self.read(options),
            problem_type=options.problem_type if options.labelled else SINGLE_LABEL,
            classes=classes if options.labelled else None,
            strict=options.strict,
            labels_needed=labels_needed,
            keep_unlabelled=options.keep_unlabelled,
            numbers_fit=options.classes is not None,
            value_range=options.value_range,
            separator=options.label_separator,
            check=options.check,
            progress=options.progress,
        )
        return images if options.labelled else WithoutLabels(images)

    def labels_of(self, source: Source, options: ReadOptions) -> EncodedLabels | None:
        """Reads the labels of a source that `open` opened without them; see `Split`."""
        images = source.source if isinstance(source, WithoutLabels) else source
        assert isinstance(images, StoredImages)
        try:
            rows = self.read(options)
            found = encode_labels(
                rows.labels, options.problem_type, place=rows.store.place, separator=options.label_separator
            )
        except UserError:
            if options.label_column:
                raise
            return None
        if len(rows.store) != images.rows_in_all:
            return None
        return EncodedLabels(
            classes=found.classes, labels=found.labels[images.rows], missing=found.missing[images.rows]
        )


def _without_label(place: str) -> SkippedFile:
    return SkippedFile(path=place, reason="it has no label.", kind="without a label")


def _examined(
    store: ImageStore, rows: npt.NDArray[np.integer], progress: Progress | None, value_range: ValueRange | None
) -> Contents:
    def read(i: int) -> bytes:
        return store.read(int(rows[i]))

    images = Bytes(count=len(rows), read=read, value_range=value_range)
    if isinstance(store, StampedStore):
        stamped = store

        def stamp(i: int) -> bytes | None:
            return stamped.stamp(int(rows[i]))

        images = replace(images, stamp=stamp, place=store.cache_place())
    found = examine(images, progress)
    refuse_unknown_ranges(found, lambda i: f"{store.place(int(rows[i]))}:")
    return found

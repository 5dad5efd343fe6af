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
from deit.data.streams.shard_files import ShardFile

logger = logging.getLogger(__name__)


class ImageStore(Protocol):
    """Access to the bytes of images by number, in any order, from several threads, and after fork or pickle."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes:
        """Returns the content of an image file.

        Raises:
            ImageError: There is no image; the message gives the reason without the place.
            OSError: The image cannot be read.
        """
        ...

    def place(self, row: int) -> str:
        """Returns the name of the row for messages."""
        ...


@runtime_checkable
class StampedStore(ImageStore, Protocol):
    """A store that detects changed images without reading them, so that unchanged ones are not checked again."""

    def stamp(self, row: int) -> bytes | None:
        """Returns 16 bytes that change when the content does, or None; see `deit.data.storage.contents.Bytes`."""
        ...

    def cache_place(self) -> str:
        """Returns the key of the cache of these images."""
        ...


@runtime_checkable
class ShardStore(ImageStore, Protocol):
    """A store of images in shards."""

    @property
    def files(self) -> Sequence[ShardFile]:
        """The shards."""
        ...

    def pieces(self) -> npt.NDArray[np.int64]:
        """Returns (N,) numbers; images with equal numbers are near to each other, see `deit.data.shard_order`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Unchecked images and labels of one split.

    Attributes:
        name: "train", "val", "test", ...; empty for undivided data.
        origin: Name of the source, for messages.
        store: The images.
        labels: One label for each image.
        skipped: Entries that could not be listed, such as the rest of a truncated shard.
        ignored: Counts of entries that are not meant to be used, such as hidden members of a shard.
        split: The split of each row if a column gives it, else empty.
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
        rows: (N,) numbers of its rows.
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
        """Returns the stamp of the other store; see `StampedStore`."""
        return self._store.stamp(int(self._rows[row])) if isinstance(self._store, StampedStore) else None

    def cache_place(self) -> str:
        """Returns the other store's place and the choice of rows."""
        if not isinstance(self._store, StampedStore):
            return ""  # no cache
        return f"{self._store.cache_place()}\0{hashlib.sha256(self._rows.tobytes()).hexdigest()}"

    @property
    def files(self) -> Sequence[ShardFile]:
        """The shards of the other store; none if it has none."""
        return self._store.files if isinstance(self._store, ShardStore) else ()

    def fetch_ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Passes it to the other store; see `StoredImages.fetch_ahead`."""
        _fetch_ahead(self._store, self._rows[rows])

    def pieces(self) -> npt.NDArray[np.int64]:
        """Returns the pieces of the rows; see `ShardStore`."""
        assert isinstance(self._store, ShardStore)
        return self._store.pieces()[self._rows]

    def place(self, row: int) -> str:
        """Names the row as the other store does."""
        return self._store.place(int(self._rows[row]))


def divided(whole: Rows) -> dict[str, Rows]:
    """Divides rows by their column of splits. Returns one split if there is no such column."""
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
            skipped=() if splits else whole.skipped,  # reported once, in the first split
            ignored={} if splits else whole.ignored,
            split=(),
        )
    return splits


class StoredImages:
    """Labeled images of a table or an archive.

    Opening decodes every image once, cheaply, to find broken images before training. It keeps length and CRC-32 of each
    image, to detect later changes when the image is used.

    Args:
        listed: Unchecked images and labels.
        problem_type: Type of the labels: one of `PROBLEM_TYPES`.
        classes: Names and order of the classes; None uses those of the labels.
        strict: True raises an error if an image is broken or has no label; False leaves it out.
        labels_needed: True raises an error if an image has no label, as in a validation set.
        keep_unlabelled: True keeps images without a label, as `NO_LABEL`; False leaves them out.
        numbers_fit: See `encode_labels`.
        separator: See `encode_labels`.
        value_range: Range of gray images with more than 8 bits, see `load_image`.
        check: False checks no image: `contents` is None, and a broken image is found when it is used.
        progress: Called with (images checked, images in all).

    Attributes:
        classes: Class names.
        labels: See `Source`.
        problem_type: See `Source`.
        rows: (N,) numbers of their rows in the split.
        contents: (N,) uint64 hashes of the images' bytes; None without `check`.
        skipped: Rows that were left out.
        ignored: Counts of entries that are not meant to be used.

    Raises:
        ValueError: There are no usable images, the labels do not fit the problem type, or an error that `strict` or
            `labels_needed` ask for.
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
    def shards(self) -> Sequence[ShardFile]:
        """The shards that the images are in; none for other stores."""
        return self._store.files if isinstance(self._store, ShardStore) else ()

    @property
    def pieces(self) -> npt.NDArray[np.int64] | None:
        """(N,) numbers of the pieces of the shards; None for other stores."""
        store = self._store
        return store.pieces()[self.rows] if isinstance(store, ShardStore) and store.files else None

    @property
    def rows_in_all(self) -> int:
        """Number of rows of the split, used or not."""
        return len(self._store)

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB.

        Raises:
            ImageError: The bytes have changed since the opening, or cannot be read; the message names the place.
        """
        row = int(self.rows[index])
        try:
            data = self._store.read(row)
        except (ImageError, OSError) as error:
            raise ImageError(f"{self._store.place(row)}: {error}") from error
        if self._checks is not None and (len(data), zlib.crc32(data)) != tuple(self._checks[index]):
            raise ImageError(
                f"{self._store.place(row)}: it has changed since the data was opened. Restore the file, or start again."
            )
        try:
            return load_image(data, value_range=self._value_range)
        except ImageError as error:
            raise type(error)(f"{self._store.place(row)}: {str(error).removeprefix('the given bytes ')}") from error

    def fetch_ahead(self, numbers: npt.NDArray[np.int64]) -> None:
        """Begins to fetch images that are elsewhere; see `deit.data.shard_order.fetch_ahead`."""
        _fetch_ahead(self._store, self.rows[numbers])

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of the image."""
        return self._store.read(int(self.rows[index]))

    def place(self, index: int) -> str:
        """Names the image as its store does."""
        return self._store.place(int(self.rows[index]))

    def fingerprint(self) -> str:
        """Returns a hash of labels, classes, and length and CRC-32 of each image.

        Uses the places of the images instead of length and CRC-32 if these are unknown.
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
    """A split whose images are in a store: tables, archives or lists of files.

    Attributes:
        read: Function that returns the unchecked images and labels for given options.
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


def _fetch_ahead(store: ImageStore, rows: npt.NDArray[np.integer]) -> None:
    fetch = getattr(store, "fetch_ahead", None)
    if fetch is not None:
        fetch(rows)


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

"""Defines sources of labeled images, and sources made of others."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import UserError, WrongTypeError
from deit.core.labels import NO_LABEL
from deit.core.printable import counted
from deit.core.scores.metrics import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from deit.data.storage.contents import Hashes, content_hash
from deit.data.storage.image_search import SkippedFile as SkippedFile

if TYPE_CHECKING:
    from deit.data.exclusions import Exclusion

logger = logging.getLogger(__name__)

_MOST_NAMED = 3  # files in a note

# (N,) int64 class numbers; several classes: (N, K) float32 zeros and ones; regression: (N,) float32.
Labels: TypeAlias = npt.NDArray[Any]
Progress: TypeAlias = Callable[[int, int], None]


class Source(Protocol):
    """Labeled images by number.

    A source may also have `contents`, (N,) uint64 hashes of its images (see `contents_of`), and
    `former_fingerprint()`, which identifies the source in records of older versions.

    Attributes:
        classes: Class names; a label is a position in this list. For regression one name.
        labels: (N,) int64 true classes; (N, K) float32 zeros and ones for several classes; (N,) float32 for regression.
        problem_type: Type of the labels, one of `PROBLEM_TYPES`.
    """

    @property
    def classes(self) -> list[str]: ...  # noqa: D102

    @property
    def labels(self) -> Labels: ...  # noqa: D102

    @property
    def problem_type(self) -> str: ...  # noqa: D102

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB.

        Raises:
            ImageError: The image can no longer be read; the message names its place.
        """
        ...

    def fingerprint(self) -> str:
        """Returns a hash that changes when images or labels do."""
        ...


def contents_of(source: Source) -> Hashes | None:
    """Returns the (N,) uint64 hashes of the images' bytes; None if the source has none."""
    hashes: Hashes | None = getattr(source, "contents", None)
    return hashes


def encoded_of(source: Source, index: int) -> bytes | None:
    """Returns the bytes of an image of a source as they are stored, or None where images are not stored as files.

    Raises:
        ImageError: They can no longer be read.
        OSError: Likewise.
    """
    ask: Callable[[int], bytes | None] | None = getattr(source, "encoded", None)
    return None if ask is None else ask(index)


def place_of(source: Source, index: int) -> str:
    """Returns the place of an image for messages, such as its path or its file and row."""
    ask: Callable[[int], str] | None = getattr(source, "place", None)
    return f"image {index}" if ask is None else ask(index)


def former_fingerprint(source: Source) -> str:
    """Returns the fingerprint by the rule of older versions, which for folders used only names and sizes."""
    ask: Callable[[], str] = getattr(source, "former_fingerprint", source.fingerprint)
    return ask()


def skipped_of(source: Source) -> Sequence[SkippedFile]:
    """Returns the files that a source left out."""
    skipped: Sequence[SkippedFile] = getattr(source, "skipped", ())
    return skipped


def ignored_of(source: Source) -> Mapping[str, int]:
    """Returns the counts of files that a source ignored, such as hidden ones."""
    ignored: Mapping[str, int] = getattr(source, "ignored", {})
    return ignored


def refuse_skipped(skipped: Sequence[SkippedFile], what: str, *, strict: bool) -> None:
    """Logs the files that were left out, or refuses them.

    Args:
        skipped: Files that were left out.
        what: Name of their source for the message.
        strict: True raises an error if files were left out.

    Raises:
        ValueError: `strict` is True and files were left out.
    """
    if strict and skipped:
        first = skipped[0]
        raise UserError(f"{first.path}: {first.reason} ({len(skipped)} such files; strict is on.)")
    if skipped:
        named = "; ".join(f"{file.path}: {file.reason.rstrip('.')}" for file in skipped[:_MOST_NAMED])
        more = f"; and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
        logger.warning("Left out %s of %s: %s%s.", counted(len(skipped), "file"), what, named, more)


def check_problem_type(problem_type: str) -> None:
    """Checks the name of a problem type.

    Raises:
        ValueError: The name is not one of `PROBLEM_TYPES`.
    """
    if problem_type not in PROBLEM_TYPES:
        raise UserError(f"Unknown problem_type {problem_type!r}. Choose one of: {', '.join(PROBLEM_TYPES)}.")


class ArraySource:
    """Labeled images in memory.

    Args:
        images: (N, H, W, 3) or gray (N, H, W), uint8.
        labels: (N,) integers; (N, K) zeros and ones for several classes; (N,) numbers for regression.
        classes: Class names. Default: "0", "1", ..., and "value" for regression.
        problem_type: One of `PROBLEM_TYPES`.

    Raises:
        TypeError: `images` are not uint8, or labels of single classes are not integers.
        ValueError: Shapes disagree, there are no images, a label has no class, or a number is not finite.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[Any],
        classes: Sequence[str] | None = None,
        *,
        problem_type: str = SINGLE_LABEL,
    ) -> None:
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise WrongTypeError(
                f"images must be uint8 of the shape (N, H, W) or (N, H, W, 3). Received: {images.dtype} {images.shape}."
            )
        check_problem_type(problem_type)
        if problem_type == SINGLE_LABEL and not np.issubdtype(labels.dtype, np.integer):
            raise WrongTypeError(f"labels must be integers. Received: {labels.dtype}.")
        several = problem_type == MULTI_LABEL
        if labels.ndim != 1 + several or labels.shape[:1] != images.shape[:1] or not len(images):
            raise UserError(
                f"One label{' row' * several} for each image is needed. "
                f"Received: {len(images)} images, {labels.shape} labels."
            )
        names = _array_classes(labels, problem_type) if classes is None else list(classes)
        _check_values(labels, names, problem_type)
        self.classes = names
        self.problem_type = problem_type
        self.labels: Labels = labels.astype(np.int64 if problem_type == SINGLE_LABEL else np.float32)
        self._images = images

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return Image.fromarray(self._images[index]).convert("RGB")

    @cached_property
    def contents(self) -> Hashes:
        """(N,) uint64 hashes of shapes and pixels."""
        shape = str(self._images.shape[1:]).encode()
        return np.array([content_hash(shape + image.tobytes()) for image in self._images], np.uint64)

    def fingerprint(self) -> str:
        """Returns a hash of pixels and labels."""
        digest = hashlib.sha256(repr(self._images.shape).encode() + np.ascontiguousarray(self._images).tobytes())
        digest.update(self.labels.tobytes() + "\0".join(self.classes).encode("utf-8", "surrogateescape"))
        if self.problem_type != SINGLE_LABEL:
            digest.update(self.problem_type.encode())
        return digest.hexdigest()


def _array_classes(labels: npt.NDArray[Any], problem_type: str) -> list[str]:
    if problem_type == REGRESSION:
        return ["value"]
    count = labels.shape[1] if problem_type == MULTI_LABEL else int(labels.max()) + 1
    return [str(i) for i in range(count)]


def _check_values(labels: npt.NDArray[Any], classes: Sequence[str], problem_type: str) -> None:
    if problem_type == SINGLE_LABEL and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise UserError(
            f"Labels must lie in [0, {len(classes)}). Received: {int(labels.min())} to {int(labels.max())}."
        )
    if problem_type == MULTI_LABEL and (labels.shape[1] != len(classes) or not np.isin(labels, (0, 1)).all()):
        raise UserError(
            f"Labels of several classes must be zeros and ones of the shape (N, {len(classes)}). "
            f"Received: {labels.shape}, {labels.min()} to {labels.max()}."
        )
    if problem_type == REGRESSION and (len(classes) != 1 or not np.isfinite(labels).all()):
        raise UserError(f"Regression needs finite numbers and one name. Received: {len(classes)} names: {classes}.")


class Derived(ABC):
    """The images of another source with other labels.

    Args:
        source: The other source.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.classes = source.classes
        self.problem_type = source.problem_type

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return self.source.image(index)

    def place(self, index: int) -> str:
        """Returns the place of an image in the other source."""
        return place_of(self.source, index)

    def encoded(self, index: int) -> bytes | None:
        """Returns the bytes of an image, if the other source has them."""
        return encoded_of(self.source, index)

    @property
    def contents(self) -> Hashes | None:
        """(N,) uint64 hashes of the images, if the other source has them."""
        return contents_of(self.source)

    def fingerprint(self) -> str:
        """Returns a hash of the other source and the labels."""
        return self._fingerprint(self.source.fingerprint())

    def former_fingerprint(self) -> str:
        """Returns the same with the other source's former fingerprint."""
        return self._fingerprint(former_fingerprint(self.source))

    @abstractmethod
    def _fingerprint(self, of_source: str) -> str: ...


class Subset(Derived):
    """Some images of another source.

    Args:
        source: The other source.
        indices: Numbers of the images, in order.
    """

    def __init__(self, source: Source, indices: npt.NDArray[np.integer]) -> None:
        super().__init__(source)
        self.indices = indices
        self.labels: Labels = source.labels[indices]

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return super().image(int(self.indices[index]))

    def place(self, index: int) -> str:
        """Returns the place of an image in the other source."""
        return super().place(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | None:
        """Returns the bytes of the image, if the other source has them."""
        return encoded_of(self.source, int(self.indices[index]))

    @property
    def contents(self) -> Hashes | None:
        """(N,) uint64 hashes of the images, if the other source has them."""
        whole = super().contents
        return None if whole is None else whole[self.indices]

    def _fingerprint(self, of_source: str) -> str:
        return hashlib.sha256(of_source.encode() + self.indices.tobytes()).hexdigest()


class WithoutLabels(Derived):
    """Another source whose labels are ignored.

    Args:
        source: The other source.

    Attributes:
        classes: Always empty.
        labels: (N,) int64, all `NO_LABEL`.
        problem_type: Always "single_label_classification".
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.classes: list[str] = []
        self.problem_type = SINGLE_LABEL
        self.labels: Labels = np.full(len(source.labels), NO_LABEL, dtype=np.int64)

    @property
    def skipped(self) -> Sequence[SkippedFile]:
        """Files that the other source left out."""
        return skipped_of(self.source)

    @property
    def ignored(self) -> Mapping[str, int]:
        """Counts of files that the other source ignored."""
        return ignored_of(self.source)

    def _fingerprint(self, of_source: str) -> str:
        return hashlib.sha256(b"without labels\n" + of_source.encode()).hexdigest()


class Joined:
    """Concatenates sources. Uses the classes of the first; labels of the others must belong to them.

    Args:
        sources: At least one.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.classes = sources[0].classes
        self.problem_type = sources[0].problem_type
        self.labels: Labels = np.concatenate([source.labels for source in sources])
        self._ends = np.cumsum([len(source.labels) for source in sources])

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        source, own = self._found(index)
        return source.image(own)

    def place(self, index: int) -> str:
        """Names the image as its source does."""
        return place_of(*self._found(index))

    def encoded(self, index: int) -> bytes | None:
        """Returns the bytes of the image, if its source has them."""
        return encoded_of(*self._found(index))

    @property
    def skipped(self) -> list[SkippedFile]:
        """Files that the sources left out."""
        return [file for source in self.sources for file in skipped_of(source)]

    @property
    def ignored(self) -> Mapping[str, int]:
        """Counts of files that the sources ignored."""
        return sum((Counter(ignored_of(source)) for source in self.sources), Counter())

    def _found(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[number], index - int(self._ends[number - 1] if number else 0)

    @property
    def contents(self) -> Hashes | None:
        """(N,) uint64 hashes of the images, if all sources have them."""
        parts = [contents_of(source) for source in self.sources]
        found = [part for part in parts if part is not None]
        return np.concatenate(found) if len(found) == len(parts) else None

    def fingerprint(self) -> str:
        """Returns a hash of all sources; that of the source if there is only one."""
        return _joined([source.fingerprint() for source in self.sources])

    def former_fingerprint(self) -> str:
        """Returns the same with the sources' former fingerprints."""
        return _joined([former_fingerprint(source) for source in self.sources])


def _joined(prints: Sequence[str]) -> str:
    return prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Choice of the validation images of a data set without a validation part.

    Attributes:
        val_fraction: Share of the images.
        seed: Random seed of the choice.
    """

    val_fraction: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training and validation images.

    Attributes:
        train: Images to learn from.
        val: Images to measure on, with the same classes.
        held_out: How `val` was chosen; None if the data set came divided.
        skipped: Files that were left out.
        ignored: Counts of files that were not meant to be used: hidden files, an unused test split.
        used: Number of images in both, before `deit.data.few_labels.limited` removes some.
        exclusion: What a list of images to leave out did; None without a list.
    """

    train: Source
    val: Source
    held_out: HeldOut | None = None
    skipped: tuple[SkippedFile, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    used: int = -1
    exclusion: Exclusion | None = None

    def __post_init__(self) -> None:
        if self.used < 0:
            object.__setattr__(self, "used", len(self.train.labels) + len(self.val.labels))
        if self.train.problem_type != self.val.problem_type:
            raise UserError(
                f"Training images are for {self.train.problem_type} and validation images for {self.val.problem_type}. "
                "Open both with one problem_type."
            )
        if self.train.classes != self.val.classes:
            raise UserError(
                f"Training and validation classes differ: {self.train.classes[:5]} ... and {self.val.classes[:5]} ..."
            )

    @property
    def problem_type(self) -> str:
        """Problem type of both: one of `PROBLEM_TYPES`."""
        return self.train.problem_type

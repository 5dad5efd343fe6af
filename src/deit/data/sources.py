"""Labelled images: folders and arrays."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.image_files import read_content
from deit.core.image_search import SkippedFile as SkippedFile
from deit.core.image_search import find_image_files, find_loose_files, visible_folders
from deit.core.images import ImageError, ValueRange, load_image
from deit.core.labels import numbers_by_name, repeated_names, several_classes
from deit.core.metrics import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from deit.data.contents import Bytes, Contents, Hashes, content_hash, examine, file_stamp, refuse_unknown_ranges

logger = logging.getLogger(__name__)

# (N,) int64 class numbers; several classes: (N, K) float32 zeros and ones; regression: (N,) float32.
Labels: TypeAlias = npt.NDArray[Any]
Progress: TypeAlias = Callable[[int, int], None]


class Source(Protocol):
    """Labelled images by number.

    A source may also have `contents`, (N,) uint64 hashes of its images (see `contents_of`), and a
    `former_fingerprint()`, by which what was recorded under an older rule is known again.

    Attributes:
        classes: Class names; a label is a position in this list. For regression one name, of the number.
        labels: (N,) int64 true classes; (N, K) float32 zeros and ones for several classes; (N,) float32 for regression.
        problem_type: Which of the three: one of `PROBLEM_TYPES`.
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
            ImageError: It can no longer be read; the message names the place.
        """
        ...

    def fingerprint(self) -> str:
        """Returns a hash that changes when images or labels do."""
        ...


def contents_of(source: Source) -> Hashes | None:
    """Returns the (N,) uint64 hashes of the bytes of the images of a source, or None where it has none."""
    hashes: Hashes | None = getattr(source, "contents", None)
    return hashes


def place_of(source: Source, index: int) -> str:
    """Returns where an image of a source is, as a reader can find it."""
    ask: Callable[[int], str] | None = getattr(source, "place", None)
    return f"image {index}" if ask is None else ask(index)


def former_fingerprint(source: Source) -> str:
    """Returns the fingerprint that a source had when that of a folder was made of names and sizes alone."""
    ask: Callable[[], str] = getattr(source, "former_fingerprint", source.fingerprint)
    return ask()


def refuse_skipped(skipped: Sequence[SkippedFile], what: str, *, strict: bool) -> None:
    """Notes what was left out in the log, or refuses it.

    Args:
        skipped: What was left out.
        what: Of what.
        strict: Refuse.

    Raises:
        ValueError: `strict` is on and something was left out.
    """
    if strict and skipped:
        first = skipped[0]
        raise ValueError(f"{first.path}: {first.reason} ({len(skipped)} such files; strict is on.)")
    if skipped:
        logger.warning("Left out %d files of %s that cannot be used.", len(skipped), what)


def check_problem_type(problem_type: str) -> None:
    """Checks the name of a problem type.

    Raises:
        ValueError: It is not one of `PROBLEM_TYPES`.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"Unknown problem_type {problem_type!r}. Choose one of: {', '.join(PROBLEM_TYPES)}.")


class ArraySource:
    """Labelled images in memory.

    Args:
        images: (N, H, W, 3) or grey (N, H, W), uint8.
        labels: (N,) integers; (N, K) zeros and ones for several classes; (N,) numbers for regression.
        classes: Class names; "0", "1", ... when None, and "value" for regression.
        problem_type: One of `PROBLEM_TYPES`.

    Raises:
        TypeError: `images` are not uint8, or `labels` are not integers where they must be.
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
            raise TypeError(
                f"images must be uint8 of the shape (N, H, W) or (N, H, W, 3). Received: {images.dtype} {images.shape}."
            )
        check_problem_type(problem_type)
        if problem_type == SINGLE_LABEL and not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"labels must be integers. Received: {labels.dtype}.")
        several = problem_type == MULTI_LABEL
        if labels.ndim != 1 + several or labels.shape[:1] != images.shape[:1] or not len(images):
            raise ValueError(
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
        raise ValueError(
            f"Labels must lie in [0, {len(classes)}). Received: {int(labels.min())} to {int(labels.max())}."
        )
    if problem_type == MULTI_LABEL and (labels.shape[1] != len(classes) or not np.isin(labels, (0, 1)).all()):
        raise ValueError(
            f"Labels of several classes must be zeros and ones of the shape (N, {len(classes)}). "
            f"Received: {labels.shape}, {labels.min()} to {labels.max()}."
        )
    if problem_type == REGRESSION and (len(classes) != 1 or not np.isfinite(labels).all()):
        raise ValueError(f"Regression needs finite numbers and one name. Received: {len(classes)} names: {classes}.")


class ImageFolder:
    """A folder with one sub-folder of images for each class.

    Every image is read and decoded once, cheaply, when the folder is opened: a broken file is found before hours of
    work, not during them. A file that has not changed since is not read again, see `examine`.

    Args:
        root: The folder.
        classes: Names and order of the classes; the sorted names of the sub-folders when None.
        strict: Raise at the first file that is not an image, in place of leaving it out.
        value_range: Of grey images with more than 8 bits, see `load_image`.
        progress: Called with (files checked, files in all).

    Attributes:
        problem_type: Always "single_label_classification".
        skipped: Files left out, images beside the class folders among them.
        ignored: Counts of other files: hidden ones, notes beside the class folders.
        contents: (N,) uint64 hashes of the files' bytes.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It has no class folders, or one of them has no image, or (strict) a file is broken.
    """

    problem_type = SINGLE_LABEL

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        strict: bool = False,
        value_range: ValueRange | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.root = Path(root)
        self._value_range = value_range
        folders = class_folders(self.root)
        self.classes = sorted(folders) if classes is None else list(classes)
        numbers = folder_numbers(self.root, folders, self.classes)
        unknown = sorted(set(folders) - set(numbers))
        if unknown:
            raise ValueError(
                f"{self.root} has class folders that the training images lack: {', '.join(unknown)}. "
                f"Known: {', '.join(self.classes)}."
            )
        paths, labels, self.skipped = self._scan(numbers)
        found = examine_files(self.root, paths, progress, value_range)
        self.skipped += [SkippedFile(path=str(paths[i]), reason=reason) for i, reason in found.reasons.items()]
        if strict:
            refuse_skipped(self.skipped, str(self.root), strict=True)
        good = [i for i in range(len(paths)) if i not in found.reasons]
        self.paths = [paths[i] for i in good]
        self.contents = found.hashes[good]
        self.labels: Labels = np.array([labels[i] for i in good], dtype=np.int64)
        self._require_images(numbers)
        refuse_skipped(self.skipped, str(self.root), strict=False)

    def _scan(self, numbers: Mapping[str, int]) -> tuple[list[Path], list[int], list[SkippedFile]]:
        loose = find_loose_files(self.root)
        self.ignored = loose.ignored
        folders = {number: self.root / name for name, number in sorted(numbers.items(), key=lambda item: item[1])}
        paths: list[Path] = []
        labels: list[int] = []
        skipped = loose.skipped
        for label, folder in folders.items():
            found = find_image_files(folder, beside=list(folders.values()))
            paths += [Path(path) for path in found.paths if path is not None]
            labels += [label] * len(found.paths)
            skipped += found.skipped
            self.ignored += found.ignored
        return paths, labels, skipped

    def _require_images(self, numbers: Mapping[str, int]) -> None:
        present = set(self.labels.tolist())
        empty = [name for name, number in sorted(numbers.items()) if number not in present]
        if empty:
            inside = str(self.root / empty[0]) + os.sep
            first = next((file for file in self.skipped if file.path.startswith(inside)), None)
            raise ValueError(
                f"No usable image in {', '.join(str(self.root / name) for name in empty)}. "
                "Add images of that class, or remove the folder."
                + (f" What is there, such as {first.path}: {first.reason}" if first else _counted(self.ignored))
            )

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return load_image(self.paths[index], value_range=self._value_range)

    def place(self, index: int) -> str:
        """Names the file."""
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """Returns a hash of the names, contents and labels of all files."""
        names = "\0".join(str(path.relative_to(self.root)) for path in self.paths)
        digest = hashlib.sha256("\0".join(["contents", *self.classes]).encode("utf-8", "surrogateescape"))
        digest.update(names.encode("utf-8", "surrogateescape") + self.contents.tobytes() + self.labels.tobytes())
        return digest.hexdigest()

    def former_fingerprint(self) -> str:
        """Returns a hash of the names, sizes and labels of all files."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for path, label in zip(self.paths, self.labels, strict=True):
            line = f"{path.relative_to(self.root)}\0{path.stat().st_size}\0{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _counted(ignored: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in ignored.items() if count)
    return f" Files that were not looked at: {counts}." if counts else ""


class Subset:
    """Some images of another source.

    Args:
        source: The other source.
        indices: Which, in this order.
    """

    def __init__(self, source: Source, indices: npt.NDArray[np.integer]) -> None:
        self.source = source
        self.indices = indices
        self.classes = source.classes
        self.problem_type = source.problem_type
        self.labels: Labels = source.labels[indices]

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return self.source.image(int(self.indices[index]))

    def place(self, index: int) -> str:
        """Names the image as the other source does."""
        return place_of(self.source, int(self.indices[index]))

    @property
    def contents(self) -> Hashes | None:
        """(N,) uint64 hashes of the images, if the other source has them."""
        whole = contents_of(self.source)
        return None if whole is None else whole[self.indices]

    def fingerprint(self) -> str:
        """Returns a hash of the other source and the choice."""
        return self._with_choice(self.source.fingerprint())

    def former_fingerprint(self) -> str:
        """Returns the same with the other source's former fingerprint."""
        return self._with_choice(former_fingerprint(self.source))

    def _with_choice(self, of_source: str) -> str:
        return hashlib.sha256(of_source.encode() + self.indices.tobytes()).hexdigest()


class Joined:
    """Several sources one after the other, with the classes of the first; the others have labels of it, or none.

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
        """Returns a hash of all sources; one alone has its own."""
        return _joined([source.fingerprint() for source in self.sources])

    def former_fingerprint(self) -> str:
        """Returns the same with the sources' former fingerprints."""
        return _joined([former_fingerprint(source) for source in self.sources])


def _joined(prints: Sequence[str]) -> str:
    return prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a training needs.

    Attributes:
        train: Images to learn from.
        val: Images to measure on, with the same classes.
        skipped: Files that were left out.
        ignored: Counts of files that are of no interest: hidden ones, a test part.
        used: How many images are in both; fewer may be left by `deit.data.few_labels.limited`.
    """

    train: Source
    val: Source
    skipped: tuple[SkippedFile, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    used: int = -1

    def __post_init__(self) -> None:
        if self.used < 0:
            object.__setattr__(self, "used", len(self.train.labels) + len(self.val.labels))
        if self.train.problem_type != self.val.problem_type:
            raise ValueError(
                f"Training images are for {self.train.problem_type} and validation images for {self.val.problem_type}. "
                "Open both with one problem_type."
            )
        if self.train.classes != self.val.classes:
            raise ValueError(
                f"Training and validation classes differ: {self.train.classes[:5]} ... and {self.val.classes[:5]} ..."
            )

    @property
    def problem_type(self) -> str:
        """What both are for: one of `PROBLEM_TYPES`."""
        return self.train.problem_type


def split_indices(labels: Labels, classes: Sequence[str], val_fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Divides images into two groups: single classes each by the same share, all others at random.

    Args:
        labels: (N,) true classes; (N, K) zeros and ones; or (N,) float32 numbers of a regression.
        classes: Their names, for messages.
        val_fraction: Share of the second group, between 0 and 1; at least one image on each side: of each class where
            an image has one, and of each class with two images or more where an image may have several.
        seed: Chooses which.

    Returns:
        Sorted numbers of the first and of the second group.

    Raises:
        ValueError: The share is not between 0 and 1, or there are fewer than two images (of a class that has any).
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1. Received: {val_fraction}.")
    random = np.random.default_rng(seed)
    if not np.issubdtype(labels.dtype, np.integer):
        return _split_at_random(labels, val_fraction, random)
    first, second = [], []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise ValueError(f"Class {name!r} has 1 image(s); dividing it needs at least 2. Add some.")
        if not len(members):  # a name that the labels may have and none has
            continue
        members = random.permutation(members)
        count = _share(len(members), val_fraction)
        second.append(members[:count])
        first.append(members[count:])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _share(count: int, fraction: float) -> int:
    return min(max(round(count * fraction), 1), count - 1)


def _split_at_random(labels: Labels, val_fraction: float, random: np.random.Generator) -> tuple[Labels, Labels]:
    if len(labels) < 2:
        raise ValueError(f"{len(labels)} image(s) cannot be divided for validation. Add some.")
    order = random.permutation(len(labels))
    in_second = np.zeros(len(labels), dtype=bool)
    in_second[order[: _share(len(labels), val_fraction)]] = True
    if labels.ndim == 2:
        _bring_classes_to_both_sides(labels > 0, in_second, order)
    return np.flatnonzero(~in_second), np.flatnonzero(in_second)


def _bring_classes_to_both_sides(
    has: npt.NDArray[np.bool_], in_second: npt.NDArray[np.bool_], order: npt.NDArray[np.integer]
) -> None:
    """Moves an image of each class that is on one side alone, unless that takes another class from a side."""
    for label in np.argsort(has.sum(0), kind="stable"):  # rare classes have the least choice
        for side in (False, True):
            members = order[has[order, label]]
            if len(members) < 2 or (in_second[members] == side).any():
                continue
            for image in members:
                left = has[(in_second != side) & (np.arange(len(has)) != image)].any(0)
                if left[has[image] & (has.sum(0) > 1)].all():
                    in_second[image] = side
                    break


def folder_numbers(root: Path, folders: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Returns the number of each folder's class, and nothing for a folder of another name.

    Args:
        root: Where the folders are, for messages.
        folders: Their names.
        classes: Class names, in order. Folders called "0", "1", ... are positions in it if no class has such a name.

    Raises:
        ValueError: A folder is called as several classes are.
    """
    numbers = numbers_by_name(classes)
    are_numbers = all(name.isdecimal() and int(name) < len(classes) for name in folders)
    if are_numbers and not any(name.isdecimal() for name in classes):
        numbers = {name: int(name) for name in folders}
    repeated = repeated_names(classes)
    for name in folders:
        if name in repeated:
            raise ValueError(
                f"{root / name}: {several_classes(name, repeated[name], classes)} Here: call the folders 0, 1, ..."
            )
    return {name: numbers[name] for name in folders if name in numbers}


def class_folders(root: Path) -> list[str]:
    """Returns the sorted names of the sub-folders.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There are none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder at {root}. Pass a folder with one sub-folder of images for each class.")
    names = [folder.name for folder in visible_folders(root)]
    if not names:
        raise ValueError(
            f"{root} has no class folders. It must hold one sub-folder of images for each class. "
            "Images without labels are for deit pretrain."
        )
    return names


def examine_files(
    root: Path, paths: Sequence[Path], progress: Progress | None, value_range: ValueRange | None
) -> Contents:
    """Checks and hashes image files, see `examine`.

    Args:
        root: A folder above them, by which their hashes are kept.
        paths: The files.
        progress: Called with (files checked, files in all).
        value_range: Of grey images with more than 8 bits, see `load_image`.

    Raises:
        ValueRangeError: It is needed for one of them.
    """
    above = os.path.abspath(root)

    def read(i: int) -> bytes:
        try:
            return read_content(paths[i], "the given bytes")
        except FileNotFoundError as error:
            raise ImageError("is not there.") from error

    def stamp(i: int) -> bytes | None:
        return file_stamp(os.path.join(above, paths[i].relative_to(root)))

    images = Bytes(count=len(paths), read=read, stamp=stamp, place=above, together=1, value_range=value_range)
    found = examine(images, progress)
    refuse_unknown_ranges(found, lambda i: str(paths[i]))
    return found

"""Labelled images: folders and arrays."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.images import IMAGE_SUFFIXES, ImageError, check_image, load_image
from deit.core.labels import id2label_from_names

logger = logging.getLogger(__name__)

Labels = npt.NDArray[np.int64]


class Source(Protocol):
    """Labelled images by number.

    Attributes:
        classes: Class names; a label is a position in this list.
        labels: (N,) true classes.
    """

    @property
    def classes(self) -> list[str]: ...  # noqa: D102

    @property
    def labels(self) -> Labels: ...  # noqa: D102

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        ...

    def fingerprint(self) -> str:
        """Returns a hash that changes when images or labels do."""
        ...


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file that is not used, and why."""

    path: str
    reason: str


class ArraySource:
    """Labelled images in memory.

    Args:
        images: (N, H, W, 3) or grey (N, H, W), uint8.
        labels: (N,) integers.
        classes: Class names; "0", "1", ... when None.

    Raises:
        TypeError: `images` are not uint8, or `labels` are not integers.
        ValueError: Shapes disagree, there are no images, or a label has no class.
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer], classes: Sequence[str] | None = None
    ) -> None:
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise TypeError(
                f"images must be uint8 of the shape (N, H, W) or (N, H, W, 3). Received: {images.dtype} {images.shape}."
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"labels must be integers. Received: {labels.dtype}.")
        if labels.shape != images.shape[:1] or not len(images):
            raise ValueError(
                f"One label for each image is needed. Received: {len(images)} images, {labels.shape} labels."
            )
        self.classes = [str(i) for i in range(int(labels.max()) + 1)] if classes is None else list(classes)
        id2label_from_names(self.classes)
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"Labels must lie in [0, {len(self.classes)}). Received: {int(labels.min())} to {int(labels.max())}."
            )
        self.labels: Labels = labels.astype(np.int64)
        self._images = images

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return Image.fromarray(self._images[index]).convert("RGB")

    def fingerprint(self) -> str:
        """Returns a hash of pixels and labels."""
        digest = hashlib.sha256(repr(self._images.shape).encode() + np.ascontiguousarray(self._images).tobytes())
        digest.update(self.labels.tobytes() + "\0".join(self.classes).encode())
        return digest.hexdigest()


class ImageFolder:
    """A folder with one sub-folder of images for each class.

    Every image is decoded once, cheaply, when the folder is opened: a broken file is found before hours of work,
    not during them.

    Args:
        root: The folder.
        classes: Names and order of the classes; the sorted names of the sub-folders when None.
        strict: Raise at the first file that is not an image, in place of leaving it out.
        progress: Called with (files checked, files in all).

    Attributes:
        skipped: Files left out.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It has no class folders, or one of them has no image, or (strict) a file is broken.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        strict: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.root = Path(root)
        found = class_folders(self.root)
        self.classes = sorted(found) if classes is None else list(classes)
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            raise ValueError(
                f"{self.root} has class folders that the training images lack: {', '.join(unknown)}. "
                f"Known: {', '.join(self.classes)}."
            )
        paths, labels, self.skipped = self._scan()
        reasons = _check_all(paths, progress)
        broken = [SkippedFile(path=str(p), reason=r) for p, r in zip(paths, reasons, strict=True) if r]
        self.skipped += broken
        if strict and self.skipped:
            first = self.skipped[0]
            raise ValueError(f"{first.path}: {first.reason} ({len(self.skipped)} such files; strict is on.)")
        good = [i for i, reason in enumerate(reasons) if not reason]
        self.paths = [paths[i] for i in good]
        self.labels: Labels = np.array([labels[i] for i in good], dtype=np.int64)
        self._require_images(found)
        if self.skipped:
            logger.warning("Left out %d files of %s that cannot be used.", len(self.skipped), self.root)

    def _scan(self) -> tuple[list[Path], list[int], list[SkippedFile]]:
        paths, labels, skipped = [], [], []
        for label, name in enumerate(self.classes):
            folder = self.root / name
            for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
                if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
                    continue
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    paths.append(path)
                    labels.append(label)
                else:
                    skipped.append(SkippedFile(path=str(path), reason=f"its ending {path.suffix!r} is not an image's."))
        return paths, labels, skipped

    def _require_images(self, found: Sequence[str]) -> None:
        present = {self.classes[i] for i in np.unique(self.labels)} if len(self.labels) else set()
        empty = sorted(set(found) - present)
        if empty:
            raise ValueError(
                f"No usable image in {', '.join(str(self.root / name) for name in empty)}. "
                "Add images of that class, or remove the folder."
            )

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return load_image(self.paths[index])

    def fingerprint(self) -> str:
        """Returns a hash of the names, sizes and labels of all files."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path.relative_to(self.root)}\0{path.stat().st_size}\0{label}\n".encode())
        return digest.hexdigest()


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
        self.labels: Labels = source.labels[indices]

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return self.source.image(int(self.indices[index]))

    def fingerprint(self) -> str:
        """Returns a hash of the other source and the choice."""
        return hashlib.sha256(self.source.fingerprint().encode() + self.indices.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a training needs.

    Attributes:
        train: Images to learn from.
        val: Images to measure on, with the same classes.
        skipped: Files that were left out.
    """

    train: Source
    val: Source
    skipped: tuple[SkippedFile, ...] = ()

    def __post_init__(self) -> None:
        if self.train.classes != self.val.classes:
            raise ValueError(
                f"Training and validation classes differ: {self.train.classes[:5]} ... and {self.val.classes[:5]} ..."
            )


def open_data(
    path: str | os.PathLike[str],
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """Opens a folder of images for training.

    Args:
        path: A folder with `train/` and `val/`, each with a folder for each class; or one with the class folders
            themselves, of which a share is kept for validation.
        val_fraction: That share, of each class; at least one image of each class stays on each side.
        seed: Chooses which.
        strict: See `ImageFolder`.
        progress: See `ImageFolder`.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It is empty, or a class has too few images to be divided.
    """
    root = Path(path)
    if (root / "train").is_dir():
        if not (root / "val").is_dir():
            raise FileNotFoundError(
                f"{root} has train/ but no val/. Add it, or pass {root / 'train'} to have it divided."
            )
        train = ImageFolder(root / "train", strict=strict, progress=progress)
        val = ImageFolder(root / "val", classes=train.classes, strict=strict, progress=progress)
        return Data(train=train, val=val, skipped=(*train.skipped, *val.skipped))
    folder = ImageFolder(root, strict=strict, progress=progress)
    train_indices, val_indices = split_indices(folder.labels, folder.classes, val_fraction, seed)
    return Data(train=Subset(folder, train_indices), val=Subset(folder, val_indices), skipped=tuple(folder.skipped))


def split_indices(labels: Labels, classes: Sequence[str], val_fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Divides images into two groups, each class by the same share.

    Args:
        labels: (N,) true classes.
        classes: Their names, for messages.
        val_fraction: Share of the second group, between 0 and 1; at least one image of each class on each side.
        seed: Chooses which.

    Returns:
        Sorted numbers of the first and of the second group.

    Raises:
        ValueError: The share is not between 0 and 1, or a class has fewer than two images.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1. Received: {val_fraction}.")
    random = np.random.default_rng(seed)
    first, second = [], []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(f"Class {name!r} has {len(members)} image(s); dividing it needs at least 2. Add some.")
        members = random.permutation(members)
        count = min(max(round(len(members) * val_fraction), 1), len(members) - 1)
        second.append(members[:count])
        first.append(members[count:])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def class_folders(root: Path) -> list[str]:
    """Returns the sorted names of the sub-folders.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There are none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder at {root}. Pass a folder with one sub-folder of images for each class.")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{root} has no class folders. It must hold one sub-folder of images for each class.")
    return names


def _check_all(paths: Sequence[Path], progress: Callable[[int, int], None] | None) -> list[str]:
    """Returns for each path why it cannot be used, or an empty string. Pillow decodes outside the interpreter lock."""
    reasons = []
    # Filters of warnings belong to the whole process, and the threads' own changes of them interleave. This one is in
    # force while they run and takes all of them back.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for reason in pool.map(_reason_to_skip, paths):
            reasons.append(reason)
            if progress is not None:
                progress(len(reasons), len(paths))
    return reasons


def _reason_to_skip(path: Path) -> str:
    try:
        check_image(path)
    except (ImageError, OSError) as error:
        return str(error).removeprefix(f"{path} ")
    return ""

"""Folders with one sub-folder of images for each class."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deit.core.errors import UserError
from deit.core.images.image_files import read_content
from deit.core.images.reading import ImageError, ValueRange, load_image
from deit.core.labels import numbers_by_name, repeated_names, several_classes
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.sources import Labels, Progress, SkippedFile, refuse_skipped
from deit.data.storage.contents import Bytes, Contents, examine, file_stamp, refuse_unknown_ranges, unexamined
from deit.data.storage.image_search import find_image_files, find_loose_files, holds_images, visible_folders

logger = logging.getLogger(__name__)


class ImageFolder:
    """A folder with one sub-folder of images for each class.

    Every image is read and decoded once, cheaply, when the folder is opened: a broken file is found before hours of
    work, not during them. A file that has not changed since is not read again, see `examine`. A sub-folder in which no
    file is an image is no class; a note says so.

    Args:
        root: The folder.
        classes: Names and order of the classes; the sorted names of the sub-folders with images when None.
        strict: Raise at the first file that is not an image, and at an empty folder, in place of leaving it out.
        value_range: Of grey images with more than 8 bits, see `load_image`.
        check: False looks at no image now: `contents` is None, and a broken image is found when it is used.
        progress: Called with (files checked, files in all).

    Attributes:
        problem_type: Always "single_label_classification".
        skipped: Files left out, images beside the class folders among them.
        ignored: Counts of other files: hidden ones, notes beside the class folders.
        contents: (N,) uint64 hashes of the files' bytes; None without `check`.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It has no class folders, one of them has broken images alone, or (strict) a file is broken or a
            folder empty.
    """

    problem_type = SINGLE_LABEL

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        strict: bool = False,
        value_range: ValueRange | None = None,
        check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.root = Path(root)
        self._value_range = value_range
        folders = class_folders(self.root)
        _note_empty(self.root, folders, strict=strict)
        self.classes = sorted(folders) if classes is None else list(classes)
        numbers = folder_numbers(self.root, folders, self.classes)
        unknown = sorted(set(folders) - set(numbers))
        if unknown:
            raise UserError(
                f"{self.root} has class folders that the training images lack: {', '.join(unknown)}. "
                f"Known: {', '.join(self.classes)}."
            )
        paths, labels, self.skipped = self._scan(numbers)
        found = examine_files(self.root, paths, progress, value_range) if check else unexamined(len(paths))
        self.skipped += [SkippedFile(path=str(paths[i]), reason=reason) for i, reason in found.reasons.items()]
        if strict:
            refuse_skipped(self.skipped, str(self.root), strict=True)
        good = [i for i in range(len(paths)) if i not in found.reasons]
        self.paths = [paths[i] for i in good]
        self.contents = found.hashes[good] if check else None
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
            raise UserError(
                f"No usable image in {', '.join(str(self.root / name) for name in empty)}. "
                "Add images of that class, or remove the folder."
                + (f" What is there, such as {first.path}: {first.reason}" if first else "")
            )

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return load_image(self.paths[index], value_range=self._value_range)

    def place(self, index: int) -> str:
        """Names the file."""
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """Returns a hash of the names, contents and labels of all files; of sizes where the contents are not known."""
        if self.contents is None:
            return self.former_fingerprint()
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
            raise UserError(
                f"{root / name}: {several_classes(name, repeated[name], classes)} Here: call the folders 0, 1, ..."
            )
    return {name: numbers[name] for name in folders if name in numbers}


def class_folders(root: Path) -> list[str]:
    """Returns the sorted names of the sub-folders with images.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There are none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder at {root}. Pass a folder with one sub-folder of images for each class.")
    folders = visible_folders(root)
    names = [folder.name for folder in folders if holds_images(folder)]
    if folders and not names:
        raise UserError(f"No image in {_named(folders)}. Add images of each class to its folder.")
    if not names:
        raise UserError(
            f"{root} has no class folders. It must hold one sub-folder of images for each class. "
            "Images without labels are for deit pretrain."
        )
    return names


def _note_empty(root: Path, with_images: Sequence[str], *, strict: bool) -> None:
    known = set(with_images)
    empty = [folder for folder in visible_folders(root) if folder.name not in known]
    if not empty:
        return
    what = f"No image in {_named(empty)}"
    if strict:
        raise UserError(f"{what}. Add images, or remove what is empty; strict is on.")
    logger.warning("%s: no class.", what)


def _named(folders: Sequence[Path]) -> str:
    """Names folders without images, and what lies there all the same."""
    shown = []
    for folder in folders[:3]:
        inside = find_image_files(folder)
        ignored = inside.ignored + Counter(file.kind for file in inside.skipped)
        counts = ", ".join(f"{count} {what}" for what, count in sorted(ignored.items()) if count)
        shown.append(f"{folder} ({counts or 'empty'})")
    return ", ".join(shown) + (f" and {len(folders) - 3} more folders" if len(folders) > 3 else "")


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

    def read(i: int) -> bytes:
        try:
            return read_content(paths[i], "the given bytes")
        except FileNotFoundError as error:
            raise ImageError("is not there.") from error

    def stamp(i: int) -> bytes | None:
        return file_stamp(os.path.abspath(paths[i]))

    images = Bytes(
        count=len(paths), read=read, stamp=stamp, place=os.path.abspath(root), together=1, value_range=value_range
    )
    found = examine(images, progress)
    refuse_unknown_ranges(found, lambda i: str(paths[i]))
    return found

"""Reads folders of images, with one sub-folder for each class or without labels."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.core.errors import UserError
from deit.core.images.image_files import read_content
from deit.core.images.reading import IMAGE_SUFFIXES, ImageError, ValueRange, load_image
from deit.core.labels import NO_LABEL, numbers_by_name, repeated_names, several_classes
from deit.core.printable import some_of
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.labels.class_notes import require_two_classes
from deit.data.labels.label_columns import EncodedLabels
from deit.data.readers.folder_splits import FolderSplits, class_folders, folder_splits, note_empty
from deit.data.readers.reader import Place, ReadOptions, Splits
from deit.data.sources import Joined, Labels, Progress, SkippedFile, Source, refuse_skipped
from deit.data.storage.contents import Bytes, Contents, Hashes, examine, file_stamp, refuse_unknown_ranges, unexamined
from deit.data.storage.image_search import FoundFiles, find_image_files, find_loose_files, visible_folders

logger = logging.getLogger(__name__)


class ImageFolders:
    """Reads folders of images: with a sub-folder for each class, or with train/ and val/ of that form.

    If labels are not needed, images may be in any sub-folder.
    """

    def takes(self, place: Place) -> bool:
        """Returns True for a folder."""
        return place.folder is not None

    def splits(self, place: Place, options: ReadOptions) -> Splits:
        """Finds the splits by the names of the sub-folders."""
        root = place.folder
        assert root is not None
        _refuse_columns(root, options)
        has_known_classes = options.classes is not None and {f.name for f in visible_folders(root)} <= {
            *options.classes
        }
        found = None if has_known_classes else folder_splits(root, labelled=options.labelled)
        training = root if found is None else found.splits.get("train")
        if options.for_training and training is not None:
            require_two_classes(class_folders(training))
        if found is None:
            return Splits(named={"": FolderSplit(folder=root, options=options)})
        more = found.unlabelled if options.keep_unlabelled or not options.labelled else []
        return Splits(
            named={
                name: FolderSplit(folder=folder, options=options, more=more if name == "train" else ())
                for name, folder in found.splits.items()
            },
            complete=True,
            beside=partial(_files_beside, root, found, options, more),
            missing=lambda _, name: _missing_folder(root, found, name),
        )


@dataclass(frozen=True, kw_only=True)
class FolderSplit:
    """A folder of images that is one split.

    Attributes:
        folder: The folder.
        options: How to read.
        more: Folders of images without labels, used for training too.
    """

    folder: Path
    options: ReadOptions
    more: Sequence[Path] = ()

    def open(
        self, *, classes: Sequence[str] | None = None, labels_needed: bool = False
    ) -> ImageFolder | ImageFiles | Joined:
        """Lists and checks the images; see `Split`."""
        options = self.options
        how: dict[str, Any] = {
            "strict": options.strict,
            "value_range": options.value_range,
            "check": options.check,
            "progress": options.progress,
        }
        first: ImageFolder | ImageFiles
        if options.labelled:
            if options.classes is not None:
                _refuse_unknown_folders(self.folder, options.classes)
            classes = options.classes if classes is None else classes
            first = ImageFolder(self.folder, classes=classes, keep_empty=options.keep_empty, **how)
        else:
            first = ImageFiles(self.folder, **how)
        return Joined([first, *(ImageFiles(folder, **how) for folder in self.more)]) if self.more else first

    def labels_of(self, source: Source, options: ReadOptions) -> EncodedLabels | None:
        """Takes the first sub-folder of each image as its class; see `Split`."""
        assert isinstance(source, ImageFiles)
        tops = [path.relative_to(self.folder).parts[:-1][:1] for path in source.paths]
        classes = sorted({top[0] for top in tops if top})
        if len(classes) < 2:
            return None
        labels = np.array([classes.index(top[0]) if top else 0 for top in tops], dtype=np.int64)
        return EncodedLabels(classes=classes, labels=labels, missing=np.array([not top for top in tops]))


class _Files:
    """Image files below a folder. Finds broken files when they are checked, and opens the others.

    Args:
        root: The folder.
        strict: See `ImageFolder`.
        value_range: See `ImageFolder`.
    """

    problem_type = SINGLE_LABEL

    def __init__(self, root: str | os.PathLike[str], *, strict: bool, value_range: ValueRange | None) -> None:
        self.root = Path(root)
        self.paths: list[Path] = []
        self.skipped: list[SkippedFile] = []
        self.ignored: Counter[str] = Counter()
        self.contents: Hashes | None = None
        self._strict, self._value_range = strict, value_range

    def _keep_readable(self, paths: Sequence[Path], *, check: bool, progress: Progress | None) -> list[int]:
        """Keeps the readable files and returns their numbers."""
        found = examine_files(self.root, paths, progress, self._value_range) if check else unexamined(len(paths))
        self.skipped += [SkippedFile(path=str(paths[i]), reason=reason) for i, reason in found.reasons.items()]
        if self._strict:
            refuse_skipped(self.skipped, str(self.root), strict=True)
        good = [i for i in range(len(paths)) if i not in found.reasons]
        self.paths = [paths[i] for i in good]
        self.contents = found.hashes[good] if check else None
        return good

    def image(self, index: int) -> Image.Image:
        """Returns one image, RGB."""
        return load_image(self.paths[index], value_range=self._value_range)

    def place(self, index: int) -> str:
        """Names the file."""
        return str(self.paths[index])

    def encoded(self, index: int) -> bytes:
        """Returns the content of the file."""
        return read_content(self.paths[index], str(self.paths[index]))


class ImageFolder(_Files):
    """A folder with one sub-folder of images for each class.

    Opening decodes every image once, cheaply, to find broken files before training. Files that have not changed since
    are not read again, see `examine`. A sub-folder without any image is not a class; a log message names it.

    Args:
        root: The folder.
        classes: Names and order of the classes; None uses the sorted names of the sub-folders with images.
        strict: True raises an error at the first file that is not an image and at an empty folder.
        value_range: Range of gray images with more than 8 bits, see `load_image`.
        check: False checks no image: `contents` is None, and a broken image is found when it is used.
        keep_empty: True keeps a class whose images are all broken, without images, instead of raising an error.
        progress: Called with (files checked, files in all).

    Attributes:
        problem_type: Always "single_label_classification".
        skipped: Files left out, including images outside the class folders.
        ignored: Counts of other files: hidden ones, other files outside the class folders.
        contents: (N,) uint64 hashes of the files' bytes; None without `check`.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There are no class folders, one of them has only broken images, or with `strict` a file is broken or
            a folder empty.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        strict: bool = False,
        value_range: ValueRange | None = None,
        check: bool = True,
        keep_empty: bool = False,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(root, strict=strict, value_range=value_range)
        folders = class_folders(self.root)
        note_empty(self.root, folders, strict=strict)
        self.classes = sorted(folders) if classes is None else list(classes)
        numbers = folder_numbers(self.root, folders, self.classes)
        unknown = sorted(set(folders) - set(numbers))
        if unknown:
            raise UserError(
                f"{self.root} has class folders that the training images lack: {some_of(unknown)}. "
                f"Known: {some_of(self.classes)}."
            )
        paths, labels = self._scan(numbers)
        good = self._keep_readable(paths, check=check, progress=progress)
        self.labels: Labels = np.array([labels[i] for i in good], dtype=np.int64)
        if not keep_empty:
            self._require_images(numbers)
        refuse_skipped(self.skipped, str(self.root), strict=False)

    def _scan(self, numbers: Mapping[str, int]) -> tuple[list[Path], list[int]]:
        """Returns the image files and their labels, and records all other files."""
        loose = find_loose_files(self.root)
        self.ignored += loose.ignored
        self.skipped += loose.skipped
        folders = {number: self.root / name for name, number in sorted(numbers.items(), key=lambda item: item[1])}
        paths: list[Path] = []
        labels: list[int] = []
        for label, folder in folders.items():
            found = find_image_files(folder, beside=list(folders.values()))
            paths += [Path(path) for path in found.paths if path is not None]
            labels += [label] * len(found.paths)
            self.skipped += found.skipped
            self.ignored += found.ignored
        return paths, labels

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

    def fingerprint(self) -> str:
        """Returns a hash of the names, labels and contents of all files, or of sizes if contents are unknown."""
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


class ImageFiles(_Files):
    """All images below a folder, in any sub-folders, without labels.

    Opening decodes every image once, cheaply, to find broken files before training.

    Args:
        root: The folder.
        strict: True raises an error at the first file that is not an image.
        value_range: Range of gray images with more than 8 bits, see `load_image`.
        check: False checks no image, see `ImageFolder`.
        progress: Called with (files checked, files in all).

    Attributes:
        classes: Always empty.
        labels: (N,) int64, all `NO_LABEL`.
        problem_type: Always "single_label_classification".
        paths: The files, sorted.
        contents: (N,) uint64 hashes of their bytes; None without `check`.
        skipped: Files left out.
        ignored: Counts of hidden files.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There is no usable image, or with `strict` a file is broken.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        strict: bool = False,
        value_range: ValueRange | None = None,
        check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(root, strict=strict, value_range=value_range)
        if not self.root.is_dir():
            raise FileNotFoundError(f"No folder at {self.root}. Pass a folder of images.")
        searched = find_image_files(self.root)
        self.skipped, self.ignored = searched.skipped, searched.ignored
        self._keep_readable([Path(path) for path in searched.paths if path], check=check, progress=progress)
        refuse_skipped(self.skipped, str(self.root), strict=False)
        if not self.paths:
            raise UserError(f"{self.root} holds no usable image ({', '.join(IMAGE_SUFFIXES)}). Add some.")
        self.classes: list[str] = []
        self.labels: Labels = np.full(len(self.paths), NO_LABEL, dtype=np.int64)

    def fingerprint(self) -> str:
        """Returns a hash of the names and contents of all files, or of sizes if contents are unknown."""
        if self.contents is None:
            return self.former_fingerprint()
        names = "\0".join(["without labels", *(str(path.relative_to(self.root)) for path in self.paths)])
        return hashlib.sha256(names.encode("utf-8", "surrogateescape") + self.contents.tobytes()).hexdigest()

    def former_fingerprint(self) -> str:
        """Returns a hash of the names and sizes of all files."""
        digest = hashlib.sha256(b"without labels\n")
        for path in self.paths:
            digest.update(f"{path.relative_to(self.root)}\0{path.stat().st_size}\n".encode())
        return digest.hexdigest()


def folder_numbers(root: Path, folders: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Returns the class number of each folder; leaves out folders with other names.

    Args:
        root: Folder that contains them, for messages.
        folders: Names of the folders.
        classes: Class names, in order. Folders named "0", "1", ... are positions in it if no class has such a name.

    Raises:
        ValueError: Several classes have the name of a folder.
    """
    numbers = numbers_by_name(classes)
    are_numbers = all(name.isdecimal() and int(name) < len(classes) for name in folders)
    if are_numbers and not any(name.isdecimal() for name in classes):
        numbers = {name: int(name) for name in folders}
    repeated = repeated_names(classes)
    for name in folders:
        if name in repeated:
            raise UserError(
                f"{root / name}: {several_classes(name, repeated[name], classes)} Here: name the folders 0, 1, ..."
            )
    return {name: numbers[name] for name in folders if name in numbers}


def examine_files(
    root: Path, paths: Sequence[Path], progress: Progress | None, value_range: ValueRange | None
) -> Contents:
    """Checks and hashes image files, see `examine`.

    Args:
        root: A folder above them, the key of their cache.
        paths: The files.
        progress: Called with (files checked, files in all).
        value_range: Range of gray images with more than 8 bits, see `load_image`.

    Raises:
        ValueRangeError: An image needs a `value_range`.
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


def _refuse_columns(root: Path, options: ReadOptions) -> None:
    if options.image_column or options.label_column:
        raise UserError(f"{root} is a folder of images, which has no columns. Leave image_column and label_column out.")
    if options.labelled and options.problem_type != SINGLE_LABEL:
        raise UserError(
            f"{root} is a folder of images with one class each. For {options.problem_type}, list the files and "
            "their labels in a .csv file."
        )


def _refuse_unknown_folders(folder: Path, classes: Sequence[str]) -> None:
    folders = class_folders(folder)
    unknown = sorted(set(folders) - set(folder_numbers(folder, folders, classes)))
    if unknown:
        raise UserError(
            f"{folder} has class folders that are not among the {len(classes)} classes: {some_of(unknown)}. "
            f"Known: {some_of(classes)}. Rename the folders, or remove them."
        )


def _missing_folder(root: Path, found: FolderSplits, name: str) -> FileNotFoundError:
    there = next(iter(found.splits.values()))
    return FileNotFoundError(f"{root} has {there.name}/ but no {name}/. Add it, or pass {there} to divide it.")


def _files_beside(
    root: Path, found: FolderSplits, options: ReadOptions, more: Sequence[Path], opened: Collection[str]
) -> FoundFiles:
    """Logs and counts the contents of a folder outside the opened splits."""
    loose = find_loose_files(root)
    refuse_skipped(loose.skipped, str(root), strict=options.strict)
    for name in found.splits:
        if name not in opened:
            used = found.splits[next(each for each in opened if each != "train")]
            logger.warning("Training measures on %s. Not used: %s.", used, found.splits[name])
            loose.ignored[f"in the part {name}"] += _count_images(found.splits[name])
    others = [*found.others, *(folder for folder in found.unlabelled if folder not in more)]
    if others:
        names = ", ".join(folder.name for folder in others)
        logger.warning("%s has train/, so these folders are not used: %s.", root, names)
        loose.ignored["in folders that are not used"] += sum(map(_count_images, others))
    return loose


def _count_images(folder: Path) -> int:
    return len(find_image_files(folder).paths)

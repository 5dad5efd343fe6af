"""Which files are images: the one search through folders, for every command, and the count of what it found."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deit.core.errors import UserError
from deit.core.images.reading import IMAGE_SUFFIXES, begins_like_an_image
from deit.core.model_directory import is_run_folder

logger = logging.getLogger(__name__)

# Files and folders that systems leave behind; like those whose names begin with a dot they are not looked at.
_SYSTEM_NAMES = (
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "$recycle.bin",
    "lost+found",
    "system volume information",
)
# Images of formats that are not read: a camera's raw files begin like TIFF and hold small previews.
OTHER_FORMATS = [
    ".jxl",
    ".jp2",
    ".j2k",
    ".svg",
    ".psd",
    ".xcf",
    ".ico",
    ".eps",
    ".pdf",
    ".exr",
    ".hdr",
    ".tga",
    ".dcm",
    ".nii",
    ".dng",
    ".nef",
    ".cr2",
    ".cr3",
    ".arw",
    ".raf",
    ".orf",
    ".rw2",
    ".raw",
]

HIDDEN = "hidden"
NOT_IMAGES = "not images"
UNREADABLE, MISSING = "unreadable", "missing"
_MISSING = re.compile(r"\bis not there\.$|^there is no file ")  # how every reader says it
IN_RUNS = "in folders of runs"


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file, row or shard member that is not used, and why.

    Attributes:
        path: Where it is, as a reader can find it: "photos/cat/1.png", "labels.csv line 7".
        reason: Why, to stand behind the path.
        kind: What many such files are called in a count: "unreadable", "not images", "without a label", ...
            An unreadable one that is not there becomes "missing".
    """

    path: str
    reason: str
    kind: str = UNREADABLE

    def __post_init__(self) -> None:
        if self.kind == UNREADABLE and _MISSING.search(self.reason):
            object.__setattr__(self, "kind", MISSING)


@dataclass(kw_only=True)
class FoundFiles:
    """What a search found.

    Attributes:
        paths: Image files by their names, not opened; sorted. None stands for standard input.
        skipped: Files that were meant to be used, it seems, and are not.
        ignored: Counts of files that nobody means to be used: "hidden", "in folders of runs".
    """

    paths: list[str | None] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def describe_found(used: int, skipped: Sequence[SkippedFile], ignored: Mapping[str, int], unit: str = "files") -> str:
    """Returns the line that accounts for all that was found: "Found 9 files: 7 used, 1 hidden, 1 unreadable.".

    Args:
        used: How many are used.
        skipped: What is left out, with reasons.
        ignored: Counts of what is left out without saying more.
        unit: What is counted.
    """
    counts = Counter(ignored) + Counter(file.kind for file in skipped)
    shown = "".join(f", {counts[kind]} {kind}" for kind in sorted(counts))
    return f"Found {used + counts.total()} {unit}: {used} used{shown}."


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be seen: ".cache", "._1.jpg", "__MACOSX", "Thumbs.db"."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Whether a file is called like an image and not hidden."""
    return not is_hidden(name) and name.lower().endswith(IMAGE_SUFFIXES)


def visible_folders(root: Path) -> list[Path]:
    """Returns the sorted sub-folders that are neither hidden nor of a run; links to folders are among them."""
    visible = (path for path in root.iterdir() if not is_hidden(path.name) and os.path.isdir(path))
    return sorted(path for path in visible if not is_run_folder(path))


def holds_images(root: Path) -> bool:
    """Whether a file in a folder or below it is an image, readable or not, by its name or its first bytes."""
    seen: dict[tuple[int, int], Path] = {}
    folders = [root]
    while folders:
        folder, others = folders.pop(), []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = folder / entry.name
                if not os.path.isdir(path):
                    if path.suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_FORMATS):
                        return True
                    others.append(path)
                elif not is_run_folder(path) and seen.setdefault(_identity(path), path) is path:
                    folders.append(path)
        if any(path.is_file() and _begins_like_an_image(path) for path in others):
            return True
    return False


def find_image_files(root: Path, *, beside: Collection[Path] = ()) -> FoundFiles:
    """Searches a folder and its sub-folders for images; nothing is decoded.

    Endings count in small and capital letters; a file without one is an image if it begins like one. Links to files and
    folders are followed, each folder once: not to a folder in which the link lies, or that is read for itself.

    Args:
        root: The folder.
        beside: Folders that are read for themselves, such as those of other classes.
    """
    found = FoundFiles()
    seen = {_identity(folder): folder for folder in (*beside, root)}
    folders: list[Path] = [root]
    linked: list[Path] = []
    while folders or linked:
        folder = folders.pop() if folders else linked.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if is_hidden(entry.name):
                    found.ignored[HIDDEN] += _count_files(path)
                elif not os.path.isdir(path):  # unlike the entry, it takes a link that leads to itself
                    _add_file(found, path)
                elif is_run_folder(path):
                    _pass_over_run(found, path)
                elif _is_new(path, seen):
                    (linked if entry.is_symlink() else folders).append(path)
    found.paths.sort(key=_parts)
    found.skipped.sort(key=lambda file: file.path)
    return found


def _parts(path: str | None) -> list[str]:
    """Sorts as `Path` does, in a fifth of the time."""
    return os.path.normcase(path or "").split(os.sep)


def find_loose_files(root: Path) -> FoundFiles:
    """Counts what lies in a folder beside its sub-folders: its images are left out, because they have no class."""
    found = FoundFiles()
    for path in sorted(root.iterdir()):
        if is_hidden(path.name):
            found.ignored[HIDDEN] += _count_files(path)
        elif not os.path.isdir(path):
            _add_file(found, path)
        elif is_run_folder(path):
            _pass_over_run(found, path)
    reason = "it lies beside the class folders, in none of them."
    images = [SkippedFile(path=path, reason=reason, kind="beside the folders") for path in found.paths if path]
    found.ignored[NOT_IMAGES] += len(found.skipped)  # notes and lists lie here with good reason
    return FoundFiles(skipped=images, ignored=found.ignored)


def find_images(patterns: Sequence[str], *, strict: bool = False) -> FoundFiles:
    """Resolves what a user calls images.

    Args:
        patterns: Files; folders, see `find_image_files`; patterns with * or ? of both; "-" for standard input.
        strict: Refuse what else lies in a folder.

    Returns:
        Files that were named are taken whatever they are called, and among others even where they are missing, so that
        an answer can say so; a path that is named twice is taken twice.

    Raises:
        FileNotFoundError: Nothing of it exists, a folder or pattern holds no image, or `strict` is on and something
            does not exist.
        ValueError: `strict` is on and a folder holds something that is not an image.
    """
    found = FoundFiles()
    missing: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if pattern == "-":
            found.paths.append(None)
        elif path.is_dir():
            _extend(found, path)
        elif path.exists():
            found.paths.append(pattern)
        elif matches := sorted(glob.glob(pattern, recursive=True)):
            for match in matches:
                if not os.path.isdir(match):
                    found.paths.append(match)
                elif "**" not in pattern:  # which matches what is in the folder as well
                    _extend(found, Path(match))
        elif strict or glob.has_magic(pattern):
            raise FileNotFoundError(f"No image, folder or match for {pattern!r}.")
        else:  # which keeps no other image back
            missing.append(pattern)
            found.paths.append(pattern)
    if missing and len(missing) == len(found.paths):
        raise FileNotFoundError(f"No image, folder or match for {missing[0]!r}.")
    if strict and found.skipped:
        first = found.skipped[0]
        raise UserError(f"{first.path}: {first.reason} ({len(found.skipped)} such files; strict is on.)")
    return found


def _extend(found: FoundFiles, folder: Path) -> None:
    inside = find_image_files(folder)
    if not inside.paths:
        raise FileNotFoundError(f"The folder {folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    found.paths += inside.paths
    found.skipped += inside.skipped
    found.ignored += inside.ignored


def _identity(folder: Path) -> tuple[int, int]:
    its = folder.stat()
    return its.st_dev, its.st_ino


def _is_new(folder: Path, seen: dict[tuple[int, int], Path]) -> bool:
    """Whether a folder is to be read; one that contains its own link, or was read, is not."""
    identity = _identity(folder)
    if identity in seen or folder.parent.resolve().is_relative_to(folder.resolve()):
        logger.warning("%s leads to a folder that is read already (%s): not followed.", folder, folder.resolve())
        return False
    seen[identity] = folder
    return True


def _pass_over_run(found: FoundFiles, folder: Path) -> None:
    if not found.ignored[IN_RUNS]:
        logger.warning("%s holds a run or a model: the images in it, such as curves, are not looked at.", folder)
    found.ignored[IN_RUNS] += _count_files(folder)


def _count_files(path: Path) -> int:
    """Returns the files at a path and below it."""
    if path.is_symlink() or not path.is_dir():
        return 1
    return sum(len(files) for _, _, files in os.walk(path))


def _add_file(found: FoundFiles, path: Path) -> None:
    suffix = path.suffix.lower()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if suffix in IMAGE_SUFFIXES or path.is_symlink():
            reason = "it is a link to nothing." if path.is_symlink() else f"it cannot be read ({error.strerror})."
            found.skipped.append(SkippedFile(path=str(path), reason=reason))
            return
        raise
    if suffix in IMAGE_SUFFIXES:
        found.paths.append(str(path))  # pipes and devices among them are refused where images are read
    elif not stat.S_ISREG(mode):
        found.skipped.append(SkippedFile(path=str(path), reason="it is not a regular file.", kind=NOT_IMAGES))
    elif not suffix and _begins_like_an_image(path):
        found.paths.append(str(path))
    elif suffix in OTHER_FORMATS:
        reason = f"{suffix} images are not read. Convert it to JPEG or PNG."
        found.skipped.append(SkippedFile(path=str(path), reason=reason, kind="images of other formats"))
    else:
        hint = f" (it begins like one: rename it to end in {IMAGE_SUFFIXES[0]})" if _begins_like_an_image(path) else ""
        reason = f"its ending {path.suffix!r} is not an image's{hint}."
        found.skipped.append(SkippedFile(path=str(path), reason=reason, kind=NOT_IMAGES))


def _begins_like_an_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return begins_like_an_image(file.read(16))
    except OSError:
        return False

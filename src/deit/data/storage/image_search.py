"""Searches folders for images, in the same way for every command, and counts all other files."""

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

# Files and folders of operating systems; ignored like names that start with a dot.
_SYSTEM_NAMES = (
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "$recycle.bin",
    "lost+found",
    "system volume information",
)
# Unsupported image formats. Raw files of cameras begin like TIFF but hold only small previews.
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
_MISSING = re.compile(r"\bis not there\.$|^there is no file ")  # wording of all readers
IN_RUNS = "in folders of runs"


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file, row or shard member that is not used, with the reason.

    Attributes:
        path: Its place for messages: "photos/cat/1.png", "labels.csv line 7".
        reason: Reason, worded to follow the path.
        kind: Kind of such files in counts: "unreadable", "not images", "without a label", ... An unreadable file that
            does not exist becomes "missing".
    """

    path: str
    reason: str
    kind: str = UNREADABLE

    def __post_init__(self) -> None:
        if self.kind == UNREADABLE and _MISSING.search(self.reason):
            object.__setattr__(self, "kind", MISSING)


@dataclass(kw_only=True)
class FoundFiles:
    """Result of a search.

    Attributes:
        paths: Sorted paths of files with names of images, not opened. None stands for standard input.
        folders: The folders that were searched.
        skipped: Unused files that were probably meant to be used.
        ignored: Counts of files that were not meant to be used: "hidden", "in folders of runs".
    """

    paths: list[str | None] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def describe_found(used: int, skipped: Sequence[SkippedFile], ignored: Mapping[str, int], unit: str = "files") -> str:
    """Returns the line that counts all files: "Found 9 files: 7 used, 1 hidden, 1 unreadable.".

    Args:
        used: Number of used files.
        skipped: Files that are left out, with reasons.
        ignored: Counts of files that are left out without a reason.
        unit: Name of the counted items.
    """
    counts = Counter(ignored) + Counter(file.kind for file in skipped)
    shown = "".join(f", {counts[kind]} {kind}" for kind in sorted(counts))
    return f"Found {used + counts.total()} {unit}: {used} used{shown}."


def is_hidden(name: str) -> bool:
    """Returns True for names of hidden and system files: ".cache", "._1.jpg", "__MACOSX", "Thumbs.db"."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Returns True if a name has the ending of an image and is not hidden."""
    return not is_hidden(name) and name.lower().endswith(IMAGE_SUFFIXES)


def visible_folders(root: Path) -> list[Path]:
    """Returns the sorted sub-folders, including links, that are neither hidden nor folders of runs."""
    visible = (path for path in root.iterdir() if not is_hidden(path.name) and os.path.isdir(path))
    return sorted(path for path in visible if not is_run_folder(path))


def holds_images(root: Path) -> bool:
    """Returns True if a folder or its sub-folders hold an image, readable or not, by name or first bytes."""
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
    """Searches a folder and its sub-folders for images. Decodes nothing.

    Ignores the case of endings. Takes a file without an ending for an image if it begins like one. Follows links to
    files and folders, and reads each folder once: ignores links to a folder that contains the link or is in `beside`.

    Args:
        root: The folder.
        beside: Folders that are read separately, such as those of other classes.
    """
    found = FoundFiles()
    seen = {_identity(folder): folder for folder in (*beside, root)}
    folders: list[Path] = [root]
    linked: list[Path] = []
    while folders or linked:
        folder = folders.pop() if folders else linked.pop()
        found.folders.append(str(folder))
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if is_hidden(entry.name):
                    found.ignored[HIDDEN] += _count_files(path)
                elif not os.path.isdir(path):  # unlike entry.is_dir(), accepts a link to itself
                    _add_file(found, path)
                elif is_run_folder(path):
                    _pass_over_run(found, path)
                elif _is_new(path, seen):
                    (linked if entry.is_symlink() else folders).append(path)
    found.paths.sort(key=_parts)
    found.skipped.sort(key=lambda file: file.path)
    return found


def _parts(path: str | None) -> str:
    """Returns a sort key with the order of `Path`: the separator comes before every character that a name can have.

    It is one text, because a list of parts for each of a million files needs more memory than their paths.
    """
    return os.path.normcase(path or "").replace(os.sep, "\0")


def find_loose_files(root: Path) -> FoundFiles:
    """Counts the files directly in a folder. Leaves out its images, because they have no class."""
    found = FoundFiles()
    for path in sorted(root.iterdir()):
        if is_hidden(path.name):
            found.ignored[HIDDEN] += _count_files(path)
        elif not os.path.isdir(path):
            _add_file(found, path)
        elif is_run_folder(path):
            _pass_over_run(found, path)
    reason = "it is not in a class folder."
    images = [SkippedFile(path=path, reason=reason, kind="beside the folders") for path in found.paths if path]
    found.ignored[NOT_IMAGES] += len(found.skipped)  # notes and lists are expected here
    return FoundFiles(skipped=images, ignored=found.ignored)


def find_images(patterns: Sequence[str], *, strict: bool = False) -> FoundFiles:
    """Finds the images that a user names.

    Args:
        patterns: Files; folders, see `find_image_files`; patterns with * or ?; "-" for standard input.
        strict: True refuses missing paths, and files in folders that are not images.

    Returns:
        Named files whatever their ending, including missing ones if others exist, so that the answers can name them. A
        path that is named twice occurs twice.

    Raises:
        FileNotFoundError: No path exists, a folder or pattern has no image, or with `strict` a path does not exist.
        ValueError: With `strict`, a folder holds a file that is not an image.
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
                elif "**" not in pattern:  # ** also matches the contents of the folder
                    _extend(found, Path(match))
        elif strict or glob.has_magic(pattern):
            raise FileNotFoundError(f"No image, folder or match for {pattern!r}.")
        else:  # other images are still answered
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
    found.folders += inside.folders
    found.skipped += inside.skipped
    found.ignored += inside.ignored


def _identity(folder: Path) -> tuple[int, int]:
    its = folder.stat()
    return its.st_dev, its.st_ino


def _is_new(folder: Path, seen: dict[tuple[int, int], Path]) -> bool:
    """Returns True unless a folder was read before or contains the link to itself."""
    identity = _identity(folder)
    if identity in seen or folder.parent.resolve().is_relative_to(folder.resolve()):
        logger.warning("Ignored %s: the folder %s is read already.", folder, folder.resolve())
        return False
    seen[identity] = folder
    return True


def _pass_over_run(found: FoundFiles, folder: Path) -> None:
    if not found.ignored[IN_RUNS]:
        logger.warning("Ignored the folder %s: it holds a run or a model, and its images are curves.", folder)
    found.ignored[IN_RUNS] += _count_files(folder)


def _count_files(path: Path) -> int:
    """Returns the number of files at a path and below it."""
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
        found.paths.append(str(path))  # reading refuses pipes and devices
    elif not stat.S_ISREG(mode):
        found.skipped.append(SkippedFile(path=str(path), reason="it is not a regular file.", kind=NOT_IMAGES))
    elif not suffix and _begins_like_an_image(path):
        found.paths.append(str(path))
    elif suffix in OTHER_FORMATS:
        reason = f"{suffix} images are not supported. Convert it to JPEG or PNG."
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

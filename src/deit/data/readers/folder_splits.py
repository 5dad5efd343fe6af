"""Decides which sub-folders of a folder of images are splits and which are classes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deit.core.errors import UserError
from deit.core.printable import some_of
from deit.data.labels.split_names import SPLITS, name_splits, split_of
from deit.data.storage.image_search import find_image_files, holds_images, is_image_name, visible_folders

logger = logging.getLogger(__name__)

UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


@dataclass(frozen=True, kw_only=True)
class FolderSplits:
    """A folder that is divided into splits.

    Attributes:
        splits: Folders of the existing splits by name: "train", "val", "test".
        unlabelled: Folders of images without a label.
        others: Unused folders.
    """

    splits: dict[str, Path]
    unlabelled: list[Path]
    others: list[Path]


def folder_splits(root: Path, *, labelled: bool = True) -> FolderSplits | None:
    """Returns the splits of a folder, or None if its sub-folders are classes or (not `labelled`) anything.

    Sub-folders with the name of a split (see `deit.data.labels.split_names`) are splits if they hold class folders.
    They are classes if they hold images and there are folders with other names: "test" beside "cat" and "dog".

    Args:
        root: The folder.
        labelled: True if the images must have classes.

    Raises:
        ValueError: The sub-folders are ambiguous.
    """
    folders = visible_folders(root)
    found = {split: root / name for split, name in name_splits([f.name for f in folders], str(root)).items()}
    unlabelled = [folder for folder in folders if folder.name.lower() in UNLABELLED_FOLDERS]
    others = [folder for folder in folders if folder not in (*found.values(), *unlabelled) and holds_images(folder)]
    if not found:
        if labelled:
            refuse_same_sub_folders(root)
        return None
    splits = {split: _unwrapped(folder, split) for split, folder in found.items()}
    with_classes = [split for split, folder in splits.items() if _holds_classes(folder)]
    if not labelled:
        divided = "train" in splits and len(splits) > 1 and (bool(with_classes) or not others)
        return FolderSplits(splits=splits, unlabelled=unlabelled, others=others) if divided else None
    shown = ", ".join(f"{folder.name}/" for folder in found.values())
    if others and not with_classes:
        if len(found) < len(folders):
            logger.warning("%s: %s beside other folders is taken as a class.", root, shown)
        return None
    if others and "train" not in with_classes:
        raise UserError(
            f"{root} has class folders ({others[0].name}/) and {shown} with class folders of its own. "
            "Move the others into train/, or pass one folder."
        )
    if len(splits) > 1 and not with_classes:
        raise UserError(
            f"{root} has {shown} without class folders, so the classes are unknown. Make a sub-folder "
            "for each class, list them in a .csv file, or use deit pretrain, which needs no labels."
        )
    for folder in splits.values():
        refuse_same_sub_folders(folder)
    return FolderSplits(
        splits={name: splits[name] for name in SPLITS if name in splits}, unlabelled=unlabelled, others=others
    )


def _unwrapped(folder: Path, split: str) -> Path:
    """Returns the inner folder of nested splits such as "seg_train/seg_train", which unpacked archives have."""
    while True:
        inside = visible_folders(folder)
        same = len(inside) == 1 and (inside[0].name == folder.name or split_of(inside[0].name) == split)
        if not same or _holds_images(folder) or folder.resolve() == inside[0].resolve():
            return folder
        folder = inside[0]


def _holds_images(folder: Path) -> bool:
    """Returns True if a folder holds images directly, not in sub-folders."""
    with os.scandir(folder) as entries:
        return any(is_image_name(entry.name) and os.path.isfile(entry.path) for entry in entries)


def _holds_classes(folder: Path) -> bool:
    return any(_holds_images(inside) or visible_folders(inside) for inside in visible_folders(folder))


def refuse_same_sub_folders(root: Path) -> None:
    """Refuses class folders that all hold the same sub-folders and no images, since these may be classes or splits.

    Args:
        root: A folder with class folders.

    Raises:
        ValueError: All class folders hold the same sub-folders.
    """
    folders = [folder for folder in visible_folders(root) if holds_images(folder)]
    inside = [{sub.name for sub in visible_folders(folder)} for folder in folders]
    if not folders or not all(inside) or any(_holds_images(folder) for folder in folders):
        return
    same = sorted(set.intersection(*inside))
    if not same:
        return
    if len(folders) == 1:
        hint = f"Pass {folders[0]}."
    elif all(split_of(name) for name in same):
        hint = "Put the parts outside and the classes inside: train/CLASS/, val/CLASS/."
    else:
        hint = (
            "If those are the classes, pass one of the folders, or name them train and val. If the folders above them "
            "are, put the images there, or list them in a .csv file."
        )
    which = "one folder" if len(folders) == 1 else "folders with the same sub-folders"
    raise UserError(
        f"{root} holds {which} ({some_of([f.name for f in folders], 4)}: {some_of(same, 4)}) and no images. {hint}"
    )


def class_folders(root: Path) -> list[str]:
    """Returns the sorted names of the sub-folders with images.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: No sub-folder has images.
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


def note_empty(root: Path, with_images: Sequence[str], *, strict: bool) -> None:
    """Logs the sub-folders without images, or refuses them with `strict`."""
    known = set(with_images)
    empty = [folder for folder in visible_folders(root) if folder.name not in known]
    if not empty:
        return
    what = f"No image in {_named(empty)}"
    if strict:
        raise UserError(f"{what}. Add images, or remove empty folders; strict is on.")
    logger.warning("%s: no class.", what)


def _named(folders: Sequence[Path]) -> str:
    """Names folders without images and counts their other files."""
    shown = []
    for folder in folders[:3]:
        inside = find_image_files(folder)
        ignored = inside.ignored + Counter(file.kind for file in inside.skipped)
        counts = ", ".join(f"{count} {what}" for what, count in sorted(ignored.items()) if count)
        shown.append(f"{folder} ({counts or 'empty'})")
    return ", ".join(shown) + (f" and {len(folders) - 3} more folders" if len(folders) > 3 else "")

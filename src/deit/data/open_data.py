"""Data sets for training and for measuring, whatever they are stored as."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.reading import ValueRange
from deit.core.labels import NO_LABEL
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.duplicates import note_copies, split_contents
from deit.data.labels.class_notes import note_classes
from deit.data.labels.label_columns import UNLABELLED, EncodedLabels, encode_labels
from deit.data.readers.folder_splits import FolderParts, folder_parts
from deit.data.readers.image_folder import ImageFolder, class_folders, folder_numbers
from deit.data.readers.image_stores import Part, StoredImages
from deit.data.readers.splits import DataPath, Parts, ReadOptions, find_parts
from deit.data.sources import (
    Data,
    Joined,
    Labels,
    Progress,
    SkippedFile,
    Source,
    Subset,
    check_problem_type,
    contents_of,
    place_of,
    refuse_skipped,
)
from deit.data.storage.image_search import find_image_files, find_loose_files, visible_folders
from deit.data.unlabelled import ImageFiles, WithoutLabels

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Rows: TypeAlias = npt.NDArray[np.int64]


def open_data(
    path: DataPath,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    label_separator: str = "",
    value_range: ValueRange | None = None,
    keep_unlabelled: bool = False,
    check: bool = True,
    progress: Progress | None = None,
) -> Data:
    """Opens labelled images for training.

    Keeps a division into train and val (else test), by names or by a column: see `deit.data.labels.split_names`. Holds
    out a share of everything else for validation. Decodes each image once, to find broken ones before training. Leaves
    images without a label out of training unless asked for, and refuses them in validation.

    Args:
        path: A folder with one sub-folder of images for each class, or with train/ and val/ of that form; Parquet files
            in the layout of the Hugging Face hub; a .csv or .tsv file of paths and labels; a folder that
            `datasets.save_to_disk` wrote; WebDataset shards (.tar). Files may be a list, a folder of them, or a pattern
            such as "shards-{000..009}.tar"; shards may be addresses. Or a `datasets.Dataset` or `DatasetDict`.
        val_fraction: The share kept, see `split_indices`.
        seed: Chooses which.
        strict: Raise at the first image that is broken or has no label, in place of leaving it out.
        image_column: Column of images (of paths in a table); empty finds it. In shards, the ending of the images.
        label_column: Column of labels; empty finds it. In shards "cls", "txt" or a key of the .json.
        problem_type: What the labels are for: one of `PROBLEM_TYPES`.
        label_separator: Of several classes in one text; see `deit.data.labels.cells.read_separator`. Empty finds it.
        value_range: What becomes black and white in grey images of more than 8 bits; see `load_image`.
        keep_unlabelled: Keep training images that have no label, as `NO_LABEL`, for a teacher to speak of: those of
            tables and shards, and of a folder unlabelled/ beside train/ and val/. For single classes.
        check: False looks at no image now: a broken one is found when it is used, and copies are not known as such.
        progress: Called with (images checked, images in all), part after part.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: It is none of these, empty or damaged; columns cannot be found; validation images have no label or
            classes that the training part lacks; or there is one class alone, or one with too few images to divide.
        ConnectionError: A shard cannot be fetched.
        ModuleNotFoundError: pyarrow or `datasets` is needed and not installed.
    """
    check_problem_type(problem_type)
    read = (image_column, label_column, problem_type, progress, value_range, label_separator, strict, check)
    options = ReadOptions(*read)
    keep = keep_unlabelled and problem_type == SINGLE_LABEL
    parts = find_parts(path, options)
    if isinstance(parts, Path):
        data = _open_folder(parts, val_fraction, seed, keep, options)
    elif len(parts) == 1:
        data = _divide(parts, val_fraction, seed, keep, options)
    else:
        data = _open_parts(parts, keep, options)
    _require_two_classes(data.train.classes, problem_type)
    note_classes(data)
    return _noted(data)


def _stored(
    read: Callable[[], Part],
    options: ReadOptions,
    *,
    classes: Sequence[str] | None = None,
    keep_unlabelled: bool = False,
    labels_needed: bool = False,
    numbers_fit: bool = False,
) -> StoredImages:
    """Opens the images of a part; see `StoredImages`."""
    return StoredImages(
        read(),
        problem_type=SINGLE_LABEL if options.problem_type == UNLABELLED else options.problem_type,
        classes=classes,
        strict=options.strict,
        labels_needed=labels_needed,
        keep_unlabelled=keep_unlabelled,
        numbers_fit=numbers_fit,
        value_range=options.value_range,
        separator=options.label_separator,
        check=options.check,
        progress=options.progress,
    )


def _files_opener(opener: Callable[..., T], options: ReadOptions) -> Callable[..., T]:
    """Returns what opens folders of images as they shall be read."""
    return partial(
        opener,
        strict=options.strict,
        value_range=options.value_range,
        check=options.check,
        progress=options.progress,
    )


def _divide(parts: Parts, val_fraction: float, seed: int, keep: bool, options: ReadOptions) -> Data:
    ((name, read),) = parts.items()
    if name in ("val", "test"):
        logger.warning("There is one part, %s: it is divided, for training and for measuring.", name)
    whole = _stored(read, options, keep_unlabelled=keep)
    labelled = np.flatnonzero(whole.labels != NO_LABEL) if keep else np.arange(len(whole.labels))
    division = _held_out(whole, labelled, whole.labels[labelled], whole.classes, val_fraction, seed)
    return _divided(whole, division, whole.skipped)


def _held_out(
    whole: Source, labelled: _Rows, labels: Labels, classes: Sequence[str], val_fraction: float, seed: int
) -> tuple[_Rows, _Rows]:
    """Holds out a share of the labelled images; returns the numbers of all others, and of those."""
    contents = contents_of(whole)
    own = None if contents is None else contents[labelled]
    second = labelled[split_contents(labels, classes, val_fraction, seed, own)[1]]
    first = np.setdiff1d(np.arange(len(whole.labels)), second)
    if contents is not None:  # of those held out there may be copies without a label
        first = first[~np.isin(contents[first], contents[second])]
    return first, second


def _divided(whole: Source, division: tuple[_Rows, _Rows], skipped: Sequence[SkippedFile]) -> Data:
    left_out = np.setdiff1d(np.arange(len(whole.labels)), np.concatenate(division))
    copies = [
        SkippedFile(path=place_of(whole, int(i)), reason="it is a copy of a validation image and has no label.")
        for i in left_out
    ]
    first, second = division
    return Data(train=Subset(whole, first), val=Subset(whole, second), skipped=(*skipped, *copies))


def _require_two_classes(classes: Sequence[str], problem_type: str = SINGLE_LABEL) -> None:
    if problem_type == SINGLE_LABEL and len(classes) < 2:
        raise UserError(
            f"All images are of one class, {classes[0]!r}: there is nothing to tell apart. Images without labels are "
            "for deit pretrain."
        )


def _open_parts(parts: Parts, keep: bool, options: ReadOptions) -> Data:
    _require_two_parts(parts)
    chosen = "val" if "val" in parts else "test"
    unused = [name for name in parts if name not in ("train", chosen)]
    if unused:
        logger.warning("Training measures on the part %s. Not used: %s.", chosen, ", ".join(unused))
    train = _stored(parts["train"], options, keep_unlabelled=keep)
    val = _stored(parts[chosen], options, classes=train.classes, labels_needed=True)
    return Data(train=train, val=val, skipped=(*train.skipped, *val.skipped))


def _require_two_parts(parts: Parts) -> None:
    if "train" not in parts or not {"val", "test"} & set(parts):
        raise UserError(
            f"The parts {', '.join(parts)} cannot be trained with. Name one train and one val, or pass one alone."
        )


def open_labelled(
    path: DataPath,
    *,
    part: str = "val",
    classes: Sequence[str] | None = None,
    strict: bool = False,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    label_separator: str = "",
    value_range: ValueRange | None = None,
    progress: Progress | None = None,
) -> ImageFolder | StoredImages:
    """Opens labelled images whole: for measuring the validation part, else the test part, else all.

    Args:
        path: See `open_data`.
        part: "val", as above; or "train": the training part, else all, without images that have no label.
        classes: Names and order of the classes, a model's say; labels are matched by name. Whole numbers without
            names count as positions in this list where it has words for names. None takes those of the data.
        strict: See `open_data`.
        image_column: See `open_data`.
        label_column: See `open_data`.
        problem_type: See `open_data`.
        label_separator: See `open_data`. With `classes` a text is split where all of its parts are among them.
        value_range: See `open_data`.
        progress: See `open_data`.

    Returns:
        A `Source` with the attribute `skipped`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: See `open_data`; also if a label is not among `classes`, an image to measure on has none, or of
            several parts none is the one for training.
        ConnectionError: See `open_data`.
        ModuleNotFoundError: See `open_data`.
    """
    check_problem_type(problem_type)
    if part not in ("train", "val"):
        raise UserError(f"part must be train or val. Received: {part!r}.")
    options = ReadOptions(image_column, label_column, problem_type, progress, value_range, label_separator, strict)
    parts = find_parts(path, options)
    if isinstance(parts, Path):
        return _files_opener(ImageFolder, options)(_labelled_folder(parts, part, classes), classes=classes)
    chosen = parts[_chosen_part(list(parts), part)]
    return _stored(chosen, options, classes=classes, labels_needed=part != "train", numbers_fit=True)


def _chosen_part(parts: Sequence[str], part: str) -> str:
    wanted = ("train",) if part == "train" else ("val", "test")
    if part == "train" and len(parts) > 1 and "train" not in parts:
        raise UserError(f"None of the parts {', '.join(parts)} is for training. Name one train, or pass one alone.")
    name = next(name for name in (*wanted, *parts) if name in parts)
    if part == "val":
        _tell_measured(name, parts)
    return name


def _tell_measured(chosen: str, parts: Sequence[str]) -> None:
    """Says on which part a model is measured, where that is not plain."""
    if chosen == "val" and "test" in parts:
        logger.warning("Measured on the part val. There is a part test too: pass it alone to measure on it.")
    elif chosen == "train":
        logger.warning("There is no part val or test. Measured on the part train.")


def _labelled_folder(root: Path, part: str, classes: Sequence[str] | None) -> Path:
    known = classes is not None and {folder.name for folder in visible_folders(root)} <= set(classes)
    divided = None if known else folder_parts(root)
    if divided is None:
        folder = root
    elif part == "train":
        folder = _part_folder(root, divided, "train")
    else:
        name = next((name for name in ("val", "test") if name in divided.parts), "val")
        folder = _part_folder(root, divided, name)
        _tell_measured(name, list(divided.parts))
    folders = class_folders(folder)
    classes = folders if classes is None else classes
    unknown = sorted(set(folders) - set(folder_numbers(folder, folders, classes)))
    if unknown:
        raise UserError(
            f"{folder} has class folders that are not among the {len(classes)} classes: {', '.join(unknown)}. "
            f"Known: {', '.join(classes)}. Rename the folders, or take them out."
        )
    return folder


def open_unlabelled(
    path: DataPath,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    label_separator: str = "",
    value_range: ValueRange | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Data:
    """Opens images for training without labels; where there are labels they are ignored.

    What is divided into train and val (else test) is taken so. Of everything else a share is kept: where there are
    labels the one that `open_data` keeps, so that no image is learnt from here that a classifier is measured on later.

    Args:
        path: What `open_data` takes, and more: a folder with images in any sub-folders or in none, tables without a
            column of labels, shards without labels.
        val_fraction: The share kept for validation.
        seed: Chooses which.
        strict: See `open_data`.
        image_column: See `open_data`.
        label_column: See `open_data`; used to divide the images alone, as are the next two.
        problem_type: See `open_data`.
        label_separator: See `open_data`.
        value_range: See `open_data`.
        check: See `open_data`.
        progress: See `open_data`.

    Returns:
        Sources without classes, whose labels are all `NO_LABEL`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: It is of no known kind, empty or damaged, or a column cannot be found.
        ConnectionError: See `open_data`.
        ModuleNotFoundError: See `open_data`.
    """
    options = ReadOptions(image_column, "", UNLABELLED, progress, value_range, "", strict, check)
    parts = find_parts(path, options)
    if isinstance(parts, Path):
        return _noted(_unlabelled_folder(parts, val_fraction, seed, options))
    if len(parts) > 1:
        _require_two_parts(parts)
        train, val = (_stored(parts[name], options) for name in ("train", "val" if "val" in parts else "test"))
        skipped = (*train.skipped, *val.skipped)
        return _noted(Data(train=WithoutLabels(train), val=WithoutLabels(val), skipped=skipped))
    (read,) = parts.values()
    part = read()
    whole = _stored(lambda: part, options)
    labelled = ReadOptions(image_column, label_column, problem_type, progress, value_range, label_separator)
    told = _labels_told(path, labelled, part, whole.rows)
    return _noted(_divide_unlabelled(WithoutLabels(whole), told, whole.skipped, val_fraction, seed))


def _noted(data: Data) -> Data:
    note_copies(data)
    return data


def _labels_told(path: DataPath, options: ReadOptions, part: Part, rows: _Rows) -> EncodedLabels | None:
    """Returns the labels of some rows of a part that was opened without them, or None where there are none."""
    try:
        parts = find_parts(path, options)
        assert not isinstance(parts, Path)
        (read,) = parts.values()
        labelled = read()
        found = encode_labels(
            labelled.labels, options.problem_type, place=labelled.store.place, separator=options.label_separator
        )
    except UserError:
        if options.label_column:
            raise
        return None
    if len(labelled.store) != len(part.store):
        return None
    return EncodedLabels(classes=found.classes, labels=found.labels[rows], missing=found.missing[rows])


def _divide_unlabelled(
    whole: Source, told: EncodedLabels | None, skipped: Sequence[SkippedFile], val_fraction: float, seed: int
) -> Data:
    count = len(whole.labels)
    parts = None
    if told is not None:
        labelled = np.flatnonzero(~told.missing)
        with contextlib.suppress(ValueError):  # such as a class of one image, with which nothing can be trained
            parts = _held_out(whole, labelled, told.labels[labelled], told.classes, val_fraction, seed)
    if parts is None:
        parts = split_contents(np.zeros(count, np.float32), [], val_fraction, seed, contents_of(whole))
    return _divided(whole, parts, skipped)


def _unlabelled_folder(root: Path, val_fraction: float, seed: int, options: ReadOptions) -> Data:
    open_files = _files_opener(ImageFiles, options)
    divided = folder_parts(root, labelled=False)
    if divided is not None:
        val = open_files(divided.parts[_measured(divided)])
        train = [open_files(folder) for folder in [divided.parts["train"], *divided.unlabelled]]
        return _data_of_folders(root, divided, Joined(train), val, [*train, val], options.strict)
    files = open_files(root)
    tops = [path.relative_to(root).parts[:-1][:1] for path in files.paths]  # class folders, if that is what they are
    classes = sorted({top[0] for top in tops if top})
    labels = np.array([classes.index(top[0]) if top else 0 for top in tops], dtype=np.int64)
    told = EncodedLabels(classes=classes, labels=labels, missing=np.array([not top for top in tops]))
    data = _divide_unlabelled(files, told if len(classes) > 1 else None, files.skipped, val_fraction, seed)
    return replace(data, ignored=files.ignored)


# --- folders of images --------------------------------------------------------------------------------


def _open_folder(root: Path, val_fraction: float, seed: int, keep: bool, options: ReadOptions) -> Data:
    open_folder = _files_opener(ImageFolder, options)
    divided = folder_parts(root)
    if divided is None:
        _require_two_classes(class_folders(root))
        folder = open_folder(root)
        division = split_contents(folder.labels, folder.classes, val_fraction, seed, folder.contents)
        return replace(_divided(folder, division, folder.skipped), ignored=folder.ignored)
    train_folder = _part_folder(root, divided, "train")
    _require_two_classes(class_folders(train_folder))
    val_folder = _part_folder(root, divided, _measured(divided))
    train = open_folder(train_folder)
    val = open_folder(val_folder, classes=train.classes)
    opened: list[ImageFolder | ImageFiles] = [train]
    if keep:
        open_files = _files_opener(ImageFiles, options)
        opened += [open_files(folder) for folder in divided.unlabelled]
    else:
        divided = replace(divided, others=[*divided.others, *divided.unlabelled])
    return _data_of_folders(root, divided, Joined(opened), val, [*opened, val], options.strict)


def _measured(divided: FolderParts) -> str:
    """Returns the part to measure on during training: val, else test."""
    return "test" if "val" not in divided.parts and "test" in divided.parts else "val"


def _part_folder(root: Path, divided: FolderParts, part: str) -> Path:
    if part in divided.parts:
        return divided.parts[part]
    there = next(iter(divided.parts.values()))
    raise FileNotFoundError(f"{root} has {there.name}/ but no {part}/. Add it, or pass {there} to have it divided.")


def _data_of_folders(
    root: Path,
    divided: FolderParts,
    train: Joined,
    val: ImageFolder | ImageFiles,
    opened: Sequence[ImageFolder | ImageFiles],
    strict: bool,
) -> Data:
    """Joins what was opened, and accounts for all else that is in the folder."""
    loose = find_loose_files(root)
    refuse_skipped(loose.skipped, str(root), strict=strict)
    ignored = loose.ignored
    for source in opened:
        ignored += source.ignored
    if _measured(divided) == "val" and "test" in divided.parts:
        logger.warning("Training measures on %s. Not used: %s.", divided.parts["val"], divided.parts["test"])
        ignored["in the part test"] += _count_images(divided.parts["test"])
    if divided.others:
        names = ", ".join(folder.name for folder in divided.others)
        logger.warning("%s has train/, so these folders are not used: %s.", root, names)
        ignored["in folders that are not used"] += sum(map(_count_images, divided.others))
    skipped = [*(file for source in opened for file in source.skipped), *loose.skipped]
    return Data(train=train, val=val, skipped=tuple(skipped), ignored=ignored)


def _count_images(folder: Path) -> int:
    return len(find_image_files(folder).paths)

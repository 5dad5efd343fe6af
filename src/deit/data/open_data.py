"""Opens data sets for training and for evaluation, whatever they are stored as."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.reading import ValueRange
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.divisions import labelled_numbers
from deit.data.duplicates import note_copies, split_contents
from deit.data.exclusions import Corrected, ExclusionList
from deit.data.find_splits import find_splits
from deit.data.labels.class_notes import note_classes, require_two_classes
from deit.data.labels.label_columns import UNLABELLED, EncodedLabels
from deit.data.readers.reader import DataPath, OpenedSource, ReadOptions, Splits
from deit.data.sources import (
    Data,
    HeldOut,
    Labels,
    Progress,
    SkippedFile,
    Source,
    Subset,
    check_problem_type,
    contents_of,
    place_of,
)

logger = logging.getLogger(__name__)

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
    exclude: str | os.PathLike[str] | ExclusionList | None = None,
    progress: Progress | None = None,
) -> Data:
    """Opens labeled images for training.

    Keeps a division into train and val (else test), by names or by a column; see `deit.data.labels.split_names`. Holds
    out a share of everything else for validation. Decodes each image once, to find broken ones before training. Leaves
    training images without a label out unless asked for, and refuses them in validation.

    Args:
        path: A folder with one sub-folder of images for each class, or with train/ and val/ of that form; Parquet files
            in the layout of the Hugging Face hub; a .csv or .tsv file of paths and labels; a folder that
            `datasets.save_to_disk` wrote; WebDataset shards (.tar). Files may be a list, a folder of them, or a pattern
            such as "shards-{000..009}.tar"; shards may be addresses. Or a `datasets.Dataset` or `DatasetDict`.
        val_fraction: Share held out for validation; see `split_indices`.
        seed: Random seed of that choice.
        strict: Raise at the first image that is broken or has no label, instead of leaving it out.
        image_column: Column of images (of paths in a table); empty finds it. In shards, the ending of the images.
        label_column: Column of labels; empty finds it. In shards "cls", "txt" or a key of the .json.
        problem_type: Type of the labels: one of `PROBLEM_TYPES`.
        label_separator: Separator of several classes in one text, see `read_separator`; empty finds it.
        value_range: Values that become black and white in gray images of more than 8 bits; see `load_image`.
        keep_unlabelled: Keep training images without a label, as `NO_LABEL`, for a teacher to label: those of tables,
            shards, and a folder unlabelled/ beside train/ and val/. For single classes.
        check: Decode every image now. False finds broken images only when they are used, and finds no copies.
        exclude: `fix.csv` of `deit inspect`: leaves out images, or changes labels, before anything is divided.
        progress: Called with (images checked, images in all), split after split.

    Raises:
        FileNotFoundError: There is nothing at the path.
        UserError: The data is of no known kind, empty or damaged; columns cannot be found; validation images have no
            label or an unknown class; or there is a single class, or one with too few images to divide.
        ConnectionError: A shard cannot be fetched.
        ModuleNotFoundError: pyarrow or `datasets` is needed and not installed.
    """
    check_problem_type(problem_type)
    keep = keep_unlabelled and problem_type == SINGLE_LABEL
    options = _options(image_column, label_column, problem_type, label_separator, value_range, strict, check, progress)
    splits = find_splits(path, replace(options, keep_unlabelled=keep, for_training=True))
    listed = _listed(exclude, path)
    data = _open_pair(splits, listed) if _has_several(splits) else _divide(splits, val_fraction, seed, listed)
    data = _with_exclusion(data, listed, splits)
    if problem_type == SINGLE_LABEL:
        require_two_classes(data.train.classes)
    note_classes(data)
    note_copies(data)
    return data


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
) -> OpenedSource:
    """Opens the split of labeled images to measure on: val, else test, else all images.

    Args:
        path: See `open_data`.
        part: "val" as above; "train" for the training split, else all images, without those that have no label.
        classes: Names and order of the classes, such as a model's; labels are matched by name. Whole numbers count as
            positions in this list if its names are words. None takes the classes of the data.
        strict: See `open_data`.
        image_column: See `open_data`.
        label_column: See `open_data`.
        problem_type: See `open_data`.
        label_separator: See `open_data`. With `classes`, a text is separated if all pieces are classes.
        value_range: See `open_data`.
        progress: See `open_data`.

    Returns:
        A `Source` with the attribute `skipped`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        UserError: See `open_data`; also if a label is not among `classes`, an image to measure on has no label, or
            no split is for training.
        ConnectionError: See `open_data`.
        ModuleNotFoundError: See `open_data`.
    """
    check_problem_type(problem_type)
    if part not in ("train", "val"):
        raise UserError(f"part must be train or val. Received: {part!r}.")
    columns = (image_column, label_column, problem_type, label_separator)
    options = _options(*columns, value_range, strict, True, progress)
    splits = find_splits(path, replace(options, classes=classes))
    name = _chosen(splits, part)
    if part == "val":
        _tell_measured(name, list(splits.named))
    return splits.named[name].open(labels_needed=part == "val")


def open_training(
    path: DataPath,
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    value_range: ValueRange | None = None,
    progress: Progress | None = None,
) -> OpenedSource | None:
    """Opens the training split of data that has others too; returns None for data without splits.

    Arguments and errors are those of `open_labelled`.
    """
    check_problem_type(problem_type)
    options = _options(image_column, label_column, problem_type, "", value_range, strict, True, progress)
    splits = find_splits(path, replace(options, classes=classes))
    return splits.named["train"].open() if "train" in splits.named and len(splits.named) > 1 else None


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
    exclude: str | os.PathLike[str] | ExclusionList | None = None,
    progress: Progress | None = None,
) -> Data:
    """Opens images for training without labels, and ignores labels that are there.

    Keeps a division into train and val (else test). Holds out a share of everything else: if there are labels, the same
    images as `open_data`, so that no classifier is measured on images that this training used.

    Args:
        path: What `open_data` takes, and more: a folder with images in any sub-folders or in none, tables without a
            column of labels, shards without labels.
        val_fraction: See `open_data`.
        seed: See `open_data`.
        strict: See `open_data`.
        image_column: See `open_data`.
        label_column: See `open_data`. Only the division uses labels: this option and the next two.
        problem_type: See `open_data`.
        label_separator: See `open_data`.
        value_range: See `open_data`.
        check: See `open_data`.
        exclude: See `open_data`; labels are ignored.
        progress: See `open_data`.

    Returns:
        Sources without classes, whose labels are all `NO_LABEL`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        UserError: The data is of no known kind, empty or damaged, or a column cannot be found.
        ConnectionError: See `open_data`.
        ModuleNotFoundError: See `open_data`.
    """
    options = _options(image_column, "", UNLABELLED, "", value_range, strict, check, progress)
    splits = find_splits(path, options)
    listed = _listed(exclude, path)
    if _has_several(splits):
        data = _open_pair(splits, listed)
    else:
        ((name, split),) = splits.named.items()
        whole = split.open()
        asked = replace(options, label_column=label_column, problem_type=problem_type, label_separator=label_separator)
        told = split.labels_of(whole, asked)
        whole = whole if listed is None else listed.apply(whole, name)
        data = _divide_unlabelled(whole, _told_of(told, whole), val_fraction, seed)
    data = _with_exclusion(data, listed, splits)
    note_copies(data)
    return data


def _with_exclusion(data: Data, listed: ExclusionList | None, splits: Splits) -> Data:
    return data if listed is None else replace(data, exclusion=listed.finish(tuple(splits.named)))


def _listed(exclude: str | os.PathLike[str] | ExclusionList | None, path: DataPath) -> ExclusionList | None:
    return exclude if exclude is None or isinstance(exclude, ExclusionList) else ExclusionList(exclude, path)


def _told_of(told: EncodedLabels | None, kept: OpenedSource) -> EncodedLabels | None:
    """Returns the labels of the images that a list kept."""
    if told is None or not isinstance(kept, Corrected):
        return told
    return replace(told, labels=told.labels[kept.indices], missing=told.missing[kept.indices])


def _options(
    image_column: str,
    label_column: str,
    problem_type: str,
    label_separator: str,
    value_range: ValueRange | None,
    strict: bool,
    check: bool,
    progress: Progress | None,
) -> ReadOptions:
    return ReadOptions(
        image_column=image_column,
        label_column=label_column,
        problem_type=problem_type,
        label_separator=label_separator,
        value_range=value_range,
        strict=strict,
        check=check,
        progress=progress,
    )


# --- data that comes in splits ------------------------------------------------------------------------


def _has_several(splits: Splits) -> bool:
    return splits.complete or len(splits.named) > 1


def _open_pair(splits: Splits, listed: ExclusionList | None) -> Data:
    """Opens the split to learn from and the one to measure on: val, else test."""
    measured = "test" if "test" in splits.named and "val" not in splits.named else "val"
    for name in ("train", measured):
        if name not in splits.named:
            raise splits.missing(splits, name)
    unused = [name for name in splits.named if name not in ("train", measured)]
    if unused and not splits.complete:
        logger.warning("Training measures on the part %s. Not used: %s.", measured, ", ".join(unused))
    train = splits.named["train"].open()
    val = splits.named[measured].open(classes=train.classes, labels_needed=True)
    if listed is not None:
        train, val = listed.apply(train, "train"), listed.apply(val, measured)
    beside = splits.beside(("train", measured))
    ignored = Counter(train.ignored) + Counter(val.ignored) + beside.ignored
    return Data(train=train, val=val, skipped=(*train.skipped, *val.skipped, *beside.skipped), ignored=ignored)


def _chosen(splits: Splits, part: str) -> str:
    """Returns the name of the split for a part that `open_labelled` was asked for."""
    names = list(splits.named)
    wanted = ("train",) if part == "train" else ("val", "test")
    for name in wanted:
        if name in names:
            return name
    if splits.complete:
        raise splits.missing(splits, wanted[0])
    if part == "train" and len(names) > 1:
        raise UserError(f"None of the parts {', '.join(names)} is for training. Name one train, or pass one alone.")
    return names[0]


def _tell_measured(chosen: str, names: Sequence[str]) -> None:
    """Logs which split a model is measured on, unless it is obvious."""
    if chosen == "val" and "test" in names:
        logger.warning("Measured on the part val. There is a part test too: pass it alone to measure on it.")
    elif chosen == "train":
        logger.warning("There is no part val or test. Measured on the part train.")


# --- data that is divided here ------------------------------------------------------------------------


def _divide(splits: Splits, val_fraction: float, seed: int, listed: ExclusionList | None) -> Data:
    ((name, split),) = splits.named.items()
    if name in ("val", "test"):
        logger.warning("There is one part, %s: it is divided, for training and for measuring.", name)
    whole = split.open()
    if listed is not None:
        whole = listed.apply(whole, name)
    labelled = labelled_numbers(whole.labels)
    division = _held_out(whole, labelled, whole.labels[labelled], whole.classes, val_fraction, seed)
    return _divided(whole, division, HeldOut(val_fraction=val_fraction, seed=seed))


def _held_out(
    whole: Source, labelled: _Rows, labels: Labels, classes: Sequence[str], val_fraction: float, seed: int
) -> tuple[_Rows, _Rows]:
    """Holds out a share of the labeled images. Returns the numbers of all others, and of those held out."""
    contents = contents_of(whole)
    own = None if contents is None else contents[labelled]
    second = labelled[split_contents(labels, classes, val_fraction, seed, own)[1]]
    first = np.setdiff1d(np.arange(len(whole.labels)), second)
    if contents is not None:  # removes unlabeled copies of held-out images
        first = first[~np.isin(contents[first], contents[second])]
    return first, second


def _divided(whole: OpenedSource, division: tuple[_Rows, _Rows], held_out: HeldOut) -> Data:
    left_out = np.setdiff1d(np.arange(len(whole.labels)), np.concatenate(division))
    copies = [
        SkippedFile(path=place_of(whole, int(i)), reason="it is a copy of a validation image and has no label.")
        for i in left_out
    ]
    first, second = division
    return Data(
        train=Subset(whole, first),
        val=Subset(whole, second),
        held_out=held_out,
        skipped=(*whole.skipped, *copies),
        ignored=Counter(whole.ignored),
    )


def _divide_unlabelled(whole: OpenedSource, told: EncodedLabels | None, val_fraction: float, seed: int) -> Data:
    """Holds out the images that `open_data` holds out if there are labels, else any images."""
    division = None
    if told is not None:
        labelled = np.flatnonzero(~told.missing)
        with contextlib.suppress(UserError):  # such as a class of one image
            division = _held_out(whole, labelled, told.labels[labelled], told.classes, val_fraction, seed)
    if division is None:
        no_labels = np.zeros(len(whole.labels), np.float32)
        division = split_contents(no_labels, [], val_fraction, seed, contents_of(whole))
    return _divided(whole, division, HeldOut(val_fraction=val_fraction, seed=seed))

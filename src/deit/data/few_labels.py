"""Reduces the number of labels: chooses the images that keep them."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.labels import NO_LABEL
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.divisions import labelled_numbers
from deit.data.duplicates import first_copies
from deit.data.labels.class_notes import note_empty_classes
from deit.data.sources import Data, Derived, Labels, Source, Subset, contents_of
from deit.data.storage.contents import Hashes

_LIMIT_KEY = 5  # first number of the random key of `limited`


class PartlyLabelled(Derived):
    """Another source in which only some images keep their labels.

    Args:
        source: The other source.
        labelled: Numbers of the images that keep their label; all other labels become `NO_LABEL`.
    """

    def __init__(self, source: Source, labelled: npt.NDArray[np.integer]) -> None:
        super().__init__(source)
        self.labelled = labelled
        self.labels: Labels = np.full(len(source.labels), NO_LABEL, dtype=np.int64)
        self.labels[labelled] = source.labels[labelled]

    def _fingerprint(self, of_source: str) -> str:
        digest = hashlib.sha256(b"partly labelled\n" + of_source.encode())
        return hashlib.sha256(digest.digest() + self.labelled.tobytes()).hexdigest()


def count_unlabelled(source: Source) -> int:
    """Returns the number of images without a label (`NO_LABEL`); 0 for several classes and regression."""
    return int((source.labels == NO_LABEL).sum()) if source.problem_type == SINGLE_LABEL else 0


def labelled_again(source: Source, share: float) -> npt.NDArray[np.int64]:
    """Returns the labeled images to repeat, so that batches have a steady share of them.

    If 1 % of the images had labels and each were shown once, most batches would have at most one labeled image, and its
    loss would weigh as much as that of all others together.

    Args:
        source: Images of which some have a label.
        share: Minimum share of labeled images among the images shown; below 1.

    Returns:
        Numbers of images, each once per additional showing; empty if enough images have labels. See `StepOrder`.
    """
    unlabelled = count_unlabelled(source)
    labelled = np.flatnonzero(source.labels != NO_LABEL) if unlabelled else np.zeros(0, np.int64)
    if not len(labelled):
        return labelled
    times = math.ceil(share / (1 - share) * unlabelled / len(labelled))
    return np.tile(labelled, max(times - 1, 0))


def choose_labelled(
    source: Source, *, labels_per_class: int = 0, label_fraction: float = 1.0, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Chooses the images that keep their labels: in each class the first of a random order.

    The order is a function of seed and class, so a smaller choice is part of a larger one. Copies of an image come last
    in it, so that ten labels belong to ten different images.

    Args:
        source: Images of one class each.
        labels_per_class: Number of images of each class; 0 uses `label_fraction`.
        label_fraction: Share of each class, rounded.
        seed: Random seed of the choice.

    Returns:
        Sorted numbers of the chosen images.

    Raises:
        ValueError: The labels are not single classes, a class has too few images, or the share leaves a class without
            images.
    """
    if source.problem_type != SINGLE_LABEL:
        raise UserError(
            f"Fewer labels need images with one class each. Received: data.problem_type={source.problem_type}."
        )
    chosen = []
    for label, name in enumerate(source.classes):
        members = np.flatnonzero(source.labels == label)
        if not len(members):  # a class without images
            continue
        count = labels_per_class or round(len(members) * label_fraction)
        if count > len(members):
            raise UserError(
                f"Class {name!r} has {len(members)} training image(s), fewer than the {count} requested labels. "
                "Pass a smaller number."
            )
        if not count:
            least = math.ceil(1000 / len(members)) / 10
            raise UserError(
                f"{100 * label_fraction:g}% of the labels leave class {name!r} without labels: it has {len(members)} "
                f"training image(s). Pass at least {least:g}%, or a number for each class."
            )
        order = np.random.default_rng((seed, label)).permutation(members)
        chosen.append(_copies_last(order, contents_of(source))[:count])
    return np.sort(np.concatenate(chosen))


def _copies_last(order: npt.NDArray[np.int64], contents: Hashes | None) -> npt.NDArray[np.int64]:
    if contents is None:
        return order
    is_copy = first_copies(contents[order]) != np.arange(len(order))
    return np.concatenate([order[~is_copy], order[is_copy]])


def with_fewer_labels(
    data: Data, *, labels_per_class: int = 0, label_fraction: float = 1.0, seed: int = 0, keep_others: bool = False
) -> Data:
    """Returns the data with fewer labeled training images. Leaves validation images unchanged.

    Args:
        data: Training and validation images.
        labels_per_class: See `choose_labelled`.
        label_fraction: See `choose_labelled`.
        seed: See `choose_labelled`.
        keep_others: True keeps the other images without labels, for a teacher to label.

    Raises:
        ValueError: See `choose_labelled`.
    """
    if not labels_per_class and label_fraction == 1:
        return data
    chosen = choose_labelled(data.train, labels_per_class=labels_per_class, label_fraction=label_fraction, seed=seed)
    train = PartlyLabelled(data.train, chosen) if keep_others else Subset(data.train, chosen)
    return dataclasses.replace(data, train=train)


def limited(data: Data, *, train: int = 0, val: int = 0) -> Data:
    """Returns the data with a limited number of images, chosen at random with a fixed seed.

    Args:
        data: All images.
        train: Maximum number of training images; 0 for all.
        val: Maximum number of validation images; 0 for all.
    """
    fewer = dataclasses.replace(data, train=_limited(data.train, train), val=_limited(data.val, val))
    if len(fewer.train.labels) < len(data.train.labels):
        note_empty_classes(fewer)
    return fewer


def with_fewer_unlabelled(data: Data, count: int) -> Data:
    """Returns the data with at most so many training images without a label, chosen at random with a fixed seed.

    Args:
        data: All images.
        count: Maximum number; 0 for all.
    """
    if not count or count >= count_unlabelled(data.train):
        return data
    others = np.flatnonzero(data.train.labels == NO_LABEL)
    kept = np.concatenate([labelled_numbers(data.train.labels), _chosen(others, count)])
    return dataclasses.replace(data, train=Subset(data.train, np.sort(kept)))


def _limited(source: Source, count: int) -> Source:
    if not count or count >= len(source.labels):
        return source
    return Subset(source, _chosen(np.arange(len(source.labels)), count))


def _chosen(numbers: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.integer]:
    """Returns so many of the numbers in their order, chosen at random."""
    return np.sort(np.random.default_rng(_LIMIT_KEY).permutation(numbers)[:count])

"""Finds copies of images, copies with contradicting labels, and copies on both sides of a division."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.divisions import labelled_numbers, split_indices
from deit.data.sources import Data, Labels, Source, contents_of, place_of
from deit.data.storage.contents import Hashes

logger = logging.getLogger(__name__)

_EXAMPLES = 3  # of contradicting labels


def first_copies(contents: Hashes) -> npt.NDArray[np.int64]:
    """Returns for each image the number of the first image with the same content, which may be its own.

    Args:
        contents: (N,) uint64.

    Examples:
        >>> first_copies(np.array([7, 5, 7], np.uint64)).tolist()
        [0, 1, 0]
    """
    _, first, where = np.unique(contents, return_index=True, return_inverse=True)
    copies: npt.NDArray[np.int64] = first[where].astype(np.int64)
    return copies


def split_contents(
    labels: Labels, classes: Sequence[str], val_fraction: float, seed: int, contents: Hashes | None
) -> tuple[Labels, Labels]:
    """Divides images as `split_indices` does, but keeps all copies of an image on one side.

    Divides the first copies by their labels; the other copies follow. Without copies the division is exactly that of
    `split_indices`.

    Args:
        labels: See `split_indices`.
        classes: See `split_indices`.
        val_fraction: See `split_indices`; a share of the different images.
        seed: See `split_indices`.
        contents: (N,) uint64 hashes; None treats all images as different.

    Raises:
        ValueError: See `split_indices`; also if all images of a class are copies of one.
    """
    if contents is None:
        return split_indices(labels, classes, val_fraction, seed)
    first = first_copies(contents)
    different = np.unique(first)
    if len(different) == len(labels):
        return split_indices(labels, classes, val_fraction, seed)
    if np.issubdtype(labels.dtype, np.integer):
        of_class = np.bincount(labels[different], minlength=len(classes))
        in_all = np.bincount(labels, minlength=len(classes))
        for name, count, copies in zip(classes, of_class, in_all, strict=True):
            if count == 1 and copies > 1:
                raise UserError(
                    f"Class {name!r} has {copies} copies of 1 image; dividing it needs at least 2 different ones. "
                    "Add some."
                )
    _, second = split_indices(labels[different], classes, val_fraction, seed)
    in_second = np.isin(first, different[second])
    return np.flatnonzero(~in_second), np.flatnonzero(in_second)


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Two copies of one image with different labels.

    Attributes:
        first: Place and label of one copy.
        second: Place and label of the other copy.
    """

    first: str
    second: str


def contradictions(sources: Sequence[Source]) -> list[Contradiction]:
    """Returns the copies, within and between sources, whose label differs from that of the first copy.

    Args:
        sources: At least one, with the same classes. Images without a label are not compared.
    """
    hashes = [contents_of(source) for source in sources]
    if any(part is None for part in hashes):
        return []
    contents = np.concatenate([part for part in hashes if part is not None])
    labels = np.concatenate([source.labels for source in sources])
    labelled = labelled_numbers(labels)
    first = labelled[first_copies(contents[labelled])]
    other = labels[labelled] != labels[first]
    places = labelled[other if other.ndim == 1 else other.any(axis=1)]
    starts = np.cumsum([0, *(len(source.labels) for source in sources)])

    def shown(number: int) -> str:
        part = int(np.searchsorted(starts, number, side="right")) - 1
        source, index = sources[part], number - int(starts[part])
        return f"{place_of(source, index)} ({label_text(source, source.labels[index])})"

    firsts = dict(zip(labelled.tolist(), first.tolist(), strict=True))
    return [Contradiction(first=shown(firsts[i]), second=shown(i)) for i in places.tolist()]


def label_text(source: Source, label: Any) -> str:
    """Returns the label of an image of a source as text: a class, several joined by "|", "none", or a number."""
    if source.problem_type == SINGLE_LABEL:
        return source.classes[int(label)]
    if np.ndim(label):
        return "|".join(source.classes[i] for i in np.flatnonzero(label)) or "none"
    return f"{float(label):g}"


def describe_contradictions(found: Sequence[Contradiction]) -> str:
    """Returns a sentence with the number of contradictions and the first of them."""
    examples = "; ".join(f"{each.first} and {each.second}" for each in found[:_EXAMPLES])
    more = "; ..." if len(found) > _EXAMPLES else ""
    return f"Copies of an image whose labels contradict each other: {len(found)}. {examples}{more}."


def count_shared(images: Source, others: Source) -> int:
    """Returns the number of images with a copy among others; 0 if the contents of either are unknown."""
    mine, theirs = contents_of(images), contents_of(others)
    return 0 if mine is None or theirs is None else int(np.isin(mine, theirs).sum())


def note_copies(data: Data) -> None:
    """Logs copies with contradicting labels, copies on both sides, and the number of copies."""
    found = contradictions((data.train, data.val))
    if found:
        logger.warning("%s Correct the labels, or leave those images out.", describe_contradictions(found))
    shared = count_shared(data.val, data.train)
    if shared:
        logger.warning(
            "%d of %d validation images are training images as well: their scores say nothing about new images.",
            shared,
            len(data.val.labels),
        )
    train, val = contents_of(data.train), contents_of(data.val)
    if train is None or val is None:
        return
    copies = sum(len(part) - len(np.unique(part)) for part in (train, val))
    if copies:
        logger.warning(
            "%d of %d images are copies of others on the same side.",
            copies,
            len(data.train.labels) + len(data.val.labels),
        )

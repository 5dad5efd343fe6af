"""Divides images into folds: classes in equal shares, all copies of an image in one fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.data.divisions import labelled_numbers
from deit.data.duplicates import first_copies
from deit.data.sources import Labels
from deit.data.storage.contents import Hashes

NO_FOLD = -1  # of an image that is never held out, since it has no label


def fold_numbers(
    labels: Labels, classes: Sequence[str], folds: int, seed: int, contents: Hashes | None = None
) -> npt.NDArray[np.int64]:
    """Returns the fold of each image, (N,) from 0; `NO_FOLD` for images without a label.

    Single classes are dealt out one after the other, so that folds differ by at most one image of a class, and by few
    in all. Of several classes the rarest are dealt out first, each to the folds with the fewest of it (after Sechidis
    et al. 2011). Numbers of a regression are dealt out in their order. The first of several copies of an image is dealt
    out, and the others follow it.

    Args:
        labels: See `Source.labels`.
        classes: Their names, for messages.
        folds: How many.
        seed: Chooses among equals.
        contents: (N,) uint64 hashes; None takes all images to be different.

    Raises:
        ValueError: There are fewer than two folds, or a class has fewer different images than folds.
    """
    if folds < 2:
        raise UserError(f"folds must be at least 2: each is held out in turn. Received: {folds}.")
    labelled = labelled_numbers(labels)
    first = np.arange(len(labelled)) if contents is None else first_copies(contents[labelled])
    different = np.unique(first)
    own = labels[labelled[different]]
    _check(own, classes, folds)
    random = np.random.default_rng((seed, folds))
    dealt = np.zeros(len(labelled), np.int64)
    dealt[different] = _by_classes(own > 0, folds, random) if own.ndim == 2 else _in_turn(own, folds, random)
    numbers = np.full(len(labels), NO_FOLD, np.int64)
    numbers[labelled] = dealt[first]
    return numbers


def _check(labels: Labels, classes: Sequence[str], folds: int) -> None:
    if len(labels) < folds:
        raise UserError(f"{len(labels)} different images cannot be divided into {folds} folds. Pass fewer folds.")
    if labels.ndim == 2:
        counts = (labels > 0).sum(0)
    elif np.issubdtype(labels.dtype, np.integer):
        counts = np.bincount(labels, minlength=len(classes))
    else:
        return
    few = [i for i in np.argsort(counts, kind="stable") if 0 < counts[i] < folds]
    if few:
        name, count = classes[few[0]], int(counts[few[0]])
        most = f"Pass folds={count} or fewer, or add images" if count > 1 else "Add images, or leave the class out"
        raise UserError(
            f"Class {name!r} has {count} different image(s), fewer than the {folds} folds, and each fold needs one of "
            f"each class. {most}."
        )


def _in_turn(labels: Labels, folds: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Deals out images in the order of their labels, equals in a random order: neighbors come into different folds."""
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    turns = np.tile(np.arange(folds), -(-len(labels) // folds)).reshape(-1, folds)
    if not np.issubdtype(labels.dtype, np.integer):  # else one fold would get the smallest of all neighbors
        turns = random.permuted(turns, axis=1)
    numbers = np.zeros(len(labels), np.int64)
    numbers[order] = turns.reshape(-1)[: len(labels)]
    return numbers


def _by_classes(has: npt.NDArray[np.bool_], folds: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Deals out images of several classes, those of the rarest first, each to the fold with the fewest of the class."""
    numbers = np.full(len(has), NO_FOLD, np.int64)
    of_class, in_all = np.zeros((folds, has.shape[1]), np.int64), np.zeros(folds, np.int64)
    order = random.permutation(len(has))
    for label in [*np.argsort(has.sum(0), kind="stable"), None]:
        waiting = order[numbers[order] == NO_FOLD]
        for image in waiting if label is None else waiting[has[waiting, label]]:
            counts = in_all if label is None else of_class[:, label] * (len(has) + 1) + in_all
            fold = int(counts.argmin())
            numbers[image] = fold
            of_class[fold] += has[image]
            in_all[fold] += 1
    return numbers

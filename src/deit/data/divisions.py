"""Divides images into training and validation images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.labels import NO_LABEL
from deit.data.sources import Labels


def labelled_numbers(labels: Labels) -> npt.NDArray[np.int64]:
    """Returns the numbers of the images that have a label: all of them, where labels are not single classes."""
    return np.flatnonzero(labels != NO_LABEL) if np.issubdtype(labels.dtype, np.integer) else np.arange(len(labels))


def split_indices(labels: Labels, classes: Sequence[str], val_fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Divides images into two groups: single classes each by the same share, all others at random.

    Args:
        labels: (N,) true classes; (N, K) zeros and ones; or (N,) float32 numbers of a regression.
        classes: Names of the classes, for messages.
        val_fraction: Share of the second group, between 0 and 1. Each group gets at least one image; of single classes,
            one of each class; of several classes, one of each class with two images or more.
        seed: Random seed of the choice.

    Returns:
        Sorted numbers of the first and of the second group.

    Raises:
        ValueError: The share is not between 0 and 1, or there are fewer than two images, or one of a class.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must lie between 0 and 1. Received: {val_fraction}.")
    random = np.random.default_rng(seed)
    if not np.issubdtype(labels.dtype, np.integer):
        return _split_at_random(labels, val_fraction, random)
    first, second = [], []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise UserError(f"Class {name!r} has 1 image(s); dividing it needs at least 2. Add some.")
        if not len(members):  # a class without images
            continue
        members = random.permutation(members)
        count = _share(len(members), val_fraction)
        second.append(members[:count])
        first.append(members[count:])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _share(count: int, fraction: float) -> int:
    return min(max(round(count * fraction), 1), count - 1)


def _split_at_random(labels: Labels, val_fraction: float, random: np.random.Generator) -> tuple[Labels, Labels]:
    if len(labels) < 2:
        raise UserError(f"{len(labels)} image(s) cannot be divided for validation. Add some.")
    order = random.permutation(len(labels))
    in_second = np.zeros(len(labels), dtype=bool)
    in_second[order[: _share(len(labels), val_fraction)]] = True
    if labels.ndim == 2:
        _bring_classes_to_both_sides(labels > 0, in_second, order)
    return np.flatnonzero(~in_second), np.flatnonzero(in_second)


def _bring_classes_to_both_sides(
    has: npt.NDArray[np.bool_], in_second: npt.NDArray[np.bool_], order: npt.NDArray[np.integer]
) -> None:
    """Moves an image of each class that is only on one side, unless that removes another class from a side."""
    for label in np.argsort(has.sum(0), kind="stable"):  # rare classes first, because they have the fewest candidates
        for side in (False, True):
            members = order[has[order, label]]
            if len(members) < 2 or (in_second[members] == side).any():
                continue
            for image in members:
                left = has[(in_second != side) & (np.arange(len(has)) != image)].any(0)
                if left[has[image] & (has.sum(0) > 1)].all():
                    in_second[image] = side
                    break

"""Finds likely wrong labels by confident learning (Northcutt et al. 2021, arXiv 1911.00068), in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class WrongLabels:
    """Images whose label is likely wrong, the likeliest first.

    Attributes:
        numbers: (M,) rows.
        suggested: (M,) the class that the probabilities name with confidence.
        margins: (M,) probability of the label less that of the likeliest other class, from -1 up; sorted.
    """

    numbers: Numbers
    suggested: Numbers
    margins: Floats


def wrong_labels(probabilities: Floats, labels: Numbers) -> WrongLabels:
    """Names images whose label contradicts what is said of them with confidence.

    A class is named with confidence if its probability is at least the mean that images with that label have (equation
    2 of the paper); of several such classes the likeliest counts. Where it is not the label, the label is likely
    wrong. This is the off-diagonal part of the confident joint. Images are ranked by the normalized margin (section
    3.2 of the paper's code `cleanlab`), the most contradicted first.

    Args:
        probabilities: (N, K) of each class, from models that did not learn from the image in question.
        labels: (N,) given classes in [0, K).
    """
    count = probabilities.shape[1]
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    sums = np.bincount(labels, weights=own, minlength=count)
    images = np.bincount(labels, minlength=count)
    thresholds = np.where(images > 0, sums / np.maximum(images, 1), np.inf)
    confident = np.where(probabilities >= thresholds - 1e-6, probabilities, -1)
    suggested = confident.argmax(axis=1)
    others = probabilities.copy()
    np.put_along_axis(others, labels[:, None], -1, axis=1)
    margins = own - others.max(axis=1)
    found = np.flatnonzero((confident.max(axis=1) >= 0) & (suggested != labels) & (margins < 0))
    order = found[np.argsort(margins[found], kind="stable")]
    return WrongLabels(numbers=order, suggested=suggested[order], margins=margins[order])

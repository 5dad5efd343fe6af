"""Measures how unlike the training images an image is: the distance of its features to the nearest class.

The Mahalanobis distance with one covariance for all classes (Lee et al. 2018), shrunk so that few images suffice
(Ledoit and Wolf 2004).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.scores.metrics import Array, Floats, Integers

_ROWS = 4096  # whose distances are computed together


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureClouds:
    """The features of the training images: a mean for each class, and what makes their spread equal to 1.

    Attributes:
        means: (C, D) float32, whitened.
        whitening: (D, D) float32; features are multiplied by it.
    """

    means: Array
    whitening: Array

    @classmethod
    def fit(cls, features: Array, labels: Integers) -> FeatureClouds:
        """Fits the clouds.

        Args:
            features: (N, D).
            labels: (N,), classes; those that do not occur get no mean.

        Raises:
            UserError: There are fewer images than classes and one more, or their features are not finite.
        """
        if not np.isfinite(features).all():
            raise UserError("Features must be finite. The model's weights may be damaged.")
        _, places = np.unique(labels, return_inverse=True)
        places = places.reshape(-1)
        counts = np.bincount(places)
        if len(features) <= len(counts):
            raise UserError(f"Features of more images than classes are needed. Received: {len(features)} images.")
        wide = features.astype(np.float64)
        means = np.zeros((len(counts), wide.shape[1]))
        np.add.at(means, places, wide)
        means /= counts[:, None]
        values, vectors = np.linalg.eigh(shrunk_covariance(wide - means[places]))
        # Directions without spread are not taken for sharp ones: what is left of them is rounding of the features.
        floor = max(float(values.max()) * 1e-9, float((wide**2).mean()) * 1e-12, 1e-24)
        whitening = vectors / np.sqrt(np.maximum(values, floor))
        return cls(means=(means @ whitening).astype(np.float32), whitening=whitening.astype(np.float32))

    @cached_property
    def _wide(self) -> tuple[Floats, Floats, Floats]:
        """The whitening, the means and their squares (C,), in float64."""
        whitening, means = self.whitening.astype(np.float64), self.means.astype(np.float64)
        return whitening, means, (means**2).sum(1)

    def distances(self, features: Array) -> Floats:
        """Returns the distance (N,) of features (N, D) to the nearest mean; infinite for features that are not."""
        result = np.full(len(features), np.inf)
        finite = np.flatnonzero(np.isfinite(features).all(axis=1))
        whitening, means, squared = self._wide
        for start in range(0, len(finite), _ROWS):
            rows = finite[start : start + _ROWS]
            white = features[rows].astype(np.float64) @ whitening
            squares = (white**2).sum(1)[:, None] - 2 * white @ means.T + squared
            result[rows] = np.sqrt(np.maximum(squares.min(axis=1), 0))
        return result


def shrunk_covariance(centered: npt.NDArray[Any]) -> Floats:
    """Returns the covariance (D, D) of rows (N, D) of mean 0, shrunk to a multiple of the identity.

    Shrinks by the share that makes the expected error smallest (Ledoit and Wolf 2004, section 3.3).
    """
    images, width = centered.shape
    covariance: Floats = centered.T @ centered / images
    scale = np.trace(covariance) / width
    spread = (covariance**2).sum() / width - scale**2
    squares = centered**2
    error = ((squares.T @ squares).sum() / images - (covariance**2).sum()) / (width * images)
    share = min(error / spread, 1.0) if spread > 0 else 0.0
    return (1 - share) * covariance + share * scale * np.eye(width)

"""The shrunk covariance against scikit-learn, and distances against the formula by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deit.core.scores.outliers import FeatureClouds, shrunk_covariance

covariance = pytest.importorskip("sklearn.covariance")


def drawn(images, width, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, images)
    features = random.normal(size=(images, width)) @ random.normal(size=(width, width)) + 5 * labels[:, None]
    return features.astype(np.float32), labels


@pytest.mark.parametrize(("images", "width"), [(40, 60), (500, 12), (3, 5)])
def test_the_shrunk_covariance_is_that_of_scikit_learn(images, width):
    rows = drawn(images, width)[0].astype(np.float64)
    rows -= rows.mean(axis=0)
    assert shrunk_covariance(rows) == pytest.approx(covariance.ledoit_wolf(rows, assume_centered=True)[0], rel=1e-9)


@pytest.mark.parametrize(("images", "width"), [(400, 8), (60, 100)])
def test_distances_are_those_of_mahalanobis_to_the_nearest_class(images, width):
    features, labels = drawn(images, width)
    clouds = FeatureClouds.fit(features, labels)
    means = np.stack([features[labels == k].mean(axis=0, dtype=np.float64) for k in range(4)])
    precision = np.linalg.inv(shrunk_covariance(features.astype(np.float64) - means[labels]))
    new = drawn(20, width, seed=1)[0]
    expected = [min(np.sqrt((x - m) @ precision @ (x - m)) for m in means) for x in new.astype(np.float64)]
    assert clouds.distances(new) == pytest.approx(expected, rel=2e-3)


def test_features_without_spread_have_distances_all_the_same():
    features = np.ones((10, 3), np.float32)
    distances = FeatureClouds.fit(features, np.zeros(10, np.int64)).distances(
        np.array([[1, 1, 1], [2, 1, 1]], np.float32)
    )
    assert np.isfinite(distances).all()
    assert distances[0] < distances[1]


def test_what_is_not_finite_is_infinitely_far_and_is_not_learnt_from():
    features, labels = drawn(50, 4)
    clouds = FeatureClouds.fit(features, labels)
    features[3, 1] = np.nan
    assert np.isinf(clouds.distances(features)[3])
    assert np.isfinite(np.delete(clouds.distances(features), 3)).all()
    with pytest.raises(ValueError, match="must be finite"):
        FeatureClouds.fit(features, labels)
    with pytest.raises(ValueError, match="more images than classes"):
        FeatureClouds.fit(drawn(2, 4)[0], np.array([0, 1]))

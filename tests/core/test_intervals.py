"""Intervals of shares, against SciPy."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest

from deit.core.scores.intervals import share_interval


@pytest.mark.parametrize(
    ("right", "images"), [(0, 1), (1, 1), (0, 10), (10, 10), (7, 9), (836, 1000), (49_999, 50_000)]
)
def test_the_interval_is_that_of_wilson(right, images):
    expected = binomtest(right, images).proportion_ci(confidence_level=0.95, method="wilson")
    assert share_interval(100 * right / images, images) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_what_was_not_counted_has_none():
    assert all(math.isnan(end) for end in (*share_interval(50.0, 0), *share_interval(math.nan, 10)))

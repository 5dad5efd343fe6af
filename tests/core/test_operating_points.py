"""Thresholds against a search over all of them, and the promise of a recall against many drawn images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deit.core.scores.operating_points import check_share, choose_point


def drawn(seed, count):
    random = np.random.default_rng(seed)
    positive = random.uniform(size=count) < 0.3
    scores = np.round(1 / (1 + np.exp(-random.normal(2.0 * positive - 1.0))), 2).astype(np.float32)  # with ties
    return scores, positive


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_the_threshold_of_a_precision_is_the_lowest_that_is_good_enough_with_one_more_mistake(seed, share):
    scores, positive = drawn(seed, 300)
    good = [t for t in np.unique(scores) if (positive & (scores >= t)).sum() / ((scores >= t).sum() + 1) >= share]
    point = choose_point("ant", scores, positive, "precision", share)
    if not good:
        assert point is None
        return
    assert point.threshold == float(min(good))
    assert (point.named, point.right) == (
        int((scores >= min(good)).sum()),
        int((positive & (scores >= min(good))).sum()),
    )
    assert point.right / point.named >= share


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_a_recall_is_kept_on_new_images(share):
    scores, positive = drawn(7, 40_000)
    recalls = []
    for start in range(0, 20_000, 500):
        part = slice(start, start + 500)
        point = choose_point("ant", scores[part], positive[part], "recall", share)
        recalls.append((scores[20_000:][positive[20_000:]] >= point.threshold).mean())
    assert share - 0.005 <= np.mean(recalls) <= share + 0.03


def test_a_recall_needs_so_many_images_of_the_class():
    """95 %: rank floor((m + 1) / 20), so 19 images."""
    scores = np.linspace(0.1, 0.9, 19).astype(np.float32)
    assert choose_point("ant", scores, np.ones(19, bool), "recall", 0.95).threshold == pytest.approx(0.1)
    assert choose_point("ant", scores[1:], np.ones(18, bool), "recall", 0.95) is None
    assert choose_point("ant", scores, np.zeros(19, bool), "recall", 0.95) is None
    assert choose_point("ant", scores, np.zeros(19, bool), "precision", 0.95) is None


def test_a_point_says_what_it_gave_with_intervals():
    point = choose_point("ant", np.linspace(0, 1, 101), np.arange(101) >= 50, "precision", 0.9)
    assert point.describe().startswith("ant: named from ")
    assert f"({point.right} of" not in point.describe()
    assert f", {point.right} of {point.named})" in point.describe()
    assert f", {point.right} of 51)" in point.describe()


@pytest.mark.parametrize("share", [0, 1, -1, 95, math.nan, "0.9", True])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="precision must be a share above 0 and below 1"):
        check_share("precision", share)
    if share == 95:
        with pytest.raises(ValueError, match=r"Did you mean 0.95?"):
            check_share("precision", share)

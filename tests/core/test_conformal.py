"""Conformal scores and thresholds against formulas written out by hand, and the promise against many drawn images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deit.core.scores.conformal import (
    SETS,
    Coverage,
    class_scores,
    class_thresholds,
    classes_sharing,
    coverage_interval,
    coverage_level,
    describe_sets,
    images_needed,
    threshold,
    true_scores,
)

scipy_stats = pytest.importorskip("scipy.stats")


def drawn(seed, count, classes=6, scale=3.0):
    """Logits and classes of a model that is too sure."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1
    return (scale * logits).astype(np.float32), labels


def slow_score(sets, logits, k):
    """LAC: 1 - p. APS: sum of the probabilities down to the class. RAPS: and 0.1 for each rank after the second."""
    exponentials = [math.exp(float(v) - float(max(logits))) for v in logits]
    probabilities = [e / sum(exponentials) for e in exponentials]
    if sets == "lac":
        return 1 - probabilities[k]
    before = [p for i, p in enumerate(probabilities) if p > probabilities[k]]
    rank = len(before) + 1
    return sum(before) + probabilities[k] + (0.1 * max(rank - 2, 0) if sets == "raps" else 0)


@pytest.mark.parametrize("sets", SETS)
def test_the_scores_equal_the_slow_formulas(sets):
    logits, labels = drawn(0, 50)
    expected = [[slow_score(sets, row, k) for k in range(6)] for row in logits]
    assert class_scores(sets, logits) == pytest.approx(np.array(expected), abs=1e-9)
    assert true_scores(sets, logits, labels) == pytest.approx([expected[i][k] for i, k in enumerate(labels)], abs=1e-9)


@pytest.mark.parametrize(("percent", "needed"), [(50, 1), (90, 9), (95, 19), (99, 99), (99.9, 999), (97.5, 39)])
def test_the_number_of_images_that_a_coverage_needs(percent, needed):
    """The rank ceil((n + 1) c) must not be above n: n >= c / (1 - c)."""
    assert images_needed(percent) == needed
    scores = np.arange(needed, dtype=float)
    assert threshold(scores, percent) == math.ceil((needed + 1) * percent / 100 - 1e-9) - 1
    if needed > 1:
        with pytest.raises(
            ValueError, match=f"needs at least {needed} held-out images. The calibration has {needed - 1}"
        ):
            threshold(scores[1:], percent)


def test_the_threshold_is_the_score_of_the_rank():
    """Of 99 scores, 95 %: rank ceil(100 x 0.95) = 95."""
    scores = np.random.default_rng(0).permutation(99) + 1.0
    assert threshold(scores, 95) == 95
    assert threshold(scores, 29) == 29  # 100 x 0.29 is 28.999999999999996 in floating point


@pytest.mark.parametrize("percent", [0, 1, 100, 1e9, -5, math.nan, math.inf, "95", True, None])
def test_what_is_no_coverage_is_refused(percent):
    with pytest.raises(ValueError, match="coverage must be a percentage above 1 and below 100"):
        Coverage(percent=percent)


def test_a_share_in_place_of_a_percentage_is_recognized():
    with pytest.raises(ValueError, match=r"Did you mean 95?"):
        coverage_level(0.95)
    with pytest.raises(ValueError, match=r"sets must be one of lac, aps, raps. Received: 'topk'"):
        Coverage(sets="topk")


@pytest.mark.parametrize(("images", "percent"), [(19, 95), (50, 95), (1000, 95), (1000, 99), (500, 50), (20_000, 90)])
def test_the_interval_of_the_coverage_is_that_of_the_beta_distribution(images, percent):
    rank = math.ceil((images + 1) * percent / 100 - 1e-9)
    expected = 100 * scipy_stats.beta(rank, images + 1 - rank).ppf([0.025, 0.975])
    assert coverage_interval(images, percent) == pytest.approx(expected, abs=1e-6)
    assert f"{expected[0]:.1f} to {expected[1]:.1f}" in describe_sets(images, Coverage(percent=percent))


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("percent", [80, 95])
def test_the_promise_is_kept_on_20_random_splits(sets, percent):
    """Each split's coverage of 4,000 images lies where the calibration and the counting of images allow, and their
    mean is the one asked for. Bounds: the beta-binomial distribution of covered images, 1 in 1,000 outside in all."""
    logits, labels = drawn(1, 4_500)
    scores = class_scores(sets, logits)
    true = scores[np.arange(len(labels)), labels]
    found = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(labels))
        limit = threshold(true[order[:500]], percent)
        found.append(int((true[order[500:]] <= limit).sum()))
    rank = math.ceil(501 * percent / 100)
    low, high = scipy_stats.betabinom(4_000, rank, 501 - rank).ppf([0.001 / 40, 1 - 0.001 / 40])
    assert low <= min(found) <= max(found) <= high
    assert np.mean(found) / 40 == pytest.approx(percent, abs=1.2)


def test_each_class_keeps_the_promise_where_it_is_made_for_each():
    """Class 0 is difficult: one threshold for all covers it less than promised."""
    random = np.random.default_rng(2)
    labels = random.integers(0, 3, 60_000)
    scores = random.uniform(size=len(labels)) + (labels == 0)
    known, new = slice(0, 2_000), slice(2_000, None)
    names = ["hard", "easy", "plain"]
    for per_class in (False, True):
        limits = class_thresholds(scores[known], labels[known], names, Coverage(percent=90, per_class=per_class))
        covered = [(scores[new] <= limits[labels[new]])[labels[new] == k].mean() for k in range(3)]
        if per_class:
            assert covered == pytest.approx([0.9] * 3, abs=0.03)
        else:
            assert covered[0] < 0.75


def test_classes_with_few_images_share_a_threshold_and_too_few_are_refused():
    labels = np.array([0] * 30 + [1] * 12 + [2] * 8)
    scores = np.arange(50, dtype=float)
    names, coverage = ["ant", "bee", "cow"], Coverage(percent=95, per_class=True)
    assert class_thresholds(scores, labels, names, coverage).tolist() == [29, 49, 49]
    assert classes_sharing(labels, names, coverage) == ["bee", "cow"]
    assert classes_sharing(labels, names, Coverage()) == []
    with pytest.raises(ValueError, match=r"at least 19 held-out images of each class.*: bee \(12\)\. Calibrate"):
        class_thresholds(scores[:42], labels[:42], names[:2], coverage)

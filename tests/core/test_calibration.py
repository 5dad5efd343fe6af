"""Calibration against slow formulas written out by hand, and the temperature against a fine grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deit.core.scores.calibration import (
    TEMPERATURE_RANGE,
    confidences,
    expected_calibration_error,
    fit_temperature,
    mean_cross_entropy,
    pairs_of,
    reliability,
    temperature_interval,
)
from deit.core.scores.metrics import softmax


def slow_calibration_error(confidence, right, bins=15):
    """Guo et al. 2017, equation 3, bin by bin: (m - 1) / M < confidence <= m / M."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, c in enumerate(confidence) if (m - 1) / bins < c <= m / bins]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def drawn(seed, count=400, classes=7, scale=2.5):
    """Logits of a model that is right more often than not, and too sure when `scale` is large."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1
    return (scale * logits).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_equals_the_slow_formula(seed):
    logits, labels = drawn(seed)
    sure, right = softmax(logits).max(axis=1), logits.argmax(axis=1) == labels
    bins = reliability(sure, right)
    assert expected_calibration_error(bins) == pytest.approx(slow_calibration_error(sure, right), rel=1e-9)
    assert sum(b.images for b in bins) == len(labels)
    assert sum(b.images * b.accuracy for b in bins if b.images) == pytest.approx(right.sum())


def test_the_bins_equal_those_worked_out_by_hand():
    """A fifth is the upper end of the third bin of fifteen, and 1.0 of the last."""
    bins = reliability(np.array([0.2, 0.19, 0.21, 1.0, 0.95]), np.array([True, False, True, True, False]))
    assert [b.images for b in bins] == [0, 0, 2, 1] + [0] * 10 + [2]
    assert bins[2].confidence == pytest.approx(0.195)
    assert bins[2].accuracy == 0.5
    assert (bins[2].lower, bins[2].upper) == (pytest.approx(2 / 15), pytest.approx(3 / 15))
    assert bins[14].confidence == pytest.approx(0.975)
    assert math.isnan(bins[0].accuracy)
    expected = (2 * abs(0.195 - 0.5) + abs(0.21 - 1) + 2 * abs(0.975 - 0.5)) / 5
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_without_images_there_is_no_calibration_error():
    assert math.isnan(expected_calibration_error(reliability(np.empty(0), np.empty(0, bool))))


@pytest.mark.parametrize("sure", [[math.nan], [0.0], [1.5]])
def test_what_is_no_probability_is_refused(sure):
    with pytest.raises(ValueError, match="must lie in"):
        reliability(np.array(sure), np.array([True]))


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.5, 12.0])
def test_the_temperature_is_the_best_of_a_fine_grid(scale):
    logits, labels = drawn(3, scale=scale)
    best = fit_temperature(logits, labels)
    grid = np.geomspace(best / 3, best * 3, 2001)
    wide = logits.astype(np.float64)

    def loss(temperature):
        z = wide / temperature
        return float(np.mean(np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[range(len(z)), labels]))

    losses = [loss(t) for t in grid]
    assert best == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert mean_cross_entropy(logits, labels, best) <= min(losses) + 1e-12
    assert mean_cross_entropy(logits, labels) == pytest.approx(loss(1.0), rel=1e-12)


def test_a_temperature_undoes_a_factor():
    logits, labels = drawn(4)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-5)


def test_the_temperature_ends_at_its_bounds_where_there_is_no_best_one():
    right = np.array([[2.0, 0.0], [0.0, 3.0]], np.float32)
    assert fit_temperature(right, np.array([0, 1])) == TEMPERATURE_RANGE[0]
    assert fit_temperature(right, np.array([1, 0])) == TEMPERATURE_RANGE[1]
    assert fit_temperature(np.zeros((3, 4), np.float32), np.array([0, 1, 2])) == TEMPERATURE_RANGE[1]
    with pytest.raises(ValueError, match="without images"):
        fit_temperature(np.empty((0, 3), np.float32), np.empty(0, int))


def test_large_logits_and_excluded_classes_do_no_harm():
    logits, labels = drawn(5)
    expected = fit_temperature(logits, labels)
    shifted = np.column_stack([logits + np.float32(100), np.full(len(logits), -np.inf, np.float32)])
    assert fit_temperature(shifted, labels) == pytest.approx(expected, rel=1e-4)
    extreme = fit_temperature(logits * np.float32(1000), labels)
    assert extreme == TEMPERATURE_RANGE[1]


def test_data_in_several_parts_gives_what_one_part_gives(monkeypatch):
    logits, labels = drawn(6)
    whole = fit_temperature(logits, labels), confidences(logits, 2.0)
    monkeypatch.setattr("deit.core.scores.calibration._VALUES_AT_ONCE", 50)
    assert fit_temperature(logits, labels) == pytest.approx(whole[0], rel=1e-9)
    np.testing.assert_array_equal(confidences(logits, 2.0), whole[1])
    np.testing.assert_allclose(whole[1], softmax(logits.astype(np.float64) / 2).max(1), rtol=1e-6)


def test_the_interval_of_a_temperature_is_about_that_of_resampled_images():
    logits, labels = drawn(5, count=600)
    low, high = temperature_interval(logits, labels, fit_temperature(logits, labels))
    random = np.random.default_rng(0)
    again = []
    for _ in range(200):
        rows = random.integers(0, len(labels), len(labels))
        again.append(fit_temperature(logits[rows], labels[rows]))
    assert [low, high] == pytest.approx(np.quantile(again, [0.025, 0.975]), rel=0.05)


def test_the_temperature_of_several_labels_is_the_best_of_a_fine_grid():
    random = np.random.default_rng(0)
    labels = (random.uniform(size=(300, 4)) < 0.4).astype(np.float32)
    logits = (4 * (random.normal(size=(300, 4)) + labels - 0.5)).astype(np.float32)
    best = fit_temperature(*pairs_of(logits, labels))

    def loss(temperature):
        scaled = logits.astype(np.float64) / temperature
        return (np.logaddexp(0, scaled) - scaled * labels).mean()

    grid = np.geomspace(best / 2, best * 2, 1001)
    assert best == pytest.approx(min(grid, key=loss), rel=2e-3)

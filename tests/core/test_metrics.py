"""Scores against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deit.core.metrics import ScoreCounter, evaluate, softmax


def scores_of(logits, labels):
    counter = ScoreCounter()
    counter.add(np.array(logits, np.float32), np.array(labels))
    return counter.scores()


def test_scores_equal_those_worked_out_by_hand():
    """Ranks of the true classes, counted from 0: 0, 2, 5 and 6."""
    logits = [
        [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0],
        [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
        [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
    ]
    scores = scores_of(logits, [0, 0, 5, 6])
    assert scores.images == 4
    assert scores.top1 == 100 * 1 / 4
    assert scores.top5 == 100 * 2 / 4
    steps = sum(math.exp(i) for i in range(7))
    expected = (
        math.log(math.exp(9) + sum(math.exp(i) for i in range(1, 7))) - 9
        + math.log(math.exp(1) + math.exp(2) + math.exp(3) + 4) - 1
        + math.log(steps) - 1
        + math.log(steps) - 0
    ) / 4  # fmt: skip
    assert scores.loss == pytest.approx(expected, rel=1e-12)


def test_batches_add_up_image_by_image():
    counter = ScoreCounter()
    counter.add(np.array([[1.0, 0.0]] * 3, np.float32), np.array([0, 0, 1]))
    counter.add(np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert counter.scores().top1 == 50.0
    assert counter.scores().images == 4
    assert counter.scores().loss == pytest.approx(math.log(1 + math.e) - 0.5)


def test_constant_logits_are_right_for_the_first_class_only():
    scores = scores_of(np.zeros((10, 10)), range(10))
    assert scores.top1 == 10.0
    assert scores.top5 == 50.0
    assert scores.loss == pytest.approx(math.log(10))


@pytest.mark.parametrize("row", [[math.nan] * 6, [5.0, math.nan, 0, 0, 0, 0], [math.nan, 5.0, 0, 0, 0, 0]])
def test_logits_that_are_not_numbers_count_as_wrong(row):
    scores = scores_of([row, [1.0, 0, 0, 0, 0, 0]], [0, 0])
    assert scores.top1 == 50.0
    assert scores.top5 == 50.0
    assert math.isnan(scores.loss)


def test_with_at_most_five_classes_top_5_is_always_reached():
    assert scores_of([[0.0, 1, 2, 3, 4]], [0]).top5 == 100.0


def test_large_logits_do_not_overflow():
    assert scores_of([[1000.0, 998.0]], [1]).loss == pytest.approx(2 + math.log(1 + math.exp(-2)))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros(3, int), "needed. Received"),
        (np.zeros(3), np.zeros(3, int), "needed. Received"),
        (np.zeros((2, 3)), np.array([0, 3]), r"\[0, 3\). Received: 0 to 3"),
        (np.zeros((2, 3)), np.array([-1, 2]), r"\[0, 3\). Received: -1 to 2"),
    ],
)
def test_batches_that_cannot_be_scored_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        ScoreCounter().add(logits.astype(np.float32), labels)


def test_no_images_have_no_scores():
    with pytest.raises(ValueError, match="No images"):
        ScoreCounter().scores()
    with pytest.raises(ValueError, match="No images"):
        evaluate(lambda pixels: {"both": pixels}, [])


def test_every_output_of_a_predictor_is_scored_by_its_name():
    pixels = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    batches = [(pixels[:2], np.array([1, 0])), (pixels[2:], np.array([0]))]
    scores = evaluate(lambda batch: {"right": batch, "wrong": -batch}, batches)
    assert {name: s.top1 for name, s in scores.items()} == {"right": 100.0, "wrong": 0.0}
    assert scores["right"].images == 3


def test_probabilities_equal_those_worked_out_by_hand():
    total = math.exp(0) + math.exp(1) + math.exp(2)
    expected = [[math.exp(i) / total for i in range(3)], [0.0, 0.5, 0.5]]
    np.testing.assert_allclose(softmax(np.array([[0.0, 1, 2], [-1000, 800, 800]])), expected, rtol=1e-12)

"""Scores against numbers worked out by hand."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from deit.core.scores.metrics import (
    MultiLabelCounter,
    RegressionCounter,
    ScoreCounter,
    average_precision,
    evaluate,
    softmax,
)


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


def test_scores_are_named_with_the_one_to_look_at_first():
    scores = scores_of([[1.0, 0.0]], [0]).as_dict()
    assert list(scores) == ["top1", "top5", "loss"]
    assert scores["top1"] == 100.0


@pytest.mark.parametrize("row", [[math.nan, 1, 2], [math.inf, 1, 2], [-math.inf] * 3])
def test_images_without_an_answer_are_counted_and_never_right(row):
    for label in range(3):
        scores = scores_of([row, [0.0, 5.0, 0.0]], [label, 1])
        assert (scores.unanswered, scores.top1, scores.top5) == (1, 50.0, 50.0)
        assert math.isnan(scores.loss)
    assert scores_of([[-math.inf, 1.0, 2.0]], [2]).unanswered == 0


# --- several labels and numbers --------------------------------------------------------------------------


def several_labels(seed=0, count=60, classes=5):
    random = np.random.default_rng(seed)
    labels = (random.random((count, classes)) < [0.5, 0.2, 0.05, 0.6, 0.3]).astype(np.float32)
    logits = (random.normal(size=(count, classes)) + labels).astype(np.float32)
    return logits, labels


def test_scores_of_several_labels_equal_scikit_learn_s():
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    logits, labels = several_labels()
    counter = MultiLabelCounter()
    counter.add(logits[:25], labels[:25])
    counter.add(logits[25:], labels[25:])
    scores, said = counter.scores(), logits > 0
    assert scores.images == 60
    assert scores.micro_f1 == pytest.approx(100 * f1_score(labels, said, average="micro"))
    assert scores.macro_f1 == pytest.approx(100 * f1_score(labels, said, average="macro"))
    assert scores.exact_match == pytest.approx(100 * accuracy_score(labels, said))
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert scores.loss == pytest.approx(np.mean([log_loss(labels[:, k], probability[:, k]) for k in range(5)]))
    assert list(scores.as_dict()) == ["micro_f1", "macro_f1", "exact_match", "loss"]


def test_a_class_that_nobody_names_counts_nothing():
    counter = MultiLabelCounter()
    counter.add(np.array([[1.0, -1.0]], np.float32), np.array([[1.0, 0.0]]))
    assert (counter.scores().macro_f1, counter.scores().micro_f1, counter.scores().exact_match) == (50, 100, 100)


def test_an_image_without_an_answer_matches_no_labels():
    counter = MultiLabelCounter()
    counter.add(np.array([[math.nan, -1.0], [2.0, -9.0]], np.float32), np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert (counter.scores().exact_match, counter.scores().unanswered) == (50, 1)
    assert math.isnan(counter.scores().loss)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn_s(ties):
    from sklearn.metrics import average_precision_score

    logits, labels = several_labels(seed=2, count=90)
    logits = np.round(logits) if ties else logits
    for k in range(5):
        expected = average_precision_score(labels[:, k], logits[:, k])
        assert average_precision(logits[:, k], labels[:, k]) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(average_precision(logits[:, 0], np.zeros(90)))


def test_scores_of_numbers_equal_scikit_learn_s():
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    random = np.random.default_rng(0)
    true = random.normal(50, 4, 40).astype(np.float32)
    said = (true + random.normal(0, 2, 40)).astype(np.float32)
    counter = RegressionCounter()
    counter.add(said[:7, None], true[:7])
    counter.add(said[7:, None], true[7:])
    scores = counter.scores()
    assert scores.mean_absolute_error == pytest.approx(mean_absolute_error(true, said), rel=1e-6)
    assert scores.root_mean_squared_error == pytest.approx(math.sqrt(mean_squared_error(true, said)), rel=1e-6)
    assert scores.loss == pytest.approx(mean_squared_error(true, said), rel=1e-6)
    assert scores.r2 == pytest.approx(r2_score(true, said), rel=1e-6)
    assert list(scores.as_dict()) == ["mean_absolute_error", "root_mean_squared_error", "r2", "loss"]


def test_equal_numbers_have_no_variance_to_explain():
    counter = RegressionCounter()
    counter.add(np.array([[1.0], [2.0]], np.float32), np.array([0.1, 0.1], np.float32))
    assert math.isnan(counter.scores().r2)
    assert counter.scores().mean_absolute_error == pytest.approx(1.4)


def test_an_answer_that_is_no_number_is_counted():
    counter = RegressionCounter()
    counter.add(np.array([[math.inf], [2.0]], np.float32), np.array([1.0, 2.0]))
    assert counter.scores().unanswered == 1
    assert math.isnan(counter.scores().loss)


@pytest.mark.parametrize(
    ("counter", "labels", "message"),
    [
        (MultiLabelCounter, np.zeros(2), r"\(B, K\) are needed"),
        (MultiLabelCounter, np.full((2, 3), 0.5), "must be 0 or 1. Received: 0.5"),
        (RegressionCounter, np.zeros(2), r"Answers \(B, 1\)"),
    ],
)
def test_labels_of_another_kind_are_refused(counter, labels, message):
    with pytest.raises(ValueError, match=message):
        counter().add(np.zeros((2, 3), np.float32), labels)
    with pytest.raises(ValueError, match="problem type must be one of"):
        evaluate(lambda pixels: {"class": pixels}, [], problem_type="ranking")


# --- several processes -----------------------------------------------------------------------------------


class Together:
    """Sums over processes that run one after the other: each call waits until every thread has made it."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        self.parts = [None] * count

    def of(self, rank):
        def combine(counts):
            self.parts[rank] = counts
            self.barrier.wait(10)
            total = np.sum(self.parts, axis=0)
            self.barrier.wait(10)
            return total

        return combine


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_together_score_as_one_even_without_images(problem_type, count):
    """Images are dealt out to all but the last process."""
    logits, labels = several_labels(count=11)
    if problem_type == "single_label_classification":
        labels = labels.argmax(1)
    elif problem_type == "regression":
        logits, labels = logits[:, :1], labels[:, 0]

    def batches(rank, world_size):
        chosen = np.arange(rank, 11, world_size)
        return [(logits[part], labels[part]) for part in (chosen[:2], chosen[2:]) if len(part)]

    def predict(pixels):
        return {"both": pixels, "class": -pixels}

    together, results = Together(count), [None] * count

    def work(rank):
        mine = batches(rank, count - 1) if rank < count - 1 else []
        results[rank] = evaluate(predict, mine, problem_type=problem_type, combine=together.of(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    alone = evaluate(predict, batches(0, 1), problem_type=problem_type)
    for result in results:
        assert list(result) == ["both", "class"]
        for name, scores in result.items():
            assert scores.as_dict() == pytest.approx(alone[name].as_dict(), rel=1e-12)
            assert scores.images == 11


def test_processes_without_any_image_have_no_scores():
    with pytest.raises(ValueError, match="No images"):
        evaluate(lambda pixels: {"both": pixels}, [], combine=lambda counts: counts)

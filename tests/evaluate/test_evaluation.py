"""Evaluations against scikit-learn, and against counts worked out from a table of known answers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from deit.core.images.reading import ImageError
from deit.core.scores.metrics import average_precision, softmax
from deit.data.sources import ArraySource, Subset
from deit.evaluate.evaluation import evaluate_model
from deit.inference.predictor import Predictor
from tests.evaluate.evaluation_cases import (
    CLASSES,
    TableEngine,
    known_teacher,
    numbered_images,
    single_source,
    two_heads,
)
from tests.ranks import run_on_ranks

MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"


def evaluated(runner, source, **options):
    return evaluate_model(Predictor(runner), source, **{"batch_size": 8, **options})


def test_every_head_equals_scikit_learn():
    from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score, top_k_accuracy_score

    names = [f"class {i}" for i in range(7)]
    source = single_source(classes=names)
    runner = two_heads(source)
    result = evaluated(runner, source)
    assert result.head == "both"
    for name, table in runner.tables.items():
        said, scores, rows = table.argmax(1), result.heads[name].scores, result.per_class(name)
        assert scores.top1 == pytest.approx(100 * accuracy_score(source.labels, said))
        assert scores.top5 == pytest.approx(100 * top_k_accuracy_score(source.labels, table, k=5))
        assert scores.loss == pytest.approx(log_loss(source.labels, softmax(table.astype(np.float64))), rel=1e-6)
        np.testing.assert_array_equal(result.confusion(name), confusion_matrix(source.labels, said))
        recalls = recall_score(source.labels, said, average=None)
        assert [row["accuracy"] for row in rows] == pytest.approx((100 * recalls).tolist())
        assert [row["images"] for row in rows] == np.bincount(source.labels).tolist()


def test_calibration_is_that_of_each_head_and_the_temperature_that_of_the_answer():
    from tests.core.test_calibration import slow_calibration_error

    source = single_source()
    runner = two_heads(source)
    result = evaluated(runner, source)
    for name, table in runner.tables.items():
        expected = slow_calibration_error(softmax(table).max(1), table.argmax(1) == source.labels)
        assert result.heads[name].calibration_error == pytest.approx(expected, rel=1e-5)
    best, wide = result.temperature, runner.tables["both"].astype(np.float64)

    def loss(temperature):
        return -np.log(softmax(wide / temperature)[range(101), source.labels]).mean()

    grid = np.geomspace(0.2, 5, 4001)
    assert best.temperature == pytest.approx(grid[np.argmin([loss(t) for t in grid])], rel=1e-3)
    assert best.loss == pytest.approx(loss(best.temperature))
    assert best.loss < result.heads["both"].scores.loss
    after = slow_calibration_error(softmax(wide / best.temperature).max(1), wide.argmax(1) == source.labels)
    assert best.calibration_error == pytest.approx(after, rel=1e-5)
    assert best.images == 101


def test_agreement_and_teacher_are_mapped_by_name_and_seen_through_the_teacher_s_preprocessing():
    source = single_source()
    runner, teacher = two_heads(source), known_teacher(source)
    result = evaluated(runner, source, teacher=teacher)
    taught = 3 - teacher.engine.tables["class"][:, :4].argmax(1)
    said = {name: table.argmax(1) for name, table in runner.tables.items()} | {"teacher": taught}
    expected = {
        f"{a}, {b}": 100 * sum(x == y for x, y in zip(said[a], said[b], strict=True)) / 101
        for a, b in [("both", "class"), ("both", "distillation"), ("both", "teacher"), ("class", "distillation")]
    }
    assert {pair: result.agreement[pair] for pair in expected} == pytest.approx(expected)
    assert len(result.agreement) == 6
    assert result.teacher.scores.top1 == pytest.approx(100 * (taught == source.labels).mean())


def test_the_surest_mistakes_come_first_and_the_worst_classes_too():
    source = single_source()
    runner = two_heads(source)
    result = evaluated(runner, source)
    table = runner.tables["both"]
    sure, said = softmax(table).max(1), table.argmax(1)
    expected = sorted((i for i in range(101) if said[i] != source.labels[i]), key=lambda i: -sure[i])
    mistakes = result.mistakes(5)
    assert [m.index for m in mistakes] == expected[:5]
    assert mistakes[0].true == CLASSES[source.labels[expected[0]]]
    assert mistakes[0].said == CLASSES[said[expected[0]]]
    assert mistakes[0].size == pytest.approx(sure[expected[0]])
    rows = {row["class"]: row["accuracy"] for row in result.per_class()}
    assert [row["class"] for row in result.worst_classes(2)] == sorted(rows, key=rows.__getitem__)[:2]
    true, taken_for, times = result.confused_pairs()[0]
    off = result.confusion() * (1 - np.eye(4, dtype=int))
    assert off.max() == times == off[CLASSES.index(true), CLASSES.index(taken_for)]
    assert sum(times for _, _, times in result.confused_pairs()) == len(expected)


def test_details_are_those_of_the_head_that_was_asked_for():
    source = single_source()
    runner = two_heads(source)
    result = evaluated(runner, source, head="distillation")
    np.testing.assert_array_equal(result.logits, runner.tables["distillation"])
    np.testing.assert_array_equal(result.confusion(), result.confusion("distillation"))
    with pytest.raises(ValueError, match=r"no head 'teacher'\. Known: both, class, distillation"):
        evaluated(runner, source, head="teacher")


def test_images_without_an_answer_are_counted_and_are_in_no_column():
    source = single_source()
    runner = two_heads(source)
    runner.tables["both"][[3, 50]] = np.nan
    result = evaluated(runner, source)
    scores = result.heads["both"].scores
    good = np.delete(np.arange(101), [3, 50])
    said = runner.tables["both"][good].argmax(1)
    assert scores.unanswered == 2
    assert scores.top1 == pytest.approx(100 * (said == source.labels[good]).sum() / 101)
    assert result.confusion().sum() == 99
    assert sum(b.images for b in result.heads["both"].bins) == result.temperature.images == 99
    assert not {3, 50} & {m.index for m in result.mistakes(101)}
    both, first = runner.tables["both"].argmax(1), runner.tables["class"].argmax(1)
    assert result.agreement["both, class"] == pytest.approx(100 * (both == first)[good].sum() / 101)


def test_a_model_that_never_answers_has_no_temperature():
    source = single_source(5)
    result = evaluated(TableEngine({"class": np.full((5, 4), np.nan)}, CLASSES), source)
    assert result.temperature is None
    assert math.isnan(result.heads["class"].calibration_error)
    assert result.heads["class"].scores.unanswered == 5


def test_what_does_not_fit_in_memory_is_taken_from_evenly_spaced_images(monkeypatch):
    monkeypatch.setattr("deit.evaluate.evaluation._KEPT_BYTES", 101 * 4 * 4 // 3)
    source = single_source()
    result = evaluated(two_heads(source), source)
    assert result.kept.tolist() == list(range(0, 101, 4))
    assert result.temperature.images == 26
    assert result.confusion().sum() == 101


def test_progress_counts_the_teacher_s_batches_too():
    source = single_source(20)
    seen = []
    evaluated(two_heads(source), source, teacher=known_teacher(source), on_batch=lambda *step: seen.append(step))
    assert seen == [(i + 1, 6) for i in range(6)]


# --- several processes -----------------------------------------------------------------------------------


def in_processes(count: int, out: Path) -> list[dict]:
    ran = run_on_ranks("tests.evaluate.evaluation_cases", out, processes=count)
    assert ran.returncode == 0, ran.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_two_processes_find_the_same_integers_as_one(tmp_path):
    """101 images are not divided by 2, and of 1 image the second process gets none."""
    alone, together = in_processes(1, tmp_path / "1.json"), in_processes(2, tmp_path / "2.json")
    for one, two in zip(alone, together, strict=True):
        assert (one.pop("throughput")["processes"], two.pop("throughput")["processes"]) == (1, 2)
        for name, head in one["heads"].items():
            other = two["heads"][name]
            for key in ("images", "unanswered", "top1", "top5", "per_class", "confusion", "reliability"):
                np.testing.assert_equal(other[key], head[key])
            assert other["loss"] == pytest.approx(head["loss"], rel=1e-12)
        for key in ("images", "agreement", "temperature", "confused_pairs", "mistakes"):
            assert two[key] == one[key]
        for key, value in one["teacher"].items():
            assert two["teacher"][key] == pytest.approx(value, rel=1e-12)
    assert alone[0]["images"] == 101


# --- several labels and numbers --------------------------------------------------------------------------


def test_several_labels_equal_scikit_learn():
    from sklearn.metrics import average_precision_score, f1_score

    random = np.random.default_rng(0)
    labels = (random.random((70, 4)) < 0.4).astype(np.float32)
    table = random.normal(size=(70, 4)) + labels
    source = ArraySource(numbered_images(70), labels, CLASSES, problem_type=MULTI_LABEL)
    result = evaluated(TableEngine({"class": table}, CLASSES, MULTI_LABEL), source)
    assert result.heads["class"].scores.micro_f1 == pytest.approx(100 * f1_score(labels, table > 0, average="micro"))
    rows = result.per_class()
    assert [r["f1"] for r in rows] == pytest.approx((100 * f1_score(labels, table > 0, average=None)).tolist())
    expected = average_precision_score(labels, table, average=None)
    assert [r["average_precision"] for r in rows] == pytest.approx(expected.tolist())
    assert result.mean_average_precision == pytest.approx(expected.mean())
    assert result.as_dict()["mean_average_precision"] == result.mean_average_precision
    assert result.temperature is None
    assert result.agreement == {}
    assert result.mistakes() == []
    assert result.worst_classes(1)[0]["average_precision"] == pytest.approx(min(expected))
    assert average_precision(table[:, 0], labels[:, 0]) == pytest.approx(expected[0])


def test_numbers_have_errors_and_the_farthest_come_first():
    true = np.linspace(-3, 3, 20).astype(np.float32)
    said = (true + np.linspace(0, 1, 20) ** 2).astype(np.float32)
    source = ArraySource(numbered_images(20), true, ["size"], problem_type=REGRESSION)
    result = evaluated(TableEngine({"class": said[:, None]}, ["size"], REGRESSION), source)
    assert result.heads["class"].scores.mean_absolute_error == pytest.approx(np.abs(said - true).mean(), rel=1e-6)
    assert [m.index for m in result.mistakes(3)] == [19, 18, 17]
    assert result.mistakes(1)[0].size == pytest.approx(1.0)
    assert result.mistakes(1)[0].true == "3"
    assert result.per_class() == []
    assert json.loads(json.dumps(result.as_dict()))["heads"]["class"]["images"] == 20


# --- what is refused -------------------------------------------------------------------------------------


def test_images_that_do_not_suit_the_model_are_refused():
    source = single_source(10)
    runner = two_heads(source)
    other = ArraySource(numbered_images(10), source.labels, ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="must have the model's classes, in its order: ant, bee, cow, dog"):
        evaluated(runner, other)
    with pytest.raises(ValueError, match=r"for single_label_classification\. Received: labels for regression"):
        evaluated(runner, ArraySource(numbered_images(10), np.zeros(10), ["x"], problem_type=REGRESSION))
    source.labels[2] = 4
    with pytest.raises(ValueError, match=r"Labels must lie in \[0, 4\). Received: 0 to 4"):
        evaluated(runner, source)
    source.labels = source.labels[:0]
    with pytest.raises(ValueError, match="no images"):
        evaluated(runner, source)


def test_a_teacher_that_does_not_suit_is_refused():
    source = single_source(10)
    teacher = Predictor(TableEngine({"class": np.zeros((10, 2))}, ["ant", "cow"]))
    with pytest.raises(ValueError, match=r"lacks 2 of the model's 4 classes: bee, dog\. It knows: ant, cow"):
        evaluated(two_heads(source), source, teacher=teacher)
    numbers = Predictor(TableEngine({"class": np.zeros((10, 1))}, ["x"], REGRESSION))
    with pytest.raises(ValueError, match="must choose one class"):
        evaluated(two_heads(source), source, teacher=numbers)
    numeric = ArraySource(numbered_images(10), np.zeros(10), ["x"], problem_type=REGRESSION)
    with pytest.raises(ValueError, match="needs one class for each image"):
        evaluated(numbers.engine, numeric, teacher=teacher)


def test_an_image_that_cannot_be_read_any_more_is_left_out_of_everything_and_told(monkeypatch):
    source = single_source()
    runner = two_heads(source)
    others = Subset(source, np.setdiff1d(np.arange(len(source.labels)), [3, 10]))
    expected = evaluated(runner, others)
    read = source.image

    def image(index):
        if index in (3, 10):
            raise ImageError(f"{index}.png is gone.")
        return read(index)

    monkeypatch.setattr(source, "image", image)
    result = evaluated(runner, source)
    assert result.left_out == {3: "3.png is gone.", 10: "10.png is gone."}
    assert result.labels.tolist() == others.labels.tolist()
    values, wanted = ({**r.as_dict(), "throughput": 0, "left_out": 0} for r in (result, expected))
    assert json.dumps(values) == json.dumps(wanted)  # in which NaN equals NaN

"""Mistakes by the share answered, and what the sets of a calibration gave, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

import deit
from deit.core.scores.calibration import confidences, expected_calibration_error, reliability
from deit.core.scores.conformal import class_scores
from deit.core.scores.intervals import share_interval
from deit.data.sources import ArraySource
from deit.evaluate.evaluation import evaluate_model
from deit.evaluate.report import write_evaluation_report
from deit.evaluate.selective import risk_curve
from deit.inference.predictor import Predictor
from tests.evaluate.evaluation_cases import CLASSES, TableEngine, numbered_images, single_source, two_heads


def test_the_risk_of_each_share_is_that_of_its_surest_images():
    random = np.random.default_rng(0)
    sure = random.uniform(size=1000)
    right = random.uniform(size=1000) < sure
    points, mean, (low, high) = risk_curve(sure, right)
    order = sorted(range(1000), key=lambda i: -sure[i])
    for point in points:
        surest = order[: round(10 * point.answered)]
        wrong = 100 * sum(not right[i] for i in surest) / len(surest)
        assert (point.images, point.risk) == (len(surest), pytest.approx(wrong))
        assert point.interval == share_interval(point.risk, len(surest))
        assert point.confidence == min(sure[i] for i in surest)
    by_hand = np.mean([100 * np.mean([not right[i] for i in order[:n]]) for n in range(1, 1001)])
    assert mean == pytest.approx(by_hand)
    assert low < mean < high
    areas = [risk_curve(sure[rows], right[rows])[1] for rows in (random.integers(0, 1000, 1000) for _ in range(30))]
    assert np.mean([low <= area <= high for area in areas]) >= 0.8


def test_an_evaluation_counts_what_the_sets_hold_on_its_own_images(tmp_path):
    source = single_source(200)
    engine = two_heads(source)
    first, second = (
        ArraySource(numbered_images(200)[part], source.labels[part], CLASSES) for part in (slice(100), slice(100, 200))
    )
    predictor = Predictor(engine)
    predictor.calibration = deit.calibrate(predictor, first)
    result = evaluate_model(predictor, second)
    logits = engine.tables["both"][100:]
    assert [(one.sets, one.asked) for one in result.trust.coverage] == [
        (sets, percent) for percent in (90, 95, 99) for sets in ("lac", "aps", "raps")
    ]
    for one in result.trust.coverage:
        scores = predictor.calibration.scores[one.sets]
        limit = np.sort(scores)[int(np.ceil(101 * one.asked / 100 - 1e-9)) - 1]
        inside = class_scores(one.sets, logits) <= limit
        single = inside.sum(axis=1) == 1
        inside[np.arange(100), logits.argmax(axis=1)] = True
        covered = inside[np.arange(100), second.labels]
        assert one.covered == 100 * covered.mean()
        assert one.interval == share_interval(one.covered, 100)
        assert one.size == inside.sum(axis=1).mean()
        assert one.size_interval[0] <= one.size <= one.size_interval[1]
        assert one.single == 100 * single.mean()
        if single.any():
            assert one.single_risk == pytest.approx(100 * (1 - covered[single].mean()))
    sure = confidences(logits, predictor.calibration.temperature("both"))
    bins = reliability(sure, logits.argmax(axis=1) == second.labels)
    assert result.trust.calibration_error == expected_calibration_error(bins)
    lines = result.trust.lines()
    assert any(line.startswith("Sets for 95 %: hold ") for line in lines)
    page = write_evaluation_report(tmp_path / "r.html", result, second, model="m", data="d").read_text()
    assert "Mistakes by the share answered" in page
    assert "Prediction sets" in page
    assert result.as_dict()["trust"]["coverage"][0]["asked"] == 90


def test_another_head_than_the_answer_has_no_sets_and_a_raw_model_has_a_risk_alone(tmp_path):
    source = single_source(150)
    predictor = Predictor(two_heads(source))
    raw = evaluate_model(predictor, source)
    assert raw.trust.temperature is None
    assert raw.trust.coverage == ()
    assert len(raw.trust.risk) == 9
    page = write_evaluation_report(tmp_path / "r.html", raw, source, model="m", data="d").read_text()
    assert "Prediction sets" not in page
    predictor.calibration = deit.calibrate(predictor, source)
    assert evaluate_model(predictor, source, head="class").trust.coverage == ()


def test_a_regression_has_intervals_and_several_labels_nothing():
    numbers = np.random.default_rng(0).uniform(0, 10, 200).astype(np.float32)
    errors = np.random.default_rng(1).normal(size=200)
    source = ArraySource(numbered_images(200), numbers, problem_type="regression")
    predictor = Predictor(TableEngine({"class": (numbers + errors)[:, None]}, ["value"], "regression"))
    assert evaluate_model(predictor, source).trust is None
    predictor.calibration = deit.calibrate(predictor, source)
    found = evaluate_model(predictor, source).trust
    assert [one.asked for one in found.coverage] == [90, 95, 99]
    assert [one.covered for one in found.coverage] == [90.5, 95.5, 99.5]  # ranks 181, 191 and 199 of 200
    assert found.lines()[0].startswith("Intervals for 90 %: hold 90.5 % (")
    labels = (np.random.default_rng(0).uniform(size=(60, 2)) < 0.5).astype(np.float32)
    several = ArraySource(numbered_images(60), labels, problem_type="multi_label_classification")
    engine = TableEngine({"class": labels - 0.5}, several.classes, several.problem_type)
    assert evaluate_model(Predictor(engine), several).trust is None

"""`calibrate` and what predictors make of it, with models of which every answer is known."""

from __future__ import annotations

import numpy as np
import pytest

import deit
from deit.core.scores.calibration import fit_temperature
from deit.core.scores.metrics import softmax
from deit.data.sources import ArraySource
from deit.evaluate.calibrating import FEWEST_IMAGES
from deit.evaluate.evaluation import evaluate_model
from deit.inference.predictor import Predictor
from tests.evaluate.evaluation_cases import CLASSES, TableEngine, numbered_images, single_source, two_heads

COUNT = 200


def multi_source(count=COUNT, seed=0):
    labels = (np.random.default_rng(seed).uniform(size=(count, 3)) < 0.4).astype(np.float32)
    return ArraySource(numbered_images(count), labels, ["sun", "sea", "sky"], problem_type="multi_label_classification")


def multi_engine(source):
    noise = np.random.default_rng(1).normal(size=source.labels.shape)
    return TableEngine({"class": 5 * (source.labels - 0.5 + 0.6 * noise)}, source.classes, source.problem_type)


def calibrated(engine, source, **options):
    predictor = Predictor(engine)
    predictor.calibration = deit.calibrate(predictor, source, **options)
    return predictor


def test_each_head_gets_its_own_temperature_and_scores_are_divided_by_that_of_the_answer():
    source = single_source(COUNT)
    engine = two_heads(source)
    predictor = calibrated(engine, source)
    for name, table in engine.tables.items():
        assert predictor.calibration.temperature(name) == fit_temperature(table, source.labels)
    image = np.full((2, 2), 7, np.uint8)
    found = predictor.classify([image], top_k=4)[0]
    expected = softmax(engine.tables["both"][7] / predictor.calibration.temperature("both"))
    assert {p.label: p.score for p in found} == pytest.approx(
        dict(zip(CLASSES, expected.tolist(), strict=True)), rel=1e-5
    )
    assert found.judgement is not None
    assert Predictor(engine).classify([image])[0].judgement is None


def test_sets_hold_the_classes_up_to_the_threshold_and_never_none():
    source = single_source(COUNT)
    engine = two_heads(source)
    predictor = calibrated(engine, source)
    images = list(numbered_images(COUNT))
    found = predictor.classify(images, coverage=90)
    scores = 1 - softmax(engine.tables["both"].astype(np.float64))
    true = np.sort(scores[np.arange(COUNT), source.labels])
    limit = true[int(np.ceil((COUNT + 1) * 0.9)) - 1]
    for i, one in enumerate(found):
        expected = {CLASSES[k] for k in np.flatnonzero(scores[i] <= limit)} or {CLASSES[int(scores[i].argmin())]}
        assert set(one.judgement.prediction_set) == expected
        assert one.judgement.prediction_set[0] == one[0].label
    covered = [CLASSES[source.labels[i]] in one.judgement.prediction_set for i, one in enumerate(found)]
    assert np.mean(covered) >= 0.9


def test_abstaining_names_nothing_unless_one_class_is_possible():
    source = single_source(COUNT)
    predictor = calibrated(two_heads(source), source)
    images = list(numbered_images(COUNT))
    sets = predictor.classify(images, coverage=80)
    told = predictor.classify(images, coverage=80, abstain=True)
    for one, other in zip(sets, told, strict=True):
        if len(one.judgement.prediction_set) > 1:
            assert other == []
            assert f"{len(one.judgement.prediction_set)} classes are possible at a coverage of 80 %" in other.abstained
            with pytest.raises(IndexError, match="classes are possible"):
                other[0]
        elif not other.abstained:
            assert other[0] == one[0]
    wrong = [o[0].label != CLASSES[source.labels[i]] for i, o in enumerate(told) if o]
    assert 0 < len(wrong) < COUNT
    assert sum(wrong) <= 0.2 * COUNT + 1  # of all images, not of those that are named


@pytest.mark.parametrize("count", [5, FEWEST_IMAGES - 1])
def test_too_few_images_are_refused_with_the_number_needed_before_any_work(count):
    source = single_source(count)
    engine = two_heads(source)
    engine.tables = {}  # would fail
    with pytest.raises(ValueError, match=rf"at least 50 images.*Received: {count}\. .* from 19 images on"):
        deit.calibrate(Predictor(engine), source)


def test_images_of_one_class_are_refused_and_a_class_without_images_is_named():
    source = single_source(COUNT)
    engine = two_heads(source)
    one = ArraySource(numbered_images(COUNT), np.zeros(COUNT, np.int64), CLASSES)
    with pytest.raises(ValueError, match="All 200 held-out images are of the class ant"):
        deit.calibrate(Predictor(engine), one)
    fewer = ArraySource(numbered_images(COUNT), source.labels % 3, CLASSES)
    assert any("nothing is known of them: dog." in note for note in deit.calibrate(Predictor(engine), fewer).notes)
    other = ArraySource(numbered_images(COUNT), source.labels, ["ant", "bee", "cow", "elk"])
    with pytest.raises(ValueError, match="must have the model's classes"):
        deit.calibrate(Predictor(engine), other)


def test_without_a_mistake_no_temperature_is_best_and_scores_stay_as_they_are():
    source = single_source(COUNT)
    engine = TableEngine({"class": 4 * np.eye(4)[source.labels]}, CLASSES)
    result = deit.calibrate(Predictor(engine), source)
    assert result.temperature("class") == 1
    assert any("No temperature is best for the head class" in note for note in result.notes)


def test_answers_that_are_no_numbers_are_left_out_and_counted():
    source = single_source(COUNT)
    engine = two_heads(source)
    for table in engine.tables.values():
        table[:20] = np.nan
    result = deit.calibrate(Predictor(engine), source)
    assert result.images == COUNT - 20
    assert "Left out, as the answer is NaN or infinite: 20 images." in result.notes
    for table in engine.tables.values():
        table[:180] = np.nan
    with pytest.raises(ValueError, match=r"at least 50 images could be read and have an answer. Received: 20"):
        deit.calibrate(Predictor(engine), source)


def test_several_labels_get_a_temperature_and_thresholds_for_what_is_asked():
    source = multi_source()
    predictor = calibrated(multi_engine(source), source, recall=0.9)
    points = predictor.calibration.points
    assert [p.label for p in points] == ["sun", "sea", "sky"]
    found = predictor.classify(list(numbered_images(COUNT)))
    for k, point in enumerate(points):
        named = np.array([point.label in one.judgement.named for one in found])
        assert named.sum() == point.named
        assert (named & (source.labels[:, k] == 1)).sum() == point.right
        assert point.right / point.positives >= 0.9
    with pytest.raises(ValueError, match="Prediction sets are for models that choose one class"):
        predictor.classify(list(numbered_images(3)), coverage=90)


def test_of_two_classes_the_threshold_is_for_the_one_that_is_named():
    source = single_source(COUNT, ["no", "yes"])
    engine = TableEngine({"class": two_heads(source).tables["class"]}, ["no", "yes"])
    predictor = calibrated(engine, source, precision=0.8, positive="yes")
    (point,) = predictor.calibration.points
    found = predictor.classify(list(numbered_images(COUNT)))
    assert all(len(one.judgement.named) == 1 for one in found)
    named = np.array([one.judgement.named == ("yes",) for one in found])
    assert named.sum() == point.named
    assert (named & (source.labels == 1)).sum() / named.sum() >= 0.8
    with pytest.raises(ValueError, match=r"positive must be one of the two classes, no or yes\. Received: ''"):
        deit.calibrate(Predictor(engine), source, precision=0.8)
    with pytest.raises(ValueError, match="precision or recall, not both"):
        deit.calibrate(Predictor(engine), source, precision=0.8, recall=0.8)
    with pytest.raises(ValueError, match="Pass precision or recall with it"):
        deit.calibrate(Predictor(engine), source, positive="yes")
    with pytest.raises(
        ValueError, match=r"models of two classes or of several labels\. This one is for one class of 4"
    ):
        deit.calibrate(Predictor(two_heads(single_source())), single_source(), recall=0.8)


def test_a_threshold_that_nothing_reaches_is_refused():
    source = multi_source()
    random = TableEngine(
        {"class": np.random.default_rng(3).normal(size=(COUNT, 3))}, source.classes, source.problem_type
    )
    with pytest.raises(
        ValueError, match=r"No threshold for sky: a precision of 0\.99 is out of reach with \d+ held-out"
    ):
        deit.calibrate(Predictor(random), source, precision=0.99)


def test_a_regression_gets_intervals_from_its_errors():
    numbers = np.random.default_rng(0).uniform(0, 10, COUNT).astype(np.float32)
    errors = np.random.default_rng(1).normal(size=COUNT)
    source = ArraySource(numbered_images(COUNT), numbers, problem_type="regression")
    predictor = calibrated(TableEngine({"class": (numbers + errors)[:, None]}, ["value"], "regression"), source)
    (found,) = predictor.classify([np.full((2, 2), 3, np.uint8)], coverage=90)
    half = np.sort(np.abs(errors))[int(np.ceil(201 * 0.9)) - 1]
    value = numbers[3] + errors[3]
    assert found.judgement.interval == pytest.approx((value - half, value + half), rel=1e-5)
    with pytest.raises(ValueError, match="A regression names no class, so it cannot abstain"):
        predictor.classify([np.zeros((2, 2), np.uint8)], abstain=True)


def test_coverage_needs_a_calibration():
    predictor = Predictor(two_heads(single_source()))
    for options in ({"coverage": 95}, {"abstain": True}):
        with pytest.raises(ValueError, match="need a calibration"):
            predictor.classify([np.zeros((2, 2), np.uint8)], **options)


def test_an_evaluation_still_measures_the_raw_scores_of_a_calibrated_model():
    source = single_source(COUNT)
    engine = two_heads(source)
    raw, new = (evaluate_model(p, source) for p in (Predictor(engine), calibrated(engine, source)))
    assert new.heads["both"].calibration_error == raw.heads["both"].calibration_error

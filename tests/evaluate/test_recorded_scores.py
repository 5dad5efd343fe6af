"""What training wrote down, beside what is seen: which images they are, and whether the numbers are the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deit.data.divisions import split_indices
from deit.data.sources import Subset
from deit.evaluate.recorded_scores import RecordedScores, held_out, read_recorded_scores
from tests.evaluate.evaluation_cases import single_source

SCORES = {"both": {"top1": 80.0, "loss": 0.5, "images": 20}, "class": {"top1": 70.0, "loss": 0.75, "images": 20}}


@pytest.fixture
def trained(tmp_path):
    """A folder with the record of a training that kept 30 % of 40 images, and the images: all, learnt from, kept."""
    whole = single_source(40)
    first, second = split_indices(whole.labels, whole.classes, 0.3, 0)
    train, val = Subset(whole, first), Subset(whole, second)
    record = {
        "scores": SCORES,
        "recipe": {"data": {"val_fraction": 0.3}},
        "data": {"train_fingerprint": train.fingerprint(), "val_fingerprint": val.fingerprint()},
    }
    (tmp_path / "training.json").write_text(json.dumps(record), encoding="utf-8")
    return tmp_path, {"whole": whole, "training": train, "validation": val, "": single_source(39)}


@pytest.mark.parametrize("part", ["validation", "training", "whole", ""])
def test_images_are_known_by_their_fingerprint(trained, part):
    folder, sources = trained
    recorded = read_recorded_scores(folder, sources[part])
    assert recorded.part == part
    assert recorded.scores == SCORES


def test_the_part_that_was_kept_is_found_again(trained):
    folder, sources = trained
    part = held_out(folder, sources["whole"])
    np.testing.assert_array_equal(part.labels, sources["validation"].labels)
    assert part.fingerprint() == sources["validation"].fingerprint()
    assert held_out(folder, sources[""]) is None
    assert held_out(folder, single_source(3)) is None


def test_a_model_that_was_not_trained_here_has_no_record(tmp_path):
    assert read_recorded_scores(tmp_path, single_source(9)) is None
    assert held_out(tmp_path, single_source(9)) is None


def test_equal_scores_are_said_to_be_the_same():
    seen = {"both": {"top1": 80.0, "loss": 0.5004}, "class": {"top1": 70.0, "loss": 0.75}}
    notes = RecordedScores(part="validation", scores=SCORES).notes(seen)
    assert notes == ["Recorded at training, on these images: both: top-1 80.00 %, loss 0.500. Seen now is the same."]


def test_other_scores_are_said_to_differ_head_by_head():
    seen = {"both": {"top1": 80.0, "loss": float("nan")}, "class": {"top1": 65.0, "loss": 0.75}}
    (note,) = RecordedScores(part="validation", scores=SCORES).notes(seen)
    assert note.endswith(
        "Seen now is something else (both: loss 0.500 then, loss - now; class: top-1 70.00 % then, top-1 65.00 % now)."
    )


@pytest.mark.parametrize(
    ("part", "words"), [("training", "was trained on these very images"), ("whole", "Pass --held-out"), ("", None)]
)
def test_images_that_the_model_knows_are_pointed_out(part, words):
    notes = RecordedScores(part=part, scores=SCORES).notes({"both": {"top1": 1.0}})
    assert (notes == []) if words is None else (words in notes[0])

"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from deit.core.printable import counted
from deit.train.optimization import describe_rates
from deit.train.recipes.recipe import Recipe


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [(1, ("epoch",), "1 epoch"), (0, ("epoch",), "0 epochs"), (1.0, ("epoch",), "1 epoch"),
     (0.25, ("epoch",), "0.25 epochs"),
     (1_000_000, ("image",), "1000000 images"),
     (2, ("class", "classes"), "2 classes"), (1, ("class", "classes"), "1 class")],
)  # fmt: skip
def test_a_number_has_its_noun(number, words, expected):
    assert counted(number, *words) == expected


def test_one_epoch_is_one():
    one = Recipe().with_settings({"schedule.epochs": 1, "schedule.warmup_epochs": 1})
    said = " ".join(describe_rates(one, steps_per_epoch=10))
    assert " in 1 epoch, " in said
    assert "1 epochs" not in said

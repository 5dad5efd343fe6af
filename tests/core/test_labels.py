"""Class names and their numbers."""

from __future__ import annotations

import pytest

from deit.core.labels import id2label_from_names, names_in_order


def test_names_are_numbered_in_the_order_given_and_come_back_in_it():
    assert id2label_from_names(["owl", "cat"]) == {0: "owl", 1: "cat"}
    assert names_in_order({1: "cat", 10: "eel", 0: "owl"}) == ["owl", "cat", "eel"]


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match=r"Class names must differ. Named more than once: cat, owl\."):
        id2label_from_names(["owl", "cat", "owl", "cat", "eel"])

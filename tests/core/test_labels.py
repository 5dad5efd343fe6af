"""Class names and their numbers."""

from __future__ import annotations

from deit.core.labels import distinct_names, id2label_from_names, names_in_order, numbers_by_name, repeated_names


def test_names_are_numbered_in_the_order_given_and_come_back_in_it():
    assert id2label_from_names(["owl", "cat"]) == {0: "owl", 1: "cat"}
    assert names_in_order({1: "cat", 10: "eel", 0: "owl"}) == ["owl", "cat", "eel"]


def test_several_classes_may_have_one_name():
    """ImageNet has two classes called "crane": the number is the class, the name is only shown."""
    names = ["crane", "cat", "crane"]
    assert id2label_from_names(names) == {0: "crane", 1: "cat", 2: "crane"}
    assert repeated_names(names) == {"crane": [0, 2]}
    assert numbers_by_name(names) == {"cat": 1}
    assert distinct_names(names) == ["crane (0)", "cat", "crane (2)"]
    assert distinct_names(["cat", "dog"]) == ["cat", "dog"]

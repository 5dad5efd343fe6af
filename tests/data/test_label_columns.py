"""Labels as they are written, and the arrays made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from deit.data.labels.label_columns import EncodedLabels, LabelColumn, encode_labels, zeros_and_ones

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def encode(values: list[Any], problem_type: str = SINGLE, **options: Any) -> EncodedLabels:
    column = {key: options.pop(key) for key in ("class_names", "zeros_and_ones") if key in options}
    return encode_labels(
        LabelColumn(name="species", values=values, **column), problem_type, place=lambda row: f"row {row}", **options
    )


# --- one class ----------------------------------------------------------------------------------------


def test_texts_are_classes_in_the_order_of_the_alphabet():
    encoded = encode(["owl", " cat ", "owl"])
    assert encoded.classes == ["cat", "owl"]
    assert encoded.labels.tolist() == [1, 0, 1]
    assert encoded.labels.dtype == np.int64
    assert not encoded.missing.any()


@pytest.mark.parametrize("values", [[10, 2, 1], ["10", "2", "1"], [10.0, 2.0, 1.0], np.array([10, 2, 1]).tolist()])
def test_numbers_without_names_are_classes_in_the_order_of_their_value(values):
    encoded = encode(values)
    assert encoded.classes == ["1", "2", "10"]
    assert encoded.labels.tolist() == [2, 1, 0]


def test_numbers_with_names_stand_for_them_and_names_that_none_has_stay():
    encoded = encode([2, 0], class_names=("owl", "cat", "eel"))
    assert encoded.classes == ["owl", "cat", "eel"]
    assert encoded.labels.tolist() == [2, 0]


def test_given_classes_fix_the_order_by_name():
    assert encode([2, 0], class_names=("owl", "cat", "eel"), classes=["cat", "eel", "owl"]).labels.tolist() == [1, 2]
    assert encode(["eel", "owl"], classes=["cat", "eel", "owl"]).labels.tolist() == [1, 2]
    assert encode([7, 5], classes=["3", "5", "7"]).labels.tolist() == [2, 1]


@pytest.mark.parametrize("value", [None, "", "  ", -1, "-1", math.nan])
def test_what_counts_as_no_label(value):
    encoded = encode(["owl" if isinstance(value, str) else 3, value])
    assert encoded.missing.tolist() == [False, True]
    assert len(encoded.classes) == 1


def test_numbers_fit_a_model_whose_classes_have_words_for_names_where_that_is_asked_for():
    assert encode([2, 0], classes=["owl", "cat", "eel"], numbers_fit=True).labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"labels that are not among the 3 classes: 0, 2\. Known: owl, cat, eel\."):
        encode([2, 0], classes=["owl", "cat", "eel"])
    with pytest.raises(ValueError, match="not among the 3 classes: 0, 3"):
        encode([3, 0], classes=["owl", "cat", "eel"], numbers_fit=True)
    with pytest.raises(ValueError, match="not among the 3 classes: 2"):  # 2 must not become the class named 3
        encode([1, 2], classes=["0", "1", "3"], numbers_fit=True)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([[1, 2]], None, r"several labels for an image \(row 0\).*data.problem_type=multi_label_classification"),
        ([0.5], None, "row 0 has the label 0.5 .* neither a name nor a class number.*data.problem_type=regression"),
        (["1", "0.5"], None, "row 1 has the label '0.5'"),
        ([-2], None, "row 0 has the label -2"),
        ([math.inf], None, "row 0 has the label inf"),
        ([{"a": 1}], None, "row 0 has the label"),
        ([0, 3], ("a", "b"), "row 1 has the label 3, but column 'species' names 2 classes"),
        (["a"], ("a", "a"), "2 of the 2 classes are called 'a' \\(numbers 0, 1\\)"),
    ],
)
def test_what_cannot_be_a_class_is_refused_with_its_place(values, names, message):
    with pytest.raises(ValueError, match=message):
        encode(values, class_names=names)


@pytest.mark.parametrize(
    ("values", "problem_type", "options"),
    [
        (["owl"], SINGLE, {"classes": ["cat", "eel"]}),
        ([[1, 2]], SINGLE, {}),
        ([1], REGRESSION, {"class_names": ("a", "b")}),
    ],
)
def test_how_another_column_is_chosen_is_said_for_both_commands(values, problem_type, options):
    with pytest.raises(ValueError, match=r"--set data.label_column=NAME \(deit evaluate: --label-column NAME\)"):
        encode(values, problem_type, **options)


# --- several classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [["owl|cat", "eel", "cat; owl"], [["owl", "cat"], ["eel"], ["cat", "owl"]], [[2, 0], [1], [0, 2]]]
)
def test_several_classes_become_zeros_and_ones(values):
    names = ("cat", "eel", "owl") if values[1] == [1] else None
    encoded = encode(values, MULTI, class_names=names)
    assert encoded.classes == ["cat", "eel", "owl"]
    assert encoded.labels.dtype == np.float32
    assert encoded.labels.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_an_empty_list_is_no_class_and_an_empty_text_is_no_label():
    encoded = encode([[], ["a"], None], MULTI)
    assert encoded.labels.tolist() == [[0], [1], [0]]
    assert encoded.missing.tolist() == [False, False, True]
    assert encode(["", "a", " | "], MULTI).missing.tolist() == [True, False, True]


def test_rows_of_zeros_and_ones_are_matched_by_name():
    values = [(1, 0, 1), (0, 0, 0), (None, 1, 1)]
    encoded = encode(values, MULTI, class_names=("a", "b", "c"), zeros_and_ones=True, classes=["c", "b", "a", "d"])
    assert encoded.labels.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert encoded.missing.tolist() == [False, False, True]
    with pytest.raises(ValueError, match="row 0 has 2 zeros and ones for 3 classes"):
        encode([(1, 0)], MULTI, class_names=("a", "b", "c"), zeros_and_ones=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 0, 1], [1, 1, 0]], True),
        ([[0.0, 1.0]], True),
        ([[True, False], None], True),
        ([[0, 1], [1, 0]], False),  # two numbers of classes
        ([[0, 0, 1], [1, 0]], False),
        ([[0, 2, 2]], False),
        ([["0", "0"]], False),
        ([[], []], False),
        ([None], False),
    ],
)
def test_which_lists_are_zeros_and_ones(values, expected):
    assert zeros_and_ones(values) is expected


# --- numbers ------------------------------------------------------------------------------------------


def test_numbers_to_learn():
    encoded = encode(["1.5", 2, None, "", -1, math.nan, "nan"], REGRESSION)
    assert encoded.classes == ["species"]
    assert encoded.labels.dtype == np.float32
    assert encoded.labels[~encoded.missing].tolist() == [1.5, 2.0, -1.0]
    assert encoded.missing.tolist() == [False, False, True, True, False, True, True]
    assert encode([1.0], REGRESSION, classes=["age"]).classes == ["age"]


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ("owl", {}, "row 0 has 'owl' in column 'species', which is not a finite number"),
        ([1.0], {}, "which is not a finite number"),
        (math.inf, {}, "which is not a finite number"),
        (1e300, {}, "which is not a finite number"),
        (1, {"class_names": ("a", "b")}, r"Column 'species' holds classes \(a, b\), not numbers"),
        (1, {"classes": ["a", "b"]}, "one number for each image. Received: 2 classes"),
    ],
)
def test_what_cannot_be_a_number_is_refused(value, options, message):
    with pytest.raises(ValueError, match=message):
        encode([value], REGRESSION, **options)


def test_an_unknown_problem_type_is_refused():
    with pytest.raises(ValueError, match="Unknown problem_type 'ranking'"):
        encode([1], "ranking")

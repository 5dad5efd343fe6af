"""Cells of labels: several in one, zeros and ones, class numbers, empty cells; alike from every kind of file."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.data.labels.cells import are_switches, listed, read_switch, split_labels
from deit.data.open_data import open_data, open_labelled
from tests.data.pictures import encoded, picture, write_parquet, write_shard

pytest.importorskip("pyarrow")

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def stored(kind: str, folder: Path, columns: dict[str, list[Any]]) -> Any:
    """A file or data set of some kind with the same cells; as text where the kind knows no other."""
    count = len(next(iter(columns.values())))
    images = [encoded("red", i) for i in range(count)]
    if kind == "parquet":
        return write_parquet(folder / "a.parquet", {"image": images, **columns})
    if kind == "datasets":
        datasets = pytest.importorskip("datasets")
        cells = [{"bytes": image, "path": None} for image in images]
        rows = datasets.Dataset.from_dict({"image": cells, **columns})
        return rows.cast_column("image", datasets.Image())
    if kind == "tar":
        members = {}
        for i, image in enumerate(images):
            members[f"{i}.png"] = image
            members[f"{i}.json"] = json.dumps({name: values[i] for name, values in columns.items()}).encode()
        return write_shard(folder / "a.tar", members)
    path = folder / f"a.{kind}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
        writer.writerow(["path", *columns])
        for i in range(count):
            picture("red", i).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", *("" if values[i] is None else values[i] for values in columns.values())])
    return path


def opened(kind: str, folder: Path, columns: dict[str, list[Any]], problem_type: str = SINGLE, **options: Any) -> Any:
    return open_labelled(stored(kind, folder, columns), part="train", problem_type=problem_type, **options)


every_kind = pytest.mark.parametrize("kind", ["csv", "parquet", "tar"])

# --- several labels in one cell -----------------------------------------------------------------------

LEAVES = [["rust"], ["scab"], ["rust", "scab"], ["scab", "rust"]]
EXPECTED = [[1, 0], [0, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize("kind", ["tsv", "datasets"])
def test_the_other_kinds_of_table_are_read_by_the_same_rule(tmp_path, kind):
    source = opened(kind, tmp_path, {"labels": [" ".join(names) for names in LEAVES]}, MULTI)
    assert (source.classes, source.labels.tolist()) == (["rust", "scab"], EXPECTED)
    source = opened(kind, tmp_path, {"cat": ["yes", "no"], "dog": ["no", "no"]}, MULTI)
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [[1, 0], [0, 0]])


@every_kind
@pytest.mark.parametrize(
    "write", [" ".join, ",".join, ", ".join, "|".join, ";".join, " / ".join, "+".join, str, json.dumps, tuple, set],
    ids=["space", "comma", "comma and space", "bar", "semicolon", "slash", "plus", "list", "json", "tuple", "set"],
)  # fmt: skip
def test_several_labels_in_one_cell_are_told_apart(tmp_path, kind, write):
    cells = [write(names) for names in LEAVES]
    source = opened(kind, tmp_path, {"labels": [c if isinstance(c, str) else str(c) for c in cells]}, MULTI)
    assert source.classes == ["rust", "scab"]
    assert source.labels.tolist() == EXPECTED


@pytest.mark.parametrize("kind", ["parquet", "datasets", "tar"])
def test_lists_are_read(tmp_path, kind):
    source = opened(kind, tmp_path, {"labels": LEAVES}, MULTI)
    assert (source.classes, source.labels.tolist()) == (["rust", "scab"], EXPECTED)


@every_kind
def test_names_with_spaces_and_commas_stay_whole_where_an_image_has_one(tmp_path, kind, caplog):
    names = ["polar bear", "crane, bird", "crane, machine", "black/white cat"]
    assert opened(kind, tmp_path, {"label": names}).classes == sorted(names)
    assert "may have several" not in caplog.text


@every_kind
def test_one_class_per_combination_is_told(tmp_path, kind, caplog):
    opened(kind, tmp_path, {"labels": ["rust", "scab", "rust scab", "rust"]})
    assert "holds 'rust scab', taken as one class. If an image may have several (rust, scab)" in caplog.text
    assert "--set data.problem_type=multi_label_classification" in caplog.text
    caplog.clear()
    opened(kind, tmp_path, {"labels": ["rust", "rust,mildew"]})
    assert "holds 'rust,mildew', taken as one class" in caplog.text


@every_kind
def test_a_separator_is_set(tmp_path, kind):
    cells = ["crane, bird", "polar bear", "owl"]
    assert opened(kind, tmp_path, {"labels": cells}, MULTI, label_separator="none").classes == sorted(cells)
    spaces = opened(kind, tmp_path, {"labels": cells}, MULTI, label_separator="space")
    assert spaces.classes == ["bear", "bird", "crane,", "owl", "polar"]
    commas = opened(kind, tmp_path, {"labels": cells}, MULTI, label_separator=",")
    assert commas.classes == ["bird", "crane", "owl", "polar bear"]


def test_what_may_be_one_name_or_several_is_asked():
    with pytest.raises(ValueError, match=r"'crane, bird', which may be one name or several.*label_separator=comma"):
        split_labels(["crane, bird", "owl, bird", "eel"], column="labels")
    with pytest.raises(ValueError, match=r"'polar bear', which may be one name or several.*label_separator=space"):
        split_labels(["red car", "red", "car", "polar bear"], column="labels")
    cells, notes = split_labels(["polar bear", "owl", "brown bear"], column="labels")
    assert (cells, notes) == ([["polar bear"], ["owl"], ["brown bear"]], [])


def test_known_classes_settle_what_a_cell_holds():
    known = {"crane, bird", "owl", "eel"}
    assert split_labels(["owl, eel", "crane, bird"], classes=known, column="x")[0] == [["owl", "eel"], ["crane, bird"]]
    assert split_labels(["a b", "b"], classes={"a", "b"}, column="x")[0] == [["a", "b"], ["b"]]
    assert split_labels(["a|b"], classes={"a|b", "c"}, column="x")[0] == [["a|b"]]


def test_the_separator_is_noted_and_so_is_a_column_that_never_holds_two(tmp_path, caplog):
    opened("csv", tmp_path, {"labels": ["a", "b", "a b"]}, MULTI)
    assert "Labels of column 'labels' are separated at ' ', as in 'a b'" in caplog.text
    caplog.clear()
    opened("csv", tmp_path, {"labels": ["a-b", "b", "a"]}, MULTI)
    assert "No image has two labels in column 'labels' (such as 'a-b')" in caplog.text
    caplog.clear()
    opened("csv", tmp_path, {"labels": ["a|b", "b", "a"]}, MULTI)
    assert "No image" not in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b c"]', ["a", "b c"]),
        ("['a' 'b']", ["a", "b"]),  # as NumPy prints
        ("[1 2 3]", [1, 2, 3]),
        ("[0., 1.]", [0.0, 1.0]),
        ("[]", []),
        ("('a',)", ["a"]),
        ("{'a', \"b's\"}", ["a", "b's"]),
        (r"['it\'s']", ["it's"]),
        ("[a, b]", ["a", "b"]),
        ("[True, False, None]", [True, False, None]),
        ("[a b]", None),
        ("['a''b']", None),
        ("{'a': 1}", None),
        ("(left) hand", None),
        ("['a')", None),
        ("['a', ['b']]", None),
        ("a", None),
        ("[" * 5000, None),
        ("[" + "a " * 4000 + "!", None),
    ],
)
def test_lists_written_as_text(text, expected):
    assert listed(text) == expected


# --- zeros and ones -----------------------------------------------------------------------------------

SPELLED = {
    "integers": (1, 0), "fractions": (1.0, 0.0), "truth": (True, False), "words": ("yes", "no"), "letters": ("Y", "N"),
    "signs": (1, -1), "text": ("1", "0"), "text of fractions": ("1.0", "0.0"), "capitals": ("TRUE", "FALSE"),
}  # fmt: skip


@every_kind
@pytest.mark.parametrize("spelling", SPELLED)
def test_columns_of_zeros_and_ones_in_every_spelling(tmp_path, kind, spelling):
    one, zero = SPELLED[spelling]
    columns = {"cat": [one, zero, one], "dog": [zero, zero, one], "age": [3, 4, 50]}
    source = opened(kind, tmp_path, columns, MULTI)
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    chosen = opened(kind, tmp_path, columns, MULTI, label_column="dog,cat")
    assert chosen.classes == ["dog", "cat"]
    with pytest.raises(ValueError, match=r"Column 'age' of .* does not hold zeros and ones"):
        opened(kind, tmp_path, columns, MULTI, label_column="cat,age")


@every_kind
def test_what_minus_one_means_among_zeros_and_ones(tmp_path, kind, caplog):
    assert opened(kind, tmp_path, {"cat": [1, -1], "dog": [-1, -1]}, MULTI).labels.tolist() == [[1, 0], [0, 0]]
    assert "-1 in the columns cat, dog of" in caplog.text
    with pytest.raises(ValueError, match=r"hold -1, 0 and 1 \('dog' has -1\), so the meaning of -1 is unknown"):
        opened(kind, tmp_path, {"cat": [1, 0], "dog": [0, -1]}, MULTI)


@every_kind
def test_rows_with_an_empty_cell_are_left_out_and_told(tmp_path, kind, caplog):
    source = opened(kind, tmp_path, {"cat": [1, 0, None], "dog": [0, 1, 1]}, MULTI)
    assert source.labels.tolist() == [[1, 0], [0, 1]]
    assert "1 rows of" in caplog.text
    assert [file.kind for file in source.skipped] == ["without a label"]


@every_kind
def test_rows_of_zeros_and_ones_written_as_text(tmp_path, kind):
    source = opened(kind, tmp_path, {"labels": ["[0, 0, 1]", "[1, 1, 0]"]}, MULTI)
    assert (source.classes, source.labels.tolist()) == (["0", "1", "2"], [[0, 0, 1], [1, 1, 0]])


def test_what_is_a_zero_or_a_one():
    assert [read_switch(v) for v in (True, 0.0, "Yes", " f ", "-1.0", "+1", -1)] == [1, 0, 1, 0, -1, 1, -1]
    assert [read_switch(v) for v in (2, "2", "", None, "maybe", 0.5, math.nan, [1])] == [None] * 8
    assert not are_switches([])
    assert not are_switches(["", None])


# --- class numbers, -1, empty cells -------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "cells", [[10, 2, 1], [10.0, 2.0, 1.0], ["10", "2", "1"], ["10.0", "2.0", "1.0"], ["10.", "2", "1.0"]]
)
def test_class_numbers_are_the_same_however_they_are_written(tmp_path, kind, cells):
    source = opened(kind, tmp_path, {"label": cells})
    assert (source.classes, source.labels.tolist()) == (["1", "2", "10"], [2, 1, 0])
    several = opened(kind, tmp_path, {"label": cells}, MULTI)
    assert several.classes == ["1", "2", "10"]


@every_kind
@pytest.mark.parametrize("cells", [[True, False], ["True", "False"], ["true", "FALSE"]])
def test_truth_values_are_classes_of_one_name(tmp_path, kind, cells):
    assert opened(kind, tmp_path, {"label": cells}).classes == ["False", "True"]


@every_kind
@pytest.mark.parametrize("minus", [-1, "-1", -1.0, "-1.0"])
def test_minus_one_is_no_label_and_that_is_told(tmp_path, kind, minus, caplog):
    numbers = [0, 1, 1] if not isinstance(minus, str) else ["0", "1", "1"]
    source = opened(kind, tmp_path, {"label": [*numbers, minus, minus]})
    assert (source.classes, source.labels.tolist()) == (["0", "1"], [0, 1, 1])
    assert [file.reason for file in source.skipped] == ["it has no label."] * 2
    assert "2 of 5 images have the label -1 in column 'label', which means no label" in caplog.text
    known = opened(kind, tmp_path, {"label": [*numbers, minus, minus]}, classes=["-1", "0", "1"])
    assert known.labels.tolist() == [1, 2, 2, 0, 0]


@every_kind
@pytest.mark.parametrize("empty", [None, "", "nan", " "])
def test_empty_cells_are_no_labels(tmp_path, kind, empty):
    for problem_type in (SINGLE, MULTI):
        source = opened(kind, tmp_path, {"label": ["cat", "dog", empty]}, problem_type)
        assert source.classes == ["cat", "dog"]
        assert len(source.labels) == 2


@every_kind
def test_nan_is_no_label_and_none_in_words_is_noted(tmp_path, kind, caplog):
    assert opened(kind, tmp_path, {"label": [1.0, 2.0, math.nan]}).classes == ["1", "2"]
    assert opened(kind, tmp_path, {"label": ["cat", "None"]}).classes == ["None", "cat"]
    assert "Column 'label' has a class named 'None'" in caplog.text


@every_kind
def test_numbers_to_learn_are_the_same_from_every_kind(tmp_path, kind):
    source = opened(kind, tmp_path, {"age": [1.5, -1.0, None, 3.0]}, REGRESSION, label_column="age")
    assert source.labels.tolist() == [1.5, -1.0, 3.0]


def test_lists_of_one_are_single_classes(tmp_path):
    for kind, cells in (("parquet", [["a"], ["b"]]), ("csv", ["['a']", "['b']"])):
        assert opened(kind, tmp_path, {"label": cells}).classes == ["a", "b"]
    with pytest.raises(ValueError, match="holds several labels for an image"):
        opened("csv", tmp_path, {"label": ["['a']", "['a', 'b']"]})


def test_a_validation_part_is_read_with_the_classes_of_training(tmp_path):
    rows = {"labels": ["a b", "a", "b", "c", "a c", "a b"], "split": ["train"] * 5 + ["val"]}
    data = open_data(stored("csv", tmp_path, rows), problem_type=MULTI)
    assert data.train.classes == ["a", "b", "c"]
    assert np.array_equal(data.val.labels, [[1, 1, 0]])


@every_kind
def test_rows_of_one_zero_and_one_one_are_no_lists_of_class_numbers(tmp_path, kind):
    rows = [[0, 1], [1, 0], [0, 1]]
    cells = rows if kind != "csv" else [str(row) for row in rows]
    assert opened(kind, tmp_path, {"labels": cells}, MULTI).labels.tolist() == rows
    with pytest.raises(ValueError, match=r"holds \[0, 1\] in every row: two class numbers, or a zero and a one"):
        opened(kind, tmp_path, {"labels": cells[::2]}, MULTI)

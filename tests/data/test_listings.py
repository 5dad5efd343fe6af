"""Images listed in CSV and TSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.core.images.reading import ImageError
from deit.data.readers.csv_files import read_table
from deit.data.readers.image_stores import StoredImages
from tests.data.pictures import COLOURS, fill, picture, write_truncated_jpeg

MULTI, REGRESSION = "multi_label_classification", "regression"


@pytest.fixture
def photos(tmp_path):
    """A folder with images/COLOUR/0.png and 1.png."""
    fill(tmp_path / "images", 2)
    return tmp_path


def write(folder: Path, text: str, name: str = "list.csv", **options: Any) -> Path:
    path = folder / name
    path.write_text(text, **{"encoding": "utf-8", **options})
    return path


def source(path: Path, **options: Any) -> StoredImages:
    columns = {key: options.pop(key) for key in ("image_column", "label_column") if key in options}
    problem_type = options.get("problem_type", "single_label_classification")
    parts = read_table(path, problem_type=problem_type, **columns)
    assert list(parts) == [""]
    return StoredImages(parts[""], **options)


# --- what is found ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("list.csv", "path,label\nimages/red/1.png,warm\nimages/blue/0.png,cold\n", "utf-8"),
        ("list.tsv", "path\tlabel\nimages/red/1.png\twarm\nimages/blue/0.png\tcold\n", "utf-8"),
        ("list.csv", "path;label\r\nimages/red/1.png;warm\r\nimages/blue/0.png;cold\r\n", "utf-8-sig"),
        ("list.csv", 'label,path\n\n"warm", images/red/1.png\n"cold",images/blue/0.png', "utf-8"),
        ("list.csv", "number,FileName,label\n7,images/red/1.png,warm\n8,images/blue/0.png,cold\n", "utf-8"),
        ("list.csv", "id,photo_of_it,class\n7,images/red/1.png,warm\n8,images/blue/0.png,cold\n", "utf-8"),
    ],
)
def test_a_table_gives_images_and_classes_in_its_order(photos, name, text, encoding):
    ours = source(write(photos, text, name, encoding=encoding))
    assert ours.classes == ["cold", "warm"]
    assert ours.labels.tolist() == [1, 0]
    assert np.array_equal(np.asarray(ours.image(0)), np.asarray(picture("red", 1)))
    assert np.array_equal(np.asarray(ours.image(1)), np.asarray(picture("blue", 0)))


def test_absolute_paths_and_columns_by_name(photos):
    text = f"a,b,c,d\n{photos}/images/red/0.png,images/blue/0.png,x,y\n"
    ours = source(write(photos, text), image_column="a", label_column="d")
    assert ours.classes == ["y"]
    assert np.array_equal(np.asarray(ours.image(0)), np.asarray(picture("red", 0)))


def test_several_classes_in_one_cell(photos):
    text = "path,labels\nimages/red/0.png,warm|bright\nimages/blue/0.png,cold\nimages/red/1.png, bright ; cold\n"
    ours = source(write(photos, text), problem_type=MULTI)
    assert ours.classes == ["bright", "cold", "warm"]
    assert ours.labels.tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]


def test_several_columns_of_zeros_and_ones(photos):
    text = "path,warm,bright,age,cold\nimages/red/0.png,1,1,30,0\nimages/blue/0.png,0,0,4,1\nimages/red/1.png,1,,9,0\n"
    ours = source(write(photos, text), problem_type=MULTI)
    assert ours.classes == ["warm", "bright", "cold"]
    assert ours.labels.tolist() == [[1, 1, 0], [0, 0, 1]]
    assert ours.skipped[0].path.endswith("list.csv line 4 (images/red/1.png)")
    assert ours.skipped[0].reason == "it has no label."
    chosen = source(photos / "list.csv", problem_type=MULTI, label_column="cold, warm")
    assert chosen.classes == ["cold", "warm"]
    assert chosen.labels.tolist() == [[0, 1], [1, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"Column 'age' of .*list.csv does not hold zeros and ones"):
        source(photos / "list.csv", problem_type=MULTI, label_column="cold,age")


def test_numbers_to_learn(photos):
    text = "path,age\nimages/red/0.png,1.5\nimages/blue/0.png,\nimages/red/1.png,-2\n"
    ours = source(write(photos, text), problem_type=REGRESSION)
    assert ours.classes == ["age"]
    assert ours.labels.tolist() == [1.5, -2.0]
    assert len(ours.skipped) == 1
    with pytest.raises(
        ValueError, match=r"line 2 \(images/red/0.png\) has the label '1.5' .*data.problem_type=regression"
    ):
        source(photos / "list.csv")


def test_a_column_split_divides_the_rows(photos):
    lines = [f"images/{c}/{i}.png,{c},{('Train', 'VALIDATION')[i]}" for c in COLOURS for i in range(2)]
    parts = read_table(write(photos, "path,label,Split\n" + "\n".join(lines) + "\nimages/red/0.png,red,test\n"))
    assert {name: len(part.store) for name, part in parts.items()} == {"train": 3, "val": 3, "test": 1}
    assert parts["val"].store.place(0).endswith("list.csv line 3 (images/blue/1.png)")
    with pytest.raises(ValueError, match=r"line 3 has the split 'holdout'. Use train, val \(or validation\) or test"):
        read_table(write(photos, "path,label,split\nimages/red/0.png,red,train\nimages/red/0.png,red,holdout\n"))


# --- what is left out or refused ----------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_left_out_with_their_line(photos):
    write_truncated_jpeg(photos / "half.jpg")
    (photos / "folder.png").mkdir()
    bad = [
        "gone.png,a",
        "half.jpg,a",
        ",a",
        "images/red/1.png,",
        "images/red/1.png",
        "folder.png,a",
        "http://x/a.png,a",
    ]
    path = write(photos, "path,label\nimages/red/0.png,a\n" + "\n".join(bad) + "\n")
    ours = source(path)
    assert ours.labels.tolist() == [0]
    reasons = {int(file.path.split(" line ")[1].split()[0]): file.reason for file in ours.skipped}
    assert reasons[3] == "there is no file 'gone.png'."
    assert reasons[4].startswith("cannot be read as an image (image file is truncated")
    assert reasons[5] == "it names no file."
    assert reasons[6] == "it has no label."
    assert reasons[7] == "it has 1 cells, but the header has 2."
    assert reasons[8] == "the file 'folder.png' cannot be read as an image: it is a folder, not a file."
    assert reasons[9] == "there is no file 'http://x/a.png'."
    with pytest.raises(ValueError, match=r"list.csv line 7: it has 1 cells, .* \(7 such files; strict is on.\)"):
        source(path, strict=True)


def test_a_file_that_vanishes_or_changes_later_is_said(photos):
    ours = source(write(photos, "path,label\nimages/red/0.png,a\nimages/red/1.png,b\n"))
    (photos / "images/red/0.png").unlink()
    picture("blue", 7).save(photos / "images/red/1.png")
    with pytest.raises(ImageError, match=r"list.csv line 2 \(images/red/0.png\): there is no file"):
        ours.image(0)
    with pytest.raises(ImageError, match=r"line 3 .*: it has changed since the data was opened"):
        ours.image(1)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "list.csv is empty. Its first line must name the columns, such as: path,label"),
        ("\n\n", {}, "list.csv is empty"),
        ("path,label\n", {}, r"list.csv has no rows under its header \(path, label\)"),
        ("images/red/0.png,warm\n", {}, "list.csv has no header"),
        ("path,path\na.png,b\n", {}, "names a column twice: path, path"),
        ("path\nimages/red/0.png\n", {}, "no column that can be the label. Its columns: path"),
        ("path,x,y\nimages/red/0.png,1,2\n", {}, "several columns that can be the label: x, y. .*label_column=x"),
        ("a,b,label\n1.png,2.png,x\n", {}, "several columns that can be the image: a, b. .*image_column=a"),
        ("a,label\nx,y\n", {}, "no column that can be the image. Its columns: a, label"),
        ("path,label\n1.png,x\n", {"image_column": "file"}, "has no column 'file'. Its columns: path, label"),
        (
            "path,label\n1.png,x\n",
            {"image_column": "label"},
            "Column 'label' of .* does not hold images but text such as 'x', which names no file. Columns .*: path",
        ),
        ('path,label\n"1.png,x\n', {}, "cannot be read as a table"),
        ("path,label\ngone.png,x\n", {}, "has no usable image. The first .* line 2 .* there is no file 'gone.png'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(photos, text, options, message):
    with pytest.raises(ValueError, match=message):
        source(write(photos, text), **options)


def test_a_table_in_another_encoding_is_refused(photos):
    with pytest.raises(ValueError, match=r"cannot be read as a table .* Save it as UTF-8 text"):
        source(write(photos, "path,label\nimages/red/0.png,größe\n", encoding="latin-1"))


def test_the_fingerprint_follows_the_images_and_not_their_names(photos):
    before = source(write(photos, "path,label\nimages/red/0.png,a\n")).fingerprint()
    (photos / "images/red/0.png").rename(photos / "other.png")
    path = write(photos, "path,label\nother.png,a\n")
    assert source(path).fingerprint() == before
    picture("red", 3).save(photos / "other.png")
    assert source(path).fingerprint() != before

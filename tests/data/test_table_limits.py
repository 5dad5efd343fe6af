"""Tables, Parquet files and shards that would fill the memory, wait for ever, or end a parser."""

from __future__ import annotations

import io
import json
import os
import tarfile

import pytest

from deit.core.errors import UserError
from deit.core.images.reading import ImageError
from deit.data.labels import label_columns
from deit.data.open_data import open_data
from deit.data.readers import csv_files as listings, parquet_limits, webdataset as shards
from deit.data.readers.parquet import read_parquet
from tests.data.pictures import COLOURS, encoded, fill, write_colours

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.tar"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_not_opened(name, kind, tmp_path):
    path = tmp_path / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is a pipe, a socket or a device"):
        open_data(path)


def _parquet(path, images, labels, **options):
    table = pa.table({"image": images, "label": labels})
    pq.write_table(table, path, compression="zstd", **options)
    return path


def test_more_rows_than_bytes_are_refused(tmp_path):
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array([encoded("red")]))
    path = _parquet(tmp_path / "a.parquet", images, ["cat"] * 100_000, store_schema=False)
    with pytest.raises(UserError, match=r"claims 100000 rows in \d+ bytes"):
        open_data(path)


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_cell_that_unpacks_to_much_is_refused_before_it_is_unpacked(column, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_limits, "MOST_UNPACKED_BYTES", 2**20)
    images, labels = [encoded("red"), encoded("green")], ["cat", "dog"]
    large = 3_000_000
    if column == "image":
        images[0] = bytes(large)
    else:
        labels[0] = "c" * large
    path = _parquet(tmp_path / "a.parquet", images, labels)
    with pytest.raises(UserError, match=rf"in its column '{column}' that unpack to"):
        open_data(path)


def test_a_dictionary_that_unpacks_to_much_is_refused(tmp_path):
    picture = encoded("red") + os.urandom(300_000)
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([picture]))
    path = _parquet(tmp_path / "a.parquet", images, ["cat", "dog"] * 1000, store_schema=False)
    with pytest.raises(UserError, match="unpacks to more than"):
        open_data(path)


@pytest.mark.parametrize("notes", [b'{"info":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"info": [1]}', b"[]"])
def test_notes_that_nobody_can_read_are_passed_over(notes, tmp_path):
    table = pq.read_table(write_colours(tmp_path / "a.parquet", 4))
    pq.write_table(table.replace_schema_metadata({b"huggingface": notes}), tmp_path / "a.parquet")
    assert len(open_data(tmp_path / "a.parquet").train.classes) == 3


def test_a_cell_does_not_name_a_device(tmp_path):
    cells = [{"bytes": None, "path": "/dev/zero"}, {"bytes": encoded("red"), "path": None}]
    pq.write_table(pa.table({"image": cells, "label": ["red", "red"]}), tmp_path / "a.parquet")
    part = read_parquet("", [tmp_path / "a.parquet"])
    with pytest.raises(ImageError, match="it is a device, not a file"):
        part.store.read(0)


def test_a_saved_data_set_nested_too_deep_is_refused(tmp_path):
    pytest.importorskip("datasets")
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(UserError, match="is damaged or is not a description of a saved data set"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("limit", "text", "message"),
    [
        ("MOST_LINE_CHARACTERS", "path,label\n" + "x" * 60 + ",red", "a line has more than 50 characters"),
        ("MOST_EMPTY_LINES", "path,label\n" + "\n" * 60 + "a.png,red", "more than 50 of its lines are empty"),
        ("MOST_COLUMNS", ",".join(f"c{i}" for i in range(60)) + "\na.png", "has 60 columns"),
    ],
)
def test_a_table_has_limits(limit, text, message, tmp_path, monkeypatch):
    monkeypatch.setattr(listings, limit, 50)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path / "a.csv")


def test_a_shard_of_headers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_MEMBERS_IN_A_ROW", 50)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(60):
            archive.addfile(tarfile.TarInfo(f"a/{i}.txt"), io.BytesIO())
    with pytest.raises(ValueError, match="has more than 50 consecutive members that are not images"):
        open_data(tmp_path / "a.tar")


def test_more_classes_than_any_label_set_has_are_refused(tmp_path, monkeypatch):
    from deit.data.labels import label_columns

    monkeypatch.setattr(label_columns, "MOST_LABELS", 2)
    fill(tmp_path, 2)
    rows = [f"{colour}/{i}.png,{colour}" for colour in COLOURS for i in range(2)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(ValueError, match="holds more than 2 classes"):
        open_data(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "record",
    [
        {"data": "many", "scores": 3},
        {"recipe": {"data": [1]}},
        {"recipe": {"data": {"val_fraction": "all"}}},
        {"scores": {"student": {"accuracy": [1]}}},
        {"images": [1]},
    ],
    ids=str,
)
def test_a_record_of_another_form_is_refused(record, tmp_path):
    from deit.core.model_directory import read_training_record

    (tmp_path / "training.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"training\.json is damaged"):
        read_training_record(tmp_path)


@pytest.mark.parametrize("kind", ["names", "numbers", "numbers written as text"])
def test_more_classes_than_may_be_are_found_before_anything_is_made_of_each(monkeypatch, kind):
    monkeypatch.setattr(label_columns, "MOST_LABELS", 3)
    monkeypatch.setattr(label_columns, "_plain", None)  # it makes several lists of all values
    make = {"names": "c{}".format, "numbers": int, "numbers written as text": str}[kind]
    column = label_columns.LabelColumn(name="label", values=[make(i) for i in range(4)])
    with pytest.raises(ValueError, match="'label' holds more than 3 classes"):
        label_columns.encode_labels(column, "single_label_classification", place=str)


def test_spellings_of_one_number_are_not_counted_as_classes(monkeypatch):
    monkeypatch.setattr(label_columns, "MOST_LABELS", 2)
    column = label_columns.LabelColumn(name="label", values=["1", "1.0", "1.00", "2", "2.0", "nan", "", None])
    found = label_columns.encode_labels(column, "single_label_classification", place=str)
    assert found.classes == ["1", "2"]

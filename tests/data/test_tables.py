"""Images in Parquet files and in data sets of the `datasets` package."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit.core.images.reading import ImageError
from deit.data.readers import parquet as parquet_tables
from deit.data.readers.hf_datasets import is_saved_dataset, load_saved_dataset, read_dataset
from deit.data.readers.image_stores import StoredImages
from deit.data.readers.parquet import read_parquet
from tests.data.pictures import COLOURS, encoded, picture, truncated_jpeg, write_colours, write_parquet, write_text

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MULTI, REGRESSION = "multi_label_classification", "regression"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(colour: str, seed: int) -> np.ndarray:
    return np.asarray(picture(colour, seed))


def source(path: Path, **options: Any) -> StoredImages:
    columns = {key: options.pop(key) for key in ("image_column", "label_column") if key in options}
    problem_type = options.get("problem_type", "single_label_classification")
    return StoredImages(read_parquet("train", [path], problem_type=problem_type, **columns), **options)


def hub_dataset(count: int = 2, **more: Any) -> Any:
    """What `datasets` itself makes of images and class labels, the independent side of these tests."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green", "blue"])}
    )
    rows = {
        "image": [{"bytes": encoded(c, i), "path": None} for c in COLOURS for i in range(count)],
        "label": [c for c in COLOURS for _ in range(count)],
    }
    return datasets.Dataset.from_dict({**rows, **more}, features=features)


# --- Parquet: what is found ---------------------------------------------------------------------------


def test_the_layout_of_the_hub_gives_what_datasets_gives(tmp_path):
    made = hub_dataset(3)
    made.to_parquet(tmp_path / "a.parquet")
    ours = source(tmp_path / "a.parquet")
    assert ours.classes == ["red", "green", "blue"]
    assert ours.labels.tolist() == made["label"][:]
    assert ours.problem_type == "single_label_classification"
    for i in (8, 0, 5):
        assert np.array_equal(np.asarray(ours.image(i)), np.asarray(made[i]["image"]))
        assert ours.image(i).mode == "RGB"


def test_plain_bytes_and_names_do_as_well(tmp_path):
    ours = source(write_colours(tmp_path / "a.parquet", 2))
    assert ours.classes == ["blue", "green", "red"]
    assert ours.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(np.asarray(ours.image(3)), pixels("green", 1))


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view()])
def test_other_types_of_bytes_are_images_too(tmp_path, kind):
    images = pa.array([encoded("red", 0), encoded("red", 1)]).cast(kind)
    ours = source(write_parquet(tmp_path / "a.parquet", {"image": images, "label": ["a", "b"]}))
    assert np.array_equal(np.asarray(ours.image(1)), pixels("red", 1))


def test_a_column_of_categories_gives_classes(tmp_path):
    labels = pa.array(["owl", "cat", "owl"]).dictionary_encode()
    ours = source(write_parquet(tmp_path / "a.parquet", {"image": [encoded()] * 3, "label": labels}))
    assert ours.classes == ["cat", "owl"]
    assert ours.labels.tolist() == [1, 0, 1]


def test_an_image_may_be_a_file_beside_the_table(tmp_path):
    (tmp_path / "one.png").write_bytes(encoded("green", 4))
    cells = [{"bytes": None, "path": "one.png"}, {"bytes": None, "path": "two.png"}, {"bytes": None, "path": None}]
    ours = source(write_parquet(tmp_path / "a.parquet", {"image": cells, "label": ["a", "a", "a"]}))
    assert np.array_equal(np.asarray(ours.image(0)), pixels("green", 4))
    assert [file.path for file in ours.skipped] == [f"{tmp_path}/a.parquet row {i}" for i in (1, 2)]
    assert ours.skipped[0].reason == "it names the file two.png, which cannot be read (No such file or directory)."
    assert ours.skipped[1].reason == "it has no image."


def test_several_files_are_one_part_in_their_order(tmp_path):
    files = [write_colours(tmp_path / f"{i}.parquet", 1, seed=10 * i) for i in range(3)]
    write_parquet(tmp_path / "none.parquet", {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())})
    part = read_parquet("train", [files[0], tmp_path / "none.parquet", *files[1:]])
    ours = StoredImages(part)
    assert ours.labels.tolist() == [0, 1, 2] * 3
    assert np.array_equal(np.asarray(ours.image(7)), pixels("green", 20))
    assert part.store.place(7) == f"{files[2]} row 1"


def test_a_table_with_fine_and_coarse_labels_gives_the_fine_ones_unless_asked(tmp_path):
    images = [encoded()] * 2
    path = write_parquet(tmp_path / "a.parquet", {"img": images, "fine_label": [5, 9], "coarse_label": [1, 2]})
    assert source(path).classes == ["5", "9"]
    assert source(path, label_column="coarse_label").classes == ["1", "2"]


def test_several_classes_from_lists(tmp_path):
    names = datasets.Features(
        {"image": datasets.Image(), "tags": datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"]))}
    )
    cells = [{"bytes": encoded(), "path": None}] * 3
    datasets.Dataset.from_dict({"image": cells, "tags": [[0, 2], [], [1]]}, features=names).to_parquet(
        tmp_path / "a.parquet"
    )
    ours = source(tmp_path / "a.parquet", problem_type=MULTI)
    assert ours.classes == ["a", "b", "c"]
    assert ours.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert ours.labels.dtype == np.float32
    path = write_parquet(tmp_path / "b.parquet", {"image": [encoded()] * 2, "labels": [[1, 0, 1], [0, 0, 1]]})
    assert source(path, problem_type=MULTI).labels.tolist() == [[1, 0, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"several labels for an image .*data.problem_type=multi_label_classification"):
        source(path)


def test_numbers_to_learn(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded()] * 3, "age": [1.5, None, 3.0]})
    ours = source(path, problem_type=REGRESSION)
    assert ours.classes == ["age"]
    assert ours.labels.tolist() == [1.5, 3.0]
    assert ours.skipped[0].reason == "it has no label."
    with pytest.raises(ValueError, match="no column that can be the label"):
        source(path)


# --- Parquet: what is refused or left out -------------------------------------------------------------


def two_images(path: Path) -> Path:
    return write_parquet(path, {"left": [encoded()], "right": [encoded()], "name": ["a"], "colour": ["b"], "size": [3]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has several columns that can be the image: left, right. Choose one with --set data.image_column=left"),
        (
            {"image_column": "left"},
            "several columns that can be the label: name, colour, size. Choose .*label_column=name",
        ),
        (
            {"image_column": "up"},
            r"has no column 'up'. Its columns: left \(binary\), right \(binary\), name \(string\)",
        ),
        ({"image_column": "name"}, "Column 'name' of .* does not hold images but string. Columns .* left, right"),
        ({"image_column": "left", "label_column": "x"}, "has no column 'x'"),
    ],
)
def test_columns_that_cannot_be_chosen_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        source(two_images(tmp_path / "a.parquet"), **options)


def test_a_table_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no column that can be the image. Its columns: label \(string\)"):
        source(write_parquet(tmp_path / "a.parquet", {"label": ["a"]}))


def test_sound_is_not_an_image(tmp_path):
    notes = {"info": {"features": {"sound": {"_type": "Audio"}, "label": {"dtype": "string", "_type": "Value"}}}}
    table = pa.table({"sound": [{"bytes": b"x", "path": None}], "label": ["a"]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(notes)}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column that can be the image"):
        source(tmp_path / "a.parquet")


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"letter.parquet cannot be read as a Parquet file \("):
        source(write_text(tmp_path / "letter.parquet"))
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(
        ValueError, match=r"empty.parquet cannot be read as a Parquet file \(Parquet file size is 0 bytes"
    ):
        source(tmp_path / "empty.parquet")


def test_a_table_without_rows_is_refused(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", {"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}
    )
    with pytest.raises(ValueError, match=r"a.parquet has no images. Check that it is the right file"):
        source(path)


def test_files_with_other_columns_are_not_one_part(tmp_path):
    first = write_colours(tmp_path / "a.parquet", 1)
    second = write_parquet(tmp_path / "b.parquet", {"image": [encoded()], "class": ["a"]})
    with pytest.raises(ValueError, match=r"b.parquet has other columns or class names than .*a.parquet"):
        read_parquet("train", [first, second])


def test_broken_images_and_rows_without_label_are_left_out_with_their_place(tmp_path, caplog):
    images = [encoded("red", 0), truncated_jpeg(), None, b"", encoded("red", 4), b"a letter"]
    path = write_parquet(tmp_path / "a.parquet", {"image": images, "label": [1, 1, 1, 1, -1, 1]})
    with caplog.at_level(logging.WARNING):
        ours = source(path)
    assert ours.labels.tolist() == [0]
    reasons = {file.path.removeprefix(f"{path} "): file.reason for file in ours.skipped}
    assert reasons["row 4"] == "it has no label."
    assert reasons["row 1"].startswith("cannot be read as an image (image file is truncated")
    assert reasons["row 2"] == reasons["row 3"] == "it has no image."
    assert reasons["row 5"].startswith("is not an image")
    assert caplog.messages[0].startswith("1 of 6 images have the label -1 in column 'label', which means no label")
    assert caplog.messages[1:] == [
        f"Left out 5 files of {path}: {'; '.join(f'{f.path}: {f.reason}'.rstrip('.') for f in ours.skipped[:3])}; and "
        "2 more."
    ]
    with pytest.raises(ValueError, match=r"a.parquet row 4: it has no label. \(5 such files; strict is on.\)"):
        source(path, strict=True)


def test_labels_missing_where_they_are_needed_are_counted(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded()] * 3, "label": [1, -1, None]})
    with pytest.raises(ValueError, match=r"Labels missing from val: 2 of 3 images have none, the first is .* row 1\."):
        StoredImages(read_parquet("val", [path]), labels_needed=True)
    path = write_parquet(
        tmp_path / "b.parquet", {"image": [encoded()] * 2, "label": pa.array([None, None], pa.int64())}
    )
    with pytest.raises(
        ValueError, match=r"has no usable image. The first that was left out: .* row 0: it has no label."
    ):
        source(path)


def test_a_broken_group_of_rows_is_left_out(tmp_path):
    images = [encoded("red", i) for i in range(6)]
    path = write_parquet(
        tmp_path / "a.parquet", {"image": images, "label": ["a"] * 6}, row_group_size=2, compression="zstd"
    )
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(0)
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    content[start : start + 200] = b"\0" * 200
    path.write_bytes(content)
    ours = source(path)
    assert len(ours.labels) == 4
    assert [file.path for file in ours.skipped] == [f"{path} row 2", f"{path} row 3"]
    assert ours.skipped[0].reason.startswith("its part of the Parquet file cannot be read (")
    assert np.array_equal(np.asarray(ours.image(3)), pixels("red", 5))


# --- Parquet: memory, other processes, changes --------------------------------------------------------


def read_one(ours: StoredImages, queue: Any) -> None:
    queue.put(np.asarray(ours.image(4)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_another_process_reads_the_same_images(tmp_path, method):
    ours = source(write_colours(tmp_path / "a.parquet", 2))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=read_one, args=(ours, queue))
    process.start()
    assert np.array_equal(queue.get(timeout=60), pixels("red", 0))
    process.join()


def test_a_pickled_source_holds_no_images(tmp_path):
    ours = source(write_colours(tmp_path / "a.parquet", 50))
    pickled = pickle.dumps(ours)
    assert len(pickled) < 20_000
    again = pickle.loads(pickled)
    assert np.array_equal(np.asarray(again.image(60)), np.asarray(ours.image(60)))
    assert again.fingerprint() == ours.fingerprint()


def test_a_table_that_is_too_large_for_the_memory_is_unpacked_into_the_cache_once(tmp_path, cache, monkeypatch):
    path = write_colours(tmp_path / "a.parquet", 3)
    expected = source(path)
    monkeypatch.setattr(parquet_tables, "IN_MEMORY", 0)
    monkeypatch.setattr(parquet_tables, "_BATCH", 2)
    seen: list[tuple[int, int]] = []
    part = read_parquet("train", [path], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    ours = StoredImages(part)
    assert ours.fingerprint() == expected.fingerprint()
    (unpacked,) = cache.rglob("*.arrow")
    made = unpacked.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(np.asarray(again.image(8)), pixels("red", 2))
    assert source(path).labels.tolist() == expected.labels.tolist()
    assert [file.stat().st_mtime_ns for file in cache.rglob("*.*")] == [made]


def test_a_cache_that_cannot_be_written_is_said(tmp_path, cache, monkeypatch):
    path = write_colours(tmp_path / "a.parquet", 1)
    monkeypatch.setattr(parquet_tables, "IN_MEMORY", 0)
    cache.write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"cannot be unpacked into .* choose another folder with .* DEIT_CACHE"):
        source(path)


def test_a_file_that_changes_is_noticed(tmp_path):
    path = write_colours(tmp_path / "a.parquet", 2)
    pickled = pickle.dumps(source(path))
    write_colours(path, 2, seed=5)
    with pytest.raises((ValueError, ImageError), match=r"has changed since|not what it was"):
        pickle.loads(pickled).image(0)


@pytest.mark.parametrize("change", ["image", "label", "names", "order"])
def test_the_fingerprint_changes_with(tmp_path, change):
    images, labels = [encoded("red", i) for i in range(3)], ["a", "b", "a"]
    before = source(write_parquet(tmp_path / "a.parquet", {"image": images, "label": labels})).fingerprint()
    assert before == source(write_parquet(tmp_path / "b.parquet", {"image": images, "label": labels})).fingerprint()
    if change == "image":
        images[1] = encoded("red", 9)
    elif change == "label":
        labels[2] = "b"
    elif change == "names":
        labels = ["a", "c", "a"]
    else:
        images = [images[2], images[1], images[0]]
    assert source(write_parquet(tmp_path / "a.parquet", {"image": images, "label": labels})).fingerprint() != before


def test_progress_ends_with_all_images(tmp_path):
    seen: list[tuple[int, int]] = []
    source(write_colours(tmp_path / "a.parquet", 30), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(32, 90), (64, 90), (90, 90)]


# --- the `datasets` package ---------------------------------------------------------------------------


def test_a_dataset_gives_its_images_labels_and_names():
    made = hub_dataset(2).shuffle(seed=1).select(range(5))
    ours = StoredImages(read_dataset("train", made, origin="it"))
    assert ours.classes == ["red", "green", "blue"]
    assert ours.labels.tolist() == made["label"][:]
    for i in range(5):
        assert np.array_equal(np.asarray(ours.image(i)), np.asarray(made[i]["image"]))
    again = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(np.asarray(again.image(4)), np.asarray(made[4]["image"]))


def test_a_saved_dataset_is_opened_whole_or_in_parts(tmp_path):
    hub_dataset(2).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": hub_dataset(2), "validation": hub_dataset(1)}).save_to_disk(tmp_path / "two")
    assert is_saved_dataset(tmp_path / "one")
    assert is_saved_dataset(tmp_path / "two")
    assert not is_saved_dataset(tmp_path)
    assert {name: len(part) for name, part in load_saved_dataset(tmp_path / "one").items()} == {"": 6}
    assert {name: len(part) for name, part in load_saved_dataset(tmp_path / "two").items()} == {
        "train": 6,
        "validation": 3,
    }


def test_a_damaged_dataset_is_refused(tmp_path):
    hub_dataset(2).save_to_disk(tmp_path / "one")
    (file,) = (tmp_path / "one").glob("*.arrow")
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"one is damaged or is not a saved data set \("):
        load_saved_dataset(tmp_path / "one")


def test_a_broken_image_in_a_dataset_is_left_out_with_its_row():
    rows = {"image": [{"bytes": encoded(), "path": None}, {"bytes": b"no", "path": None}], "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    made = datasets.Dataset.from_dict(rows, features=features)
    ours = StoredImages(read_dataset("train", made, origin="the data set (train)"))
    assert [file.path for file in ours.skipped] == ["the data set (train) row 1"]
    with pytest.raises(ValueError, match=r"Column 'label' of it does not hold images but int64"):
        read_dataset("train", made, origin="it", image_column="label")

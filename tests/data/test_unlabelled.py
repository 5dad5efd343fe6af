"""Images without labels, from everything that training opens."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from deit.core.labels import NO_LABEL
from deit.data.open_data import open_data, open_unlabelled
from tests.data.pictures import COLOURS, colour_members, encoded, fill, picture, write_parquet, write_shard, write_text


def is_without_labels(data, train: int, val: int) -> bool:
    labels = np.concatenate([data.train.labels, data.val.labels])
    return (
        (len(data.train.labels), len(data.val.labels)) == (train, val)
        and data.train.classes == []
        and (labels == NO_LABEL).all()
    )


def test_a_folder_needs_no_class_folders(tmp_path):
    for i in range(4):
        picture("red", i).save(tmp_path / f"{i}.png")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    picture("blue", 9).save(tmp_path / "deep" / "er" / "last.png")
    write_text(tmp_path / "letter.txt")
    write_text(tmp_path / "broken.png")
    data = open_unlabelled(tmp_path, val_fraction=0.2)
    assert is_without_labels(data, 4, 1)
    assert {file.path.rpartition("/")[2] for file in data.skipped} == {"letter.txt", "broken.png"}
    images = [source.image(i) for source in (data.train, data.val) for i in range(len(source.labels))]
    assert len({image.tobytes() for image in images}) == 5
    with pytest.raises(ValueError, match="strict is on"):
        open_unlabelled(tmp_path, strict=True)


def test_a_folder_for_training_is_taken_with_its_division_and_without_its_labels(tmp_path):
    fill(tmp_path / "train", 3)
    fill(tmp_path / "val", 1, seed=50)
    assert is_without_labels(open_unlabelled(tmp_path), 9, 3)
    assert is_without_labels(open_unlabelled(tmp_path / "train", val_fraction=0.3), 6, 3)


def test_train_says_where_images_without_class_folders_belong(tmp_path):
    picture().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no class folders.* Images without labels are for deit pretrain"):
        open_data(tmp_path)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_parquet_file_needs_no_label_column(tmp_path, labelled):
    columns = {"image": [encoded("red", i) for i in range(5)]}
    if labelled:  # labels that no training could use
        columns |= {"label": [1.5, None, 3.0, 4.0, 5.0], "other": ["a", "b", "c", "d", "e"]}
    file = write_parquet(tmp_path / "images.parquet", columns)
    assert is_without_labels(open_unlabelled(file), 4, 1)


def test_a_table_needs_no_label_column(tmp_path):
    with (tmp_path / "list.csv").open("w") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "split"])
        for i in range(4):
            picture("red", i).save(tmp_path / f"{i}.png")
            writer.writerow([f"{i}.png", "val" if i == 3 else "train"])
    assert is_without_labels(open_unlabelled(tmp_path / "list.csv"), 3, 1)


def test_shards_need_no_labels(tmp_path):
    members = {name: content for name, content in colour_members(2).items() if name.endswith(".png")}
    assert is_without_labels(open_unlabelled(write_shard(tmp_path / "a.tar", members)), 5, 1)


def test_a_datasets_object_needs_no_label_column():
    datasets = pytest.importorskip("datasets")
    pictures = [picture(colour, i) for colour in COLOURS for i in range(2)]
    loaded = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))
    assert is_without_labels(open_unlabelled(loaded), 5, 1)


def test_the_fingerprint_follows_files_and_not_their_labels(tmp_path):
    fill(tmp_path / "a", 2)
    before = open_unlabelled(tmp_path / "a")
    assert open_unlabelled(tmp_path / "a").train.fingerprint() == before.train.fingerprint()
    picture("red", 99).save(tmp_path / "a" / "red" / "more.png")
    assert open_unlabelled(tmp_path / "a").train.fingerprint() != before.train.fingerprint()


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no usable image"):
        open_unlabelled(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        open_unlabelled(tmp_path / "nowhere")

"""Two classes of one name, as ImageNet's list has "crane" and "maillot" twice: classes are numbers, names are shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deit.core.config.config import DeiTConfig
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.data.open_data import open_data, open_labelled
from deit.data.readers.image_folder import ImageFolder
from deit.data.sources import ArraySource
from deit.evaluate.evaluation import teacher_columns
from deit.inference.predictor import Predictor
from deit.models.deit import DeiTForImageClassification
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused, succeeds
from tests.data.pictures import COLOURS, encoded, fill

NAMES = ["crane", "cat", "crane"]


def table(path: Path, names: list[str], count: int = 6, *, seed: int = 0) -> Path:
    """Writes a table as the hub has them: numbers, and the names that they stand for."""
    images = [{"bytes": encoded(colour, seed + i), "path": None} for i in range(count) for colour in COLOURS]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    made = pa.table({"image": images, "label": pa.array([0, 1, 2] * count, pa.int64())})
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(made.replace_schema_metadata(notes), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two cranes and a cat, trained by the command on a table that numbers them."""
    root = tmp_path_factory.mktemp("cranes")
    data = table(root / "data.parquet", NAMES)
    rate = ("--epochs", 8)
    succeeds("train", data, "--student", VARIANT, "--image-size", 32, *SHORT, *rate, "--out", root / "model")
    return root / "model"


def evaluated(model: Path, data: Path, *options: object) -> dict:
    return json.loads(succeeds("evaluate", model, data, "--json", *options).stdout)


def test_a_table_that_numbers_them_trains_and_counts_each_image_once(model, tmp_path):
    data = table(tmp_path / "new.parquet", NAMES, 4, seed=50)
    found = evaluated(model, data)
    assert found["images"] == 12
    rows = found["heads"]["both"]["per_class"]
    assert [(row["class"], row["images"]) for row in rows] == [("crane (0)", 4), ("cat", 4), ("crane (2)", 4)]
    assert np.sum(found["heads"]["both"]["confusion"]) == 12
    config = json.loads((model / "config.json").read_text())
    assert config["id2label"] == {"0": "crane", "1": "cat", "2": "crane"}


def test_a_folder_of_that_name_is_refused_and_folders_of_numbers_are_taken(model, tmp_path):
    fill(tmp_path / "named", 4, seed=50)
    for colour, name in zip(COLOURS, ("crane", "cat", "other"), strict=True):
        (tmp_path / "named" / colour).rename(tmp_path / "named" / name)
    shutil.rmtree(tmp_path / "named" / "other")
    is_refused(
        deit("evaluate", model, tmp_path / "named"),
        "2 of the 3 classes are called 'crane' (numbers 0, 2), so that the name does not say which.",
    )
    (tmp_path / "named" / "crane").rename(tmp_path / "crane")
    assert evaluated(model, tmp_path / "named")["images"] == 4  # cats are cats
    shutil.rmtree(tmp_path / "named")
    fill(tmp_path / "numbered", 4, seed=50)
    for number, colour in enumerate(COLOURS):
        (tmp_path / "numbered" / colour).rename(tmp_path / "numbered" / str(number))
    by_folder = evaluated(model, tmp_path / "numbered")
    by_table = evaluated(model, table(tmp_path / "new.parquet", NAMES, 4, seed=50))
    assert by_folder["images"] == 12
    assert by_folder["heads"]["both"]["top1"] == by_table["heads"]["both"]["top1"]


def test_a_list_of_files_is_read_by_number_and_refused_by_name(model, tmp_path):
    fill(tmp_path, 2, seed=50)
    rows = [(f"{colour}/{i}.png", number) for number, colour in enumerate(COLOURS) for i in range(2)]
    path = tmp_path / "list.csv"
    path.write_text("path,label\n" + "\n".join(f"{file},{number}" for file, number in rows))
    assert evaluated(model, path)["images"] == 6
    path.write_text("path,label\n" + "\n".join(f"{file},{NAMES[number]}" for file, number in rows))
    is_refused(deit("evaluate", model, path), "2 of the 3 classes are called 'crane' (numbers 0, 2)")


def test_neighbours_know_both_classes(model, tmp_path):
    known, asked = table(tmp_path / "known.parquet", NAMES, 6), table(tmp_path / "asked.parquet", NAMES, 3, seed=80)
    found = evaluated(model, asked, "--knn", known)
    assert [score["images"] for score in found["scores"]] == [9] * 6


def test_a_teacher_is_asked_by_number_where_the_lists_are_equal(model, tmp_path):
    data = table(tmp_path / "new.parquet", NAMES, 4, seed=50)
    found = evaluated(model, data, "--teacher", model)
    assert found["agreement"]["both, teacher"] == 100


def test_a_teacher_of_another_order_is_refused():
    teacher = Predictor(lambda pixels: pixels, DeiTImageProcessor(), ["cat", "crane", "crane"])
    with pytest.raises(
        ValueError, match=r"lacks 2 of the model's 3 classes: crane, crane\. .* Several classes have one"
    ):
        teacher_columns(teacher, NAMES)
    assert teacher_columns(teacher, ["cat"]).tolist() == [0]
    assert teacher_columns(teacher, ["cat", "crane", "crane"]).tolist() == [0, 1, 2]


def test_classify_and_the_model_card_tell_them_apart(model, tmp_path):
    folder = fill(tmp_path, 1, ("red",))
    (answer,) = json.loads(succeeds("classify", model, folder, "--json", "--top-k", 3).stdout)
    assert sorted(each["label"] for each in answer["predictions"]) == ["cat", "crane (0)", "crane (2)"]
    assert "3 classes: `crane (0)`, `cat`, `crane (2)`." in (model / "README.md").read_text()


def test_a_configuration_keeps_them_through_a_file(tmp_path):
    config = DeiTConfig(id2label=dict(enumerate(NAMES)), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        intermediate_size=8, image_size=16)  # fmt: skip
    DeiTForImageClassification(config).save_pretrained(tmp_path)
    again = DeiTForImageClassification.from_pretrained(tmp_path).config
    assert (again.num_labels, again.id2label) == (3, dict(enumerate(NAMES)))
    assert set(again.label2id) == {"cat", "crane"}


def test_sources_number_them(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), dtype=np.uint8)
    assert ArraySource(images, np.array([0, 1, 2]), NAMES).labels.tolist() == [0, 1, 2]
    data = open_data(table(tmp_path / "a.parquet", NAMES))
    assert data.train.classes == data.val.classes == NAMES
    assert len(data.train.labels) + len(data.val.labels) == 18
    assert np.bincount(data.val.labels).tolist() == [1, 1, 1]
    other = open_labelled(table(tmp_path / "b.parquet", NAMES, 2), classes=NAMES)
    assert other.labels.tolist() == [0, 1, 2] * 2
    with pytest.raises(ValueError, match=r"2 of the 3 classes are called 'crane' \(numbers 0, 1\)"):
        open_labelled(table(tmp_path / "c.parquet", NAMES, 2), classes=["crane", "crane", "cat"])
    folder = fill(tmp_path / "folder", 2, ("red",))
    (folder / "red").rename(folder / "cat")
    assert ImageFolder(folder, classes=NAMES).labels.tolist() == [1, 1]

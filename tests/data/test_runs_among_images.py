"""Folders of runs and models among images are never taken for classes or images, and empty folders are no classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deit.data.open_data import open_data, open_labelled, open_unlabelled
from deit.data.readers.image_folder import ImageFolder
from deit.data.storage.image_search import find_image_files, find_images
from tests.data.pictures import COLOURS, fill, picture, write_text, write_truncated_jpeg


def begun(folder: Path) -> None:
    (folder / "state" / "step-00000003").mkdir(parents=True)
    write_text(folder / "recipe.yaml")


def finished(folder: Path) -> None:  # its states were removed
    write_text(folder / "recipe.yaml")
    write_text(folder / "training.json")


def model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "deit"}))
    write_text(folder / "model.safetensors")


RUNS = {"begun": begun, "finished": finished, "model": model}


@pytest.fixture(params=RUNS)
def make_run(request):
    def make(folder: Path) -> Path:
        (folder / "reconstructions").mkdir(parents=True)
        for name in ("curves.png", "reconstruction.png", "reconstructions/step-3.png"):
            picture().save(folder / name)
        RUNS[request.param](folder)
        return folder

    return make


def both(data) -> tuple:
    return data.train.classes, data.train.fingerprint(), data.val.fingerprint()


@pytest.mark.parametrize("place", ["run", "runs/a", "red/run"])
def test_a_run_is_no_class_and_its_pictures_are_no_images(tmp_path, make_run, place, caplog):
    fill(tmp_path / "photos", 3)
    before = both(open_data(tmp_path / "photos"))
    make_run(tmp_path / "photos" / place)
    data = open_data(tmp_path / "photos")
    assert both(data) == before
    assert "holds a run or a model" in caplog.text or "No image in" in caplog.text
    assert open_labelled(tmp_path / "photos").classes == list(COLOURS)
    assert data.skipped == ()


def test_a_run_beside_the_parts_of_a_data_set_is_no_part(tmp_path, make_run):
    for part in ("val", "test"):
        fill(tmp_path / part, 2)
    before = open_labelled(tmp_path).fingerprint()
    make_run(tmp_path / "runs" / "a")
    assert open_labelled(tmp_path).fingerprint() == before


def test_a_run_is_not_learnt_from_without_labels(tmp_path, make_run):
    fill(tmp_path, 3)
    before = both(open_unlabelled(tmp_path))
    make_run(tmp_path / "run")
    assert both(open_unlabelled(tmp_path)) == before
    found = find_images([str(tmp_path)])
    assert len(found.paths) == 9
    assert found.ignored["in folders of runs"] > 3


def test_a_run_beside_images_and_their_table_changes_nothing(tmp_path, make_run):
    for i in range(6):
        picture(COLOURS[i % 3], i).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{i}.png,{COLOURS[i % 3]}\n" for i in range(6)))
    before = both(open_data(tmp_path))
    make_run(tmp_path / "run")
    assert both(open_data(tmp_path)) == before


def test_the_pictures_of_a_run_are_images_where_it_is_asked_for_itself(tmp_path, make_run):
    run = make_run(tmp_path / "run")
    assert len(find_image_files(run).paths) == 3


def test_a_class_of_recipes_is_a_class(tmp_path):
    fill(tmp_path, 2)
    write_text(tmp_path / "red" / "recipe.yaml")
    assert ImageFolder(tmp_path).classes == list(COLOURS)


@pytest.mark.parametrize("content", ["nothing", "hidden", "notes", "an empty folder"])
def test_a_folder_without_images_is_no_class_and_named(tmp_path, content, caplog):
    fill(tmp_path, 2)
    empty = tmp_path / "yellow"
    empty.mkdir()
    if content == "hidden":
        picture().save(empty / "._1.png")
    elif content == "notes":
        write_text(empty / "notes.txt")
    elif content == "an empty folder":
        (empty / "state").mkdir()
    assert open_data(tmp_path).train.classes == list(COLOURS)
    shown = {"hidden": "1 hidden", "notes": "1 not images"}.get(content, "empty")
    assert f"No image in {empty} ({shown}): no class." in caplog.messages
    with pytest.raises(ValueError, match=r"No image in .*yellow.* strict is on"):
        open_data(tmp_path, strict=True)


def test_a_folder_of_images_that_cannot_be_read_stays_a_class_and_stops(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "yellow").mkdir()
    write_truncated_jpeg(tmp_path / "yellow" / "0.jpg")
    with pytest.raises(ValueError, match=r"No usable image in .*yellow"):
        open_data(tmp_path)
    (tmp_path / "yellow" / "0.jpg").unlink()
    picture().save(tmp_path / "yellow" / "0.dat", "PNG")  # an image by its first bytes
    with pytest.raises(ValueError, match="rename it to end in"):
        open_data(tmp_path)


def test_an_empty_class_of_a_part_is_noted(tmp_path, caplog):
    fill(tmp_path / "train", 2)
    fill(tmp_path / "val", 1, seed=9)
    for name in ("train/yellow", "val/yellow", "other"):
        (tmp_path / name).mkdir()
    assert open_data(tmp_path).val.classes == list(COLOURS)
    assert caplog.text.count("No image in") == 2
    for file in (tmp_path / "val" / "red").iterdir():
        file.unlink()
    assert open_data(tmp_path).train.classes == list(COLOURS)
    assert "1 of 3 classes have no validation image, the first is 'red'." in caplog.messages


def test_an_unknown_folder_without_images_does_not_stop_an_evaluation(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "yellow").mkdir()
    assert len(open_labelled(tmp_path, classes=COLOURS).labels) == 6
    picture().save(tmp_path / "yellow" / "1.png")
    with pytest.raises(ValueError, match="not among the 3 classes: yellow"):
        open_labelled(tmp_path, classes=COLOURS)


def test_folders_without_any_image_are_refused_together(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"No image in .*a \(empty\), .* and 1 more folders\. Add images"):
        open_data(tmp_path)

"""Lists of images to leave out: what they do, and each way in which they may not fit the data set."""

import json

import numpy as np
import pytest

from deit.core.errors import DamagedFileError, UserError
from deit.data.exclusions import ExclusionList, name_in
from deit.data.open_data import open_data, open_unlabelled
from deit.data.sources import place_of
from tests.cli.conftest import deit, succeeds
from tests.data.pictures import encoded, fill, write_parquet


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos", 5)


def listed(tmp_path, *rows, header="file,action,suggested_label"):
    path = tmp_path / "fix.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def names_of(data, root):
    sources = (data.train, data.val)
    return sorted(name_in(str(root), place_of(s, i)) for s in sources for i in range(len(s.labels)))


def label_of(data, name, root):
    for source in (data.train, data.val):
        for i in range(len(source.labels)):
            if name_in(str(root), place_of(source, i)) == name:
                return source.classes[source.labels[i]]
    raise AssertionError(name)


def test_rows_marked_drop_are_left_out_and_rows_marked_relabel_change(photos, tmp_path):
    path = listed(tmp_path, "red/0.png,drop,", "blue/1.png,relabel,green", "red/1.png,check,blue", "red/2.png,,blue")
    data = open_data(str(photos), exclude=path)
    assert len(names_of(data, photos)) == 14
    assert "red/0.png" not in names_of(data, photos)
    assert label_of(data, "blue/1.png", photos) == "green"
    assert label_of(data, "red/1.png", photos) == label_of(data, "red/2.png", photos) == "red"
    assert data.exclusion is not None
    assert (data.exclusion.dropped, dict(data.exclusion.relabelled)) == (("red/0.png",), {"blue/1.png": "green"})
    assert data.train.fingerprint() != open_data(str(photos)).train.fingerprint()
    assert np.asarray(data.train.image(0)).shape == (32, 40, 3)


def test_without_rows_to_act_on_nothing_changes(photos, tmp_path):
    data = open_data(str(photos), exclude=listed(tmp_path, "red/0.png,check,"))
    assert data.train.fingerprint() == open_data(str(photos)).train.fingerprint()


def test_drop_wins_over_relabel_and_a_relabel_without_a_label_does_nothing(photos, tmp_path):
    rows = ("red/0.png,relabel,blue", "red/0.png,drop,", "red/1.png,relabel,")
    data = open_data(str(photos), exclude=listed(tmp_path, *rows))
    assert data.exclusion.dropped == ("red/0.png",)
    assert label_of(data, "red/1.png", photos) == "red"


def test_the_same_list_serves_another_path_to_the_data(photos, tmp_path, monkeypatch):
    path = listed(tmp_path, "red/0.png,drop,")
    monkeypatch.chdir(tmp_path)
    for place in ("photos", "./photos/", str(photos)):
        assert open_data(place, exclude=path).exclusion.dropped == ("red/0.png",)


def test_spreadsheets_of_other_countries_and_marks_of_encoding_are_read(photos, tmp_path):
    path = tmp_path / "fix.csv"
    path.write_bytes("\ufefffile;action\r\nred/0.png;DROP \r\n".encode())
    assert open_data(str(photos), exclude=path).exclusion.dropped == ("red/0.png",)


def test_tables_and_unlabelled_images_are_left_out_too(photos, tmp_path):
    images = [{"bytes": encoded(colour, i)} for i in range(4) for colour in ("red", "green")]
    write_parquet(tmp_path / "t.parquet", {"image": images, "label": ["red", "green"] * 4})
    data = open_data(str(tmp_path / "t.parquet"), exclude=listed(tmp_path, "t.parquet row 3,drop,"))
    assert len(data.train.labels) + len(data.val.labels) == 7
    none = open_unlabelled(str(photos), exclude=listed(tmp_path, "red/0.png,drop,", "red/1.png,relabel,blue"))
    assert len(none.train.labels) + len(none.val.labels) == 14


def test_parts_that_are_not_used_do_not_count_as_missing(tmp_path):
    for part in ("train", "val", "test"):
        fill(tmp_path / "photos" / part, 3, seed=10 * len(part) + ord(part[0]))
    header = "part,file,action"
    path = listed(tmp_path, "test,test/red/0.png,drop", "train,train/red/0.png,drop", header=header)
    assert open_data(str(tmp_path / "photos"), exclude=path).exclusion.dropped == ("train/red/0.png",)
    path = listed(tmp_path, "val,val/red/9.png,drop", header=header)
    with pytest.raises(UserError, match=r"1 image of the list not found, the first is val/red/9\.png"):
        open_data(str(tmp_path / "photos"), exclude=path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["red/0.png,delete,"], r"line 2: unknown action 'delete'. Choose one of: drop, relabel, check, keep"),
        (["red/9.png,drop,"], r"changed since .* written: 1 image of the list not found, the first is red/9\.png"),
        (["red/0.png,relabel,zebra"], r"line 2: 'zebra' is not one of the classes blue, green, red"),
        (["red/0.png,relabel,blue", "red/0.png,relabel,green"], "lines 2 and 3 give red/0.png two labels"),
        ([f"red/{i}.png,drop," for i in range(5)], "leaves no image of 1 class in the part all: 'red'"),
        ([f"{c}/{i}.png,drop," for c in ("red", "green", "blue") for i in range(5)], "leaves out all 15 images"),
        ([",drop,"], "line 2: the column file is empty"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_in_one_line(photos, tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        open_data(str(photos), exclude=listed(tmp_path, *rows))


def test_another_file_is_refused(photos, tmp_path):
    with pytest.raises(UserError, match="has no column action"):
        open_data(str(photos), exclude=listed(tmp_path, "a,b", header="file,other"))
    with pytest.raises(UserError, match="no column"):
        open_data(str(photos), exclude=listed(tmp_path, header=""))
    with pytest.raises(DamagedFileError):
        open_data(str(photos), exclude=tmp_path)
    with pytest.raises(FileNotFoundError):
        open_data(str(photos), exclude=tmp_path / "nothing.csv")


def test_a_changed_list_is_refused_where_its_hash_was_recorded(photos, tmp_path):
    path = listed(tmp_path, "red/0.png,drop,")
    was = ExclusionList(path, str(photos)).hash
    listed(tmp_path, "red/1.png,drop,")
    with pytest.raises(UserError, match="was changed since the recipe was written"):
        ExclusionList(path, str(photos), expected_hash=was)


@pytest.fixture
def inspected(photos, tmp_path):
    succeeds("inspect", str(photos), "--out", str(tmp_path / "report"))
    return tmp_path / "report" / "fix.csv"


def test_a_data_set_that_changed_since_the_inspection_is_refused(photos, inspected):
    assert len(names_of(open_data(str(photos), exclude=inspected), photos)) <= 15
    (photos / "red/new.png").write_bytes(encoded("red", 99))
    with pytest.raises(UserError, match=r"has 16 images in place of 15: 1 image new \(the first is red/new\.png\)"):
        open_data(str(photos), exclude=inspected)
    (photos / "red/new.png").unlink()
    (photos / "red/4.png").write_bytes(encoded("red", 77))
    with pytest.raises(
        UserError, match=r"1 image with another content, the first is red/4\.png. Run deit inspect again"
    ):
        open_data(str(photos), exclude=inspected)
    (photos / "red/4.png").unlink()
    with pytest.raises(UserError, match=r"1 image gone \(the first is red/4\.png\)"):
        open_data(str(photos), exclude=inspected)


def test_training_leaves_them_out_records_it_and_resumes_with_the_same_list(tmp_path):
    photos = fill(tmp_path / "photos", 6)
    path = listed(tmp_path, "red/0.png,drop,", "blue/1.png,relabel,green")
    out = tmp_path / "run"
    command = ["train", str(photos), "--out", str(out), "--exclude", str(path), "--student", "deit-tiny-patch16-224"]
    small = ["--image-size", "32", "--batch-size", "4", "--set", "num_workers=0", "--device", "cpu"]
    text = succeeds(*command, *small, "--epochs", "1").output
    assert f"Left out by {path}: 1 image, 1 label changed." in text
    record = json.loads((out / "training.json").read_text())
    excluded = record["data"]["excluded"]
    assert (excluded["dropped_images"], excluded["relabelled_images"]) == (["red/0.png"], {"blue/1.png": "green"})
    assert record["recipe"]["data"]["exclude_hash"] == excluded["sha256"]
    assert record["data"]["train_images"] + record["data"]["val_images"] == 17
    succeeds(*command, *small, "--epochs", "2", "--resume")
    listed(tmp_path, "red/1.png,drop,")
    changed = deit(*command, *small, "--epochs", "3", "--resume")
    assert changed.exit_code == 2
    assert "exclude_hash" in changed.stderr

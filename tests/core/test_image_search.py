"""Which files of a folder are images: links, hidden files, endings; and that every command finds the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deit.data.open_data import open_data, open_labelled, open_unlabelled
from deit.data.storage.image_search import (
    SkippedFile,
    describe_found,
    find_image_files,
    find_images,
    find_loose_files,
    is_hidden,
)
from tests.data.pictures import fill, picture, write_text


def names(paths: list[str | None], root: Path) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in paths if path is not None]


@pytest.mark.parametrize("name", [".a.png", "._a.png", ".DS_Store", "__MACOSX", "Thumbs.db", "DESKTOP.INI", "@eaDir"])
def test_what_systems_leave_behind_is_hidden(name):
    assert is_hidden(name)
    assert not is_hidden(name.strip("._@") + "x")


def test_hidden_files_and_folders_are_counted_and_not_taken(tmp_path):
    picture().save(tmp_path / "a.png")
    for name in (".hidden/b.png", "__MACOSX/._a.png", "Thumbs.db", "deep/.c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name, "PNG")
    found = find_image_files(tmp_path)
    assert names(found.paths, tmp_path) == ["a.png"]
    assert found.skipped == []
    assert describe_found(1, found.skipped, found.ignored) == "Found 5 files: 1 used, 4 hidden."


def test_links_to_files_and_folders_are_followed_once_and_loops_end(tmp_path, caplog):
    outside = fill(tmp_path / "outside", 2, ("red",)) / "red"
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "a.png").symlink_to(outside / "0.png")
    (root / "linked").symlink_to(outside)
    (root / "again").symlink_to(outside)
    (root / "deep" / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "self.png").symlink_to(root / "self.png")
    found = find_image_files(root)
    assert len(found.paths) == 3
    assert len({path and path.rpartition("/")[2] for path in found.paths}) == 3
    assert [(Path(file.path).name, file.reason) for file in found.skipped] == [
        ("gone.png", "it is a link to nothing."), ("self.png", "it is a link to nothing.")
    ]  # fmt: skip
    assert caplog.text.count("is read already") == 2


def test_endings_in_every_spelling_and_files_without_one(tmp_path):
    for name in ("a.JPG", "b.jfif", "c.Jpeg", "d.jpe"):
        picture().save(tmp_path / name, "JPEG")
    picture().save(tmp_path / "without", "PNG")
    picture().save(tmp_path / "picture.dat", "PNG")
    for name in ("README", "new.JXL", "notes.txt", "raw.dng"):
        write_text(tmp_path / name)
    found = find_image_files(tmp_path)
    assert names(found.paths, tmp_path) == ["a.JPG", "b.jfif", "c.Jpeg", "d.jpe", "without"]
    reasons = {Path(file.path).name: (file.kind, file.reason) for file in found.skipped}
    assert reasons == {
        "README": ("not images", "its ending '' is not an image's."),
        "notes.txt": ("not images", "its ending '.txt' is not an image's."),
        "new.JXL": ("images of other formats", ".jxl images are not supported. Convert it to JPEG or PNG."),
        "picture.dat": (
            "not images", "its ending '.dat' is not an image's (it begins like one: rename it to end in .jpg)."
        ),
        "raw.dng": ("images of other formats", ".dng images are not supported. Convert it to JPEG or PNG."),
    }  # fmt: skip


def test_a_pipe_without_an_ending_does_not_make_the_search_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert [file.reason for file in find_image_files(tmp_path).skipped] == ["it is not a regular file."]


def test_images_beside_class_folders_are_left_out_by_name(tmp_path):
    fill(tmp_path, 4, ("red", "blue"))
    picture().save(tmp_path / "loose.png")
    write_text(tmp_path / "README.md")
    (tmp_path / "red" / "deeper").mkdir()
    picture().save(tmp_path / "red" / "deeper" / "x.png")
    assert find_loose_files(tmp_path).ignored == {"not images": 1}
    data = open_data(tmp_path)
    assert [file.reason for file in data.skipped] == ["it is not in a class folder."]
    assert describe_found(data.used, data.skipped, data.ignored) == (
        "Found 11 files: 9 used, 1 beside the folders, 1 not images."
    )
    with pytest.raises(ValueError, match=r"loose.png: it is not in a class folder"):
        open_data(tmp_path, strict=True)
    assert describe_found(10, [SkippedFile(path="a", reason="b")], {}) == "Found 11 files: 10 used, 1 unreadable."


def test_class_folders_may_be_links_and_a_link_to_another_class_adds_nothing(tmp_path):
    outside = fill(tmp_path / "outside", 4, ("red",))
    root = fill(tmp_path / "root", 4, ("blue",))
    (root / "red").symlink_to(outside / "red")
    (root / "blue" / "all").symlink_to(root)
    (root / "blue" / "others").symlink_to(root / "red")
    source = open_labelled(root)
    assert source.classes == ["blue", "red"]
    assert source.labels.tolist() == [0] * 4 + [1] * 4


def test_every_command_finds_the_same_images(tmp_path):
    fill(tmp_path, 5, ("red", "blue"))
    outside = fill(tmp_path.parent / f"{tmp_path.name}-outside", 3, ("green",))
    (tmp_path / "red" / "linked").symlink_to(outside / "green")
    for name in ("red/.hidden.png", "blue/__MACOSX/._0.png", "red/Thumbs.db", "blue/UPPER.PNG", "blue/without"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture("blue", len(name)).save(tmp_path / name, "PNG")
    write_text(tmp_path / "red" / "notes.txt")
    named = find_images([str(tmp_path)])
    trained, measured, unlabelled = open_data(tmp_path), open_labelled(tmp_path), open_unlabelled(tmp_path)
    counts = [len(named.paths), trained.used, len(measured.labels), unlabelled.used]
    assert counts == [15] * 4
    lines = {describe_found(15, found.skipped, found.ignored) for found in (named, trained, measured, unlabelled)}
    assert lines == {"Found 19 files: 15 used, 3 hidden, 1 not images."}

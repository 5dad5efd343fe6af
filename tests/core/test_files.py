"""Files and folders are written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deit.core import files
from deit.core.files import replace_folder_content, write_json_atomically, write_text_atomically


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def test_text_is_written_and_replaced(tmp_path):
    write_text_atomically(tmp_path / "a.txt", "old")
    write_text_atomically(tmp_path / "a.txt", "ünew\n")
    assert (tmp_path / "a.txt").read_bytes() == "ünew\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_is_written_with_a_newline(tmp_path):
    write_json_atomically(tmp_path / "a.json", {"a": [1, None]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1, None]}
    assert text.endswith("}\n")


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    write_json_atomically(tmp_path / "a.json", 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json_atomically(tmp_path / "a.json", object())
    assert content(tmp_path) == {"a.json": "1\n"}


def test_an_error_while_writing_text_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_text_atomically(tmp_path / "a.txt", "old")

    def fail(path: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files, "sync_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomically(tmp_path / "a.txt", "new")
    assert content(tmp_path) == {"a.txt": "old"}


def test_a_new_folder_appears_with_all_its_files(tmp_path):
    target = tmp_path / "deep" / "model"
    with replace_folder_content(target) as temporary:
        (temporary / "a").write_text("1")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("2")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert content(tmp_path) == {"deep/model/a": "1", "deep/model/sub/b": "2"}


def test_files_of_other_names_stay_in_a_folder_that_exists(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "notes").write_text("mine")
    with replace_folder_content(target) as temporary:
        (temporary / "a").write_text("new")
        assert content(target) == {"a": "old", "notes": "mine"}
    assert content(tmp_path) == {"model/a": "new", "model/notes": "mine"}


@pytest.mark.parametrize("exists", [True, False])
def test_an_error_leaves_the_old_content_of_a_folder(tmp_path, exists):
    target = tmp_path / "model"
    if exists:
        target.mkdir()
        (target / "a").write_text("old")

    def write_half() -> None:
        with replace_folder_content(target) as temporary:
            (temporary / "a").write_text("new")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_half()
    assert content(tmp_path) == ({"model/a": "old"} if exists else {})
    assert os.listdir(tmp_path) == (["model"] if exists else [])


def test_a_keyboard_interrupt_leaves_the_old_content_too(tmp_path):
    def interrupt() -> None:
        with replace_folder_content(tmp_path / "model") as temporary:
            (temporary / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert os.listdir(tmp_path) == []


def test_mode_bits_of_files_follow_the_umask(tmp_path, umask):
    write_text_atomically(tmp_path / "a.txt", "text")
    assert mode(tmp_path / "a.txt") == 0o666 & ~umask


def test_mode_bits_of_folders_follow_the_umask(tmp_path, umask):
    with replace_folder_content(tmp_path / "model") as temporary:
        (temporary / "a").write_text("1")
    assert mode(tmp_path / "model") == 0o777 & ~umask
    assert mode(tmp_path / "model" / "a") == 0o666 & ~umask


def test_the_umask_is_left_as_it_was(tmp_path, umask):
    write_text_atomically(tmp_path / "a.txt", "text")
    now = os.umask(umask)
    assert now == umask

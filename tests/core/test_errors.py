"""Damaged files become one kind of error, whatever the parser raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.core.errors import DamagedFileError, UserError, parsing, read_json


@pytest.mark.parametrize("error", [RecursionError, MemoryError, AttributeError, IndexError, KeyError, OSError])
def test_whatever_a_parser_raises_becomes_a_damaged_file(error: type[Exception]) -> None:
    with (
        pytest.raises(DamagedFileError, match=r"^a\.tar is damaged or is not a shard"),
        parsing(Path("a.tar"), "a shard"),
    ):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError("no file"), PermissionError("no right"), UserError("own message")])
def test_errors_that_say_what_is_wrong_keep_their_type(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), parsing(Path("a.tar"), "a shard"):
        raise error


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "[" * 100_000, "\x00", '{"a": ' * 100_000])
def test_text_that_is_no_json_object_is_a_damaged_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(DamagedFileError, match="a configuration") as caught:
        read_json(file, "a configuration")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DamagedFileError, match="a configuration"):
        read_json(file, "a configuration")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as handle:
        handle.truncate(2**30)
    with pytest.raises(DamagedFileError, match="1073741824 bytes"):
        read_json(file, "a configuration")

"""Damaged files become one kind of error, whatever the parser raises."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

import deit
from deit.core.errors import (
    DamagedConfigurationError,
    DamagedFileError,
    MissingPackageError,
    ShapeError,
    UserError,
    WrongStateError,
    WrongTypeError,
    parsing,
    read_json,
)

SOURCE = Path(deit.__file__).parent


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


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (WrongTypeError, [TypeError]),
        (WrongStateError, [RuntimeError]),
        (MissingPackageError, [ImportError]),
        (ShapeError, [RuntimeError]),
        (DamagedConfigurationError, [DamagedFileError, OSError]),
    ],
)
def test_each_error_is_also_what_python_or_pytorch_raise(error: type[Exception], kinds: list[type[Exception]]) -> None:
    caught = error("what is wrong")
    assert all(isinstance(caught, kind) for kind in [*kinds, UserError, ValueError])
    assert str(caught) == "what is wrong"
    copy = pickle.loads(pickle.dumps(caught))
    assert (type(copy), str(copy)) == (error, "what is wrong")


def test_the_package_raises_its_own_errors() -> None:
    """What a user did wrong is a UserError; `assert` is for what must be true in any case."""
    plain = {"ValueError", "TypeError", "RuntimeError", "ArithmeticError", "Exception"}
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                if isinstance(raised, ast.Name) and raised.id in plain:
                    found.append(f"{file.relative_to(SOURCE)}:{node.lineno} raises {raised.id}")
    assert found == [], "Raise a class of deit.core.errors."

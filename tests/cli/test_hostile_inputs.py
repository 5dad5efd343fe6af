"""A handful of the hostile inputs of `python -m tests.hostile`, which runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.cases import CASES
from tests.hostile.measuring import measure


@pytest.fixture(scope="module")
def good(student: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    (folder / "run").symlink_to(student)
    (folder / "photos").symlink_to(photos / "train")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "pickle: runs a command, in an archive",
        "a web page: classify",
        "config: nested 100,000 deep",
    ],
)
def test_a_hostile_input_ends_in_one_line_within_the_limits(name, good, tmp_path):
    assert measure(name, CASES[name], good, tmp_path / "case").problem == ""

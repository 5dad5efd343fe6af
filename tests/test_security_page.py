"""The limits that docs/security.md names are those of the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = re.findall(
    r"^\| [^|]+ \| ([^|]+) \| `([\w.]+)\.(\w+)` \| [^|]+ \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE
)
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(("value", "module", "name"), ROWS, ids=lambda text: text)
def test_a_limit_has_the_value_that_the_page_says(value, module, name):
    number, _, unit = value.partition(" ")
    said = int(number.replace(",", "")) * UNITS[unit]
    assert getattr(importlib.import_module(f"deit.{module}"), name) == said


def test_every_limit_is_on_the_page():
    named = {name for _, _, name in ROWS}
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "deit").rglob("*.py"))
    assert set(re.findall(r"^(MOST_\w+)\b.*=", source, re.MULTILINE)) <= named


def test_the_threat_model_names_code_and_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    files = [path.relative_to(ROOT).as_posix() for part in ("src", "tests") for path in (ROOT / part).rglob("*.py")]
    named = set(re.findall(r"`([\w/.]+\.py|tests/\w+)`", text))
    assert len(named) > 30
    assert [name for name in named if not any(f"/{name}" in f"/{file}" for file in files)] == []


def test_the_threat_model_names_every_target_of_the_fuzzer() -> None:
    from tests.fuzz.driver import CORPUS

    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = {name for group in re.findall(r"`tests/fuzz` \(([^)]+)\)", text) for name in group.split(", ")}
    assert named == {folder.name for folder in CORPUS.iterdir()}

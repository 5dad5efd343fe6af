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

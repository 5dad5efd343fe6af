"""Every reason of a refusal is explained in the documentation."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import deit.serve

DOCS = Path(__file__).parents[2] / "docs"
PLACE = {"Refusal": 1, "refuse": 0, "Room": 2}  # of the reason among the arguments


def reasons(code: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        place = PLACE.get(node.func.id) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if isinstance(node, ast.Call) and place is not None and len(node.args) > place:
            parts = ast.walk(node.args[place])
            found |= {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return found


def test_every_reason_is_in_a_table() -> None:
    package = Path(deit.serve.__file__).parent
    used = set().union(*(reasons(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")))
    assert {"queue_full", "too_many_images", "bad_form", "wrong_shape", "explain_full"} <= used
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in ("serving.md", "serving-protocols.md")]
    rows = [row for page in pages for row in page.splitlines() if re.match(r"\| \d{3} \|", row)]
    told = {reason for row in rows for reason in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert used - told == set()

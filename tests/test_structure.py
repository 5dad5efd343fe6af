"""The habits of the code: short files, short functions, telling names, docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "deit"
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN = {"utils", "helpers", "misc", "common", "base", "manager"}

Function = ast.FunctionDef | ast.AsyncFunctionDef

pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(SOURCE).as_posix())


def functions(file: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def is_described_elsewhere(node: ast.AST, owner: ast.AST) -> bool:
    """A setter is described by its property, a property without a body by the attributes of its class."""
    decorators = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
    if any(d.endswith(".setter") for d in decorators):
        return True
    documented = isinstance(owner, ast.ClassDef) and f"    {node.name}: " in (ast.get_docstring(owner) or "")
    return "property" in decorators and documented and ast.unparse(node.body) == "..."


def public_definitions(owner: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Classes, functions and methods that a user may name; those inside functions are private."""
    for node in ast.iter_child_nodes(owner):
        if not isinstance(node, (Function, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not is_described_elsewhere(node, owner):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node, f"{prefix}{node.name}.")


def test_no_file_is_longer_than_450_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450


def test_no_function_is_longer_than_60_lines(file):
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions(file)}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_the_name_of_a_module_tells_what_is_in_it(file):
    assert not FORBIDDEN & set(file.relative_to(SOURCE).with_suffix("").parts)


def test_everything_public_has_a_docstring(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert [name for name, node in public_definitions(tree) if not ast.get_docstring(node)] == []

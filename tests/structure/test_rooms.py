"""The rooms of the house: what docs/architecture.md draws is there, and no room is overfull."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "deit"
PAGE = ROOT / "docs" / "architecture.md"
NOT_DRAWN = {"__init__.py", "__main__.py"}  # in every folder, or what Python looks for
MOST_FILES = 12
LARGEST_SHARE = 0.2


def drawn() -> Iterator[str]:
    """Yields the files of the tree on the page, such as "core/config/field_checks.py"."""
    tree = re.search(r"```\nsrc/deit/\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert tree is not None
    folders: list[str] = []
    for line in tree[1].splitlines():
        folder = re.match(r"([│ ]*)[├└]── (\w+)/ ", line)
        if folder is None:
            yield from (f"{'/'.join(folders)}/{name}.py" for name in line.replace("│", " ").split())
        else:
            folders = [*folders[: len(folder[1]) // 4], folder[2]]


def test_the_tree_on_the_page_names_every_file_and_no_other():
    there = [f.relative_to(SOURCE).as_posix() for f in SOURCE.rglob("*.py") if f.name not in NOT_DRAWN]
    assert sorted(drawn()) == sorted(there)


def test_no_folder_but_that_of_keras_holds_more_files_than_one_sees_at_once():
    folders = {file.parent for file in SOURCE.rglob("*.py")} - {SOURCE / "keras"}
    counts = {f.relative_to(SOURCE).as_posix(): len({*f.glob("*.py")} - {f / "__init__.py"}) for f in folders}
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}


def test_no_folder_holds_a_fifth_of_the_lines():
    lines = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in SOURCE.rglob("*.py")}
    shares = {
        folder.name: sum(n for file, n in lines.items() if folder in file.parents) / sum(lines.values())
        for folder in SOURCE.iterdir()
        if folder.is_dir()
    }
    assert {name: share for name, share in shares.items() if share > LARGEST_SHARE} == {}

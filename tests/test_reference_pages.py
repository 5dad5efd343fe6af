"""The pages of docs/reference show every public name of the package, each once, and the site shows every page."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import yaml

import deit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def shown() -> list[str]:
    """Returns what the pages show the docstring of, without the "deit." before it."""
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: deit\.([\w.]+)$", page.read_text(), re.MULTILINE)]


def test_every_public_name_is_shown_once_and_no_other() -> None:
    public = set(dir(deit)) - {"__version__"}
    assert Counter(name for name in shown() if "." not in name) == Counter(public)
    assert len(shown()) == len(set(shown()))


def test_the_navigation_lists_every_page() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(navigation))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_docstrings_name_their_examples_as_the_reference_shows_them() -> None:
    """A heading "Example:" would be shown as prose, without a warning."""
    sources = sorted((ROOT / "src" / "deit").rglob("*.py"))
    assert [f.name for f in sources if re.search(r"^ +Example:$", f.read_text(encoding="utf-8"), re.MULTILINE)] == []


def test_the_files_that_the_site_includes_link_to_no_page_by_a_path_of_the_repository() -> None:
    """`docs/data.md` is there from the root of the repository, but not from a page of the site."""
    included = re.findall(r'--8<-- "(.*)"', "".join(page.read_text() for page in DOCS.glob("*.md")))
    examples = ["examples/exported_javascript/classify.mjs", "examples/exported_python.py"]
    assert sorted(included) == ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md:model", *examples]
    texts = {}
    for name, _, part in (each.partition(":") for each in included):
        text = (ROOT / name).read_text()
        texts[name] = text.partition(f"[start:{part}]")[2].partition(f"[end:{part}]")[0] if part else text
    assert [name for name, text in texts.items() if not text or "](docs/" in text] == []

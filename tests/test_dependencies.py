"""No lowest version of a dependency has a known hole, as far as docs/dependencies.md knows. Needs no network."""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("dev", "docs", "fuzz", "release")  # extras for who works on the package


class Hole(NamedTuple):
    """A row of the page."""

    package: str
    affected: str
    identifier: str
    what: str
    reached: str
    source: str
    looked_up: str


ROWS = re.findall(r"^\| " + r" \| ".join([r"([^|\n]+?)"] * 7) + r" \|$", PAGE, re.MULTILINE)
HOLES = [Hole(*row) for row in ROWS if row[0] != "package"]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for name, part in extras.items() if name not in TOOLS for text in part)]
    return [found for found in map(Requirement, texts) if found.name != "deit"]


def lowest() -> dict[str, set[Version]]:
    """Returns the lowest versions of each package; extras may have different ones."""
    found: dict[str, set[Version]] = {}
    for requirement in requirements():
        (version,) = (Version(each.version) for each in requirement.specifier if each.operator == ">=")
        found.setdefault(canonicalize_name(requirement.name), set()).add(version)
    return found


LOWEST = lowest()


def listed(words: str) -> set[str]:
    """Returns the packages of the sentence of the page that begins with some words."""
    (sentence,) = re.findall(rf"^\* {words}[^:]*: ([^.;]+)[.;]", PAGE, re.MULTILINE)
    return {canonicalize_name(name.strip()) for name in sentence.split(",")}


def test_the_page_lists_holes() -> None:
    assert len(HOLES) == PAGE.count("| 2026-11-26 |") > 20


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.identifier)
def test_no_lowest_version_has_a_hole_that_is_reached(hole) -> None:
    affected = SpecifierSet(hole.affected)
    inside = [version for version in LOWEST[canonicalize_name(hole.package)] if affected.contains(version)]
    assert not inside or hole.reached.startswith("no: ")


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.identifier)
def test_a_row_says_where_and_when_it_was_looked_up(hole) -> None:
    assert re.fullmatch(r"(CVE-\d{4}-\d{4,}|PYSEC-\d{4}-\d+|GHSA(-[0-9a-z]{4}){3})", hole.identifier)
    assert re.fullmatch(r"<https://[^ >]+>", hole.source)
    assert datetime.date.fromisoformat(hole.looked_up)
    assert hole.reached in ("yes", "not known") or hole.reached.startswith("no: ")


def test_the_page_says_of_every_dependency_whether_it_was_looked_up() -> None:
    looked_up, others = listed("Looked up"), listed("Not looked up")
    assert not looked_up & others
    assert looked_up | others == set(LOWEST)
    assert {canonicalize_name(hole.package) for hole in HOLES} <= looked_up


def test_a_hole_in_a_lowest_version_is_found(monkeypatch) -> None:
    hole = next(hole for hole in HOLES if hole.reached == "yes")
    version = Version(hole.affected.lstrip("<="))
    monkeypatch.setitem(LOWEST, canonicalize_name(hole.package), {Version(f"{version.major - 1}.0")})
    with pytest.raises(AssertionError):
        test_no_lowest_version_has_a_hole_that_is_reached(hole)

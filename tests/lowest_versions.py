"""What `make test-lowest` tests is what pyproject.toml promises; run by it alone, in its environment."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

REQUIREMENTS = [
    requirement
    for requirement in map(Requirement, metadata.requires("deit") or ())
    if requirement.name not in ("deit", "tensorflow")  # the same code is installed as tensorflow-cpu
]


def test_every_dependency_has_a_lowest_version_and_is_installed_in_it() -> None:
    lowest = {r.name: [s.version for s in r.specifier if s.operator == ">="] for r in REQUIREMENTS}
    assert [name for name, versions in lowest.items() if len(versions) != 1] == []
    installed = {name: metadata.version(name) for name in lowest}
    assert {
        name: f"{installed[name]}, not {stated}"
        for name, (stated,) in lowest.items()
        if Version(installed[name]) != Version(stated)
    } == {}

"""What `make test-lowest` tests is what pyproject.toml promises; run by it alone, in its environment."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

REQUIREMENTS = [
    requirement
    for requirement in map(Requirement, metadata.requires("deit") or ())
    # The code of tensorflow is installed as tensorflow-cpu; trackio asks for a newer huggingface_hub than the rest.
    if requirement.name not in ("deit", "tensorflow", "trackio")
]


def test_every_dependency_has_a_lowest_version_and_is_installed_in_it() -> None:
    stated = [(r.name, [s.version for s in r.specifier if s.operator == ">="]) for r in REQUIREMENTS]
    assert [name for name, versions in stated if len(versions) != 1] == []
    lowest: dict[str, Version] = {}
    for name, (version,) in stated:  # of two extras that need the same, the higher one is installed
        lowest[name] = max(Version(version), lowest.get(name, Version("0")))
    installed = {name: Version(metadata.version(name)) for name in lowest}
    assert {
        name: f"{installed[name]}, not {version}" for name, version in lowest.items() if installed[name] != version
    } == {}

"""Writes the list of what a release needs (SBOM, CycloneDX 1.6 as JSON): the versions in this environment.

    python -m tests.release.sbom FILE

cyclonedx-py describes the environment. What only tools of developers need is taken out: everything stays that the
package needs with all of its extras but `dev`, `docs`, `fuzz` and `release`, as far as it is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deit

ROOT = Path(__file__).parents[2]
TOOLS = ("dev", "docs", "fuzz", "release")


def direct(project: dict[str, Any]) -> list[Requirement]:
    """Returns what the package needs itself, with all extras but those of developers."""
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name, part in extras.items() if name not in TOOLS for text in part)]
    return [found for found in map(Requirement, texts) if found.name != "deit"]


def installed(requirements: list[Requirement]) -> set[str]:
    """Returns the names of installed packages that requirements need, in turn; cyclonedx-py counts every extra."""
    found: set[tuple[str, str]] = set()
    waiting = [(each.name, extra) for each in requirements for extra in ("", *each.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (canonicalize_name(name), extra) in found:
            continue
        try:
            texts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add((canonicalize_name(name), extra))
        for needed in map(Requirement, texts):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed.name, each) for each in ("", *needed.extras)]
    return {name for name, _ in found}


def reduced(bom: dict[str, Any], names: set[str], first: set[str], version: str) -> dict[str, Any]:
    """Returns a description of an environment with some of its packages.

    Args:
        bom: From cyclonedx-py.
        names: The packages.
        first: Those that the release needs itself.
        version: Of the release.
    """
    kept = {each["bom-ref"]: each for each in bom["components"] if canonicalize_name(each["name"]) in names}
    root = bom["metadata"]["component"]
    root |= {"type": "library", "version": version, "purl": f"pkg:pypi/deit@{version}"}
    own = [ref for ref, each in kept.items() if canonicalize_name(each["name"]) in first]
    dependencies = [{"ref": root["bom-ref"], "dependsOn": sorted(own)}]
    for each in bom["dependencies"]:
        if each["ref"] in kept:
            dependencies.append(
                {"ref": each["ref"], "dependsOn": [on for on in each.get("dependsOn", []) if on in kept]}
            )
    return bom | {"components": list(kept.values()), "dependencies": dependencies}


def main(file: str) -> int:
    """Writes the file, which is valid by the standard's own schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "environment.json"
        words = ["environment", sys.executable, "--pyproject", str(ROOT / "pyproject.toml"), "--sv", "1.6"]
        command = [sys.executable, "-m", "cyclonedx_py", *words, "--output-reproducible", "--output-file", str(whole)]
        subprocess.run(command, check=True)
        described = json.loads(whole.read_text(encoding="utf-8"))
    requirements = direct(project)
    first = {canonicalize_name(each.name) for each in requirements}
    bom = reduced(described, installed(requirements), first, deit.__version__)
    text = json.dumps(bom, indent=2, sort_keys=True) + "\n"
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        print(f"The list is not valid: {error}")
        return 1
    Path(file).write_text(text, encoding="utf-8")
    there = {canonicalize_name(each["name"]) for each in bom["components"]}
    missing = sorted(first - there)
    print(f"{file}: {len(there)} packages; not installed here: {', '.join(missing) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

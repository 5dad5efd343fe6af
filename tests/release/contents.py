"""Checks what is in the wheel and the sdist of a release.

python -m tests.release.contents FOLDER   # with one wheel and one sdist; exits with 1 if something is wrong
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import deit
from deit.core.printable import some_of

ROOT = Path(__file__).parents[2]
_SOURCE = "src/deit/"
_MOST_WHEEL_BYTES = 5 * 2**20
_METADATA = {
    "Name": "deit",
    "Version": deit.__version__,
    "License-Expression": "Apache-2.0",
    "Requires-Python": ">=3.11",
}
_INFO = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


def tracked() -> set[str]:
    """Returns the paths of the repository's files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def wheel_problems(path: Path, files: set[str]) -> list[str]:
    """Returns what is wrong with a wheel; empty if nothing is.

    Args:
        path: The wheel.
        files: Paths of the repository's files.
    """
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    info = f"deit-{deit.__version__}.dist-info/"
    wanted = {name.removeprefix("src/") for name in files if name.startswith(_SOURCE)} | {info + name for name in _INFO}
    problems = [f"{name} is missing" for name in sorted(wanted - set(content))]
    problems += [f"{name} does not belong there" for name in sorted(set(content) - wanted)]
    if path.stat().st_size > _MOST_WHEEL_BYTES:
        problems.append(f"it has {path.stat().st_size} bytes, more than {_MOST_WHEEL_BYTES}")
    if info + "METADATA" in content:
        told = message_from_bytes(content[info + "METADATA"])
        problems += [f"{key} is {told[key]}, not {value}" for key, value in _METADATA.items() if told[key] != value]
    if b"deit = deit.cli:command" not in content.get(info + "entry_points.txt", b""):
        problems.append("the command deit is missing")
    recorded = dict(row[:2] for row in csv.reader(io.StringIO(content.get(info + "RECORD", b"").decode())))
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if name != info + "RECORD" and recorded.get(name) != f"sha256={digest}":
            problems.append(f"RECORD has another hash of {name}")
    return problems


def sdist_problems(path: Path, files: set[str]) -> list[str]:
    """Returns what is wrong with an sdist: it holds the repository's files, its metadata, and nothing else.

    Args:
        path: The sdist.
        files: Paths of the repository's files.
    """
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    root = f"deit-{deit.__version__}/"
    names = {member.name for member in members}
    problems = [f"{name} is outside of {root}" for name in sorted(names) if not name.startswith(root)]
    problems += [f"{member.name} is no plain file" for member in members if not member.isfile()]
    inside = {name.removeprefix(root) for name in names} - {"PKG-INFO"}
    needed = {name for name in files if name.startswith((_SOURCE, "tests/", "docs/"))} | {"pyproject.toml", "LICENSE"}
    problems += [f"{name} is missing" for name in sorted(needed - inside)]
    problems += [f"{name} is not in the repository" for name in sorted(inside - files)]
    return problems if root + "PKG-INFO" in names else [*problems, "PKG-INFO is missing"]


def main(folder: str) -> int:
    """Checks the two files and prints what is wrong."""
    files = tracked()
    (wheel,), (sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    problems = {wheel: wheel_problems(wheel, files), sdist: sdist_problems(sdist, files)}
    for path, found in problems.items():
        print(f"{path.name}: {path.stat().st_size} bytes; {some_of(found, 10) or 'holds what it should'}")
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

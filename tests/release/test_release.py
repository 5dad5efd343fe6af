"""The checks of a release find what is wrong, and the workflow that publishes one is as CONTRIBUTING.md says."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.release import contents, sbom

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


@pytest.fixture(scope="module")
def files() -> set[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout")
    return contents.tracked()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel and an sdist."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("built")
    list(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    list(SdistBuilder(str(ROOT)).build(directory=str(folder)))
    return folder


def test_wheel_and_sdist_hold_what_they_should(built, files, capsys) -> None:
    assert contents.main(str(built)) == 0, capsys.readouterr().out


def test_a_wheel_with_other_files_is_refused(built, files, tmp_path) -> None:
    (original,) = built.glob("*.whl")
    spoilt = tmp_path / original.name
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(spoilt, "w") as new:
        for name in old.namelist():
            if name != "deit/py.typed":
                new.writestr(name, old.read(name) + (b"# changed" if name == "deit/__init__.py" else b""))
        new.writestr("tests/secret.txt", b"")
    assert contents.wheel_problems(spoilt, files) == [
        "deit/py.typed is missing",
        "tests/secret.txt does not belong there",
        "RECORD has another hash of deit/__init__.py",
        "RECORD has another hash of tests/secret.txt",
    ]


def test_an_sdist_with_other_files_is_refused(built, files, tmp_path) -> None:
    (original,) = built.glob("*.tar.gz")
    (tmp_path / "notes.txt").write_text("not for others")
    with tarfile.open(original) as old, tarfile.open(tmp_path / original.name, "w:gz") as new:
        root = old.getnames()[0].split("/")[0]
        for member in old:
            if not member.name.endswith("/LICENSE"):
                new.addfile(member, old.extractfile(member))
        new.add(tmp_path / "notes.txt", f"{root}/notes.txt")
    assert contents.sdist_problems(tmp_path / original.name, files) == [
        "LICENSE is missing",
        "notes.txt is not in the repository",
    ]


def test_the_list_of_what_is_needed_leaves_out_tools() -> None:
    names = ("numpy", "torch", "sympy", "pytest")
    bom = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"bom-ref": f"{name}==1", "name": name} for name in names],
        "dependencies": [{"ref": "torch==1", "dependsOn": ["sympy==1", "pytest==1"]}, {"ref": "pytest==1"}],
    }
    found = sbom.reduced(json.loads(json.dumps(bom)), {"numpy", "torch", "sympy"}, {"numpy", "torch"}, "1.2.3")
    assert [each["name"] for each in found["components"]] == ["numpy", "torch", "sympy"]
    assert found["dependencies"] == [
        {"ref": "root", "dependsOn": ["numpy==1", "torch==1"]},
        {"ref": "torch==1", "dependsOn": ["sympy==1"]},
    ]
    assert found["metadata"]["component"]["purl"] == "pkg:pypi/deit@1.2.3"


def test_what_is_installed_follows_requirements_but_not_their_extras() -> None:
    found = sbom.installed([sbom.Requirement("torch")])
    assert {"torch", "sympy", "mpmath", "jinja2"} <= found
    assert not found & {"pytest", "hypothesis", "ruff"}  # extras of packages that torch needs


def test_the_workflow_publishes_what_was_checked_and_holds_no_password() -> None:
    build, publish = WORKFLOW["jobs"]["build"], WORKFLOW["jobs"]["publish"]
    assert WORKFLOW[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}  # YAML reads "on" as True
    assert "make release-check" in [step.get("run") for step in build["steps"]]
    assert WORKFLOW["permissions"] == {}
    assert (build["permissions"], publish["permissions"]) == ({"contents": "read"}, {"id-token": "write"})
    assert (publish["needs"], publish["environment"]["name"]) == ("build", "pypi")
    assert "secrets." not in json.dumps(WORKFLOW["jobs"])


@pytest.mark.parametrize("used", [step["uses"] for step in STEPS if "uses" in step])
def test_actions_are_pinned(used) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})", used)

"""Processes that did not begin alike are told apart by name before they work."""

from __future__ import annotations

import importlib.metadata
import platform

import deit
from deit.runtime.together.alike import describe_differences, versions
from tests.ranks import run_on_ranks


def test_versions_are_those_that_are_installed() -> None:
    found = versions()
    assert found["Python"] == platform.python_version()
    assert found["deit"] == deit.__version__
    assert found["torch"] == importlib.metadata.version("torch")


def test_the_first_other_process_is_named_with_what_differs() -> None:
    same = {"torch": "2.14.1", "seed": 0}
    assert describe_differences([same, dict(same), dict(same)]) == ""
    told = describe_differences([same, same, {"torch": "2.11.0", "seed": 0, "resume": True}])
    assert told.startswith(
        "Process 2 of 3 differs from process 0: torch '2.11.0', there '2.14.1'; resume True, there None. All processes"
    )
    many = describe_differences([{}, {str(number): number for number in range(9)}])
    assert "4 4, there None; and 4 more." in many


def test_other_libraries_images_recipes_weights_and_states_end_the_start_with_one_error(tmp_path) -> None:
    ran = run_on_ranks("tests.runtime.unlike_processes", tmp_path)
    assert ran.returncode == 0, ran.stderr
    said = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    first = {name.removeprefix("0 "): text for name, text in said.items() if name.startswith("0 ")}
    begin = "UserError Process 1 of 2 differs from process 0: "
    assert first["libraries"].startswith(f"{begin}torch '1.0', there '")
    assert first["images"].startswith(f"{begin}training images '")
    assert first["recipe"].startswith(f"{begin}optimizer.weight_decay 0.3, there 0.05. All")
    assert first["weights"].startswith(f"{begin}initial weights '")
    assert first["state"].startswith(f"{begin}newest state in the folder: step 0, there 9. All")
    assert {text.split()[0] for name, text in said.items() if name.startswith("1 ")} == {"FirstProcessError"}

"""A user's error is one line and exit code 2; a bug is a traceback, a request to report it and exit code 1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deit.core.errors import MissingPackageError, UserError, WrongStateError, WrongTypeError
from deit.models import classifier
from tests.cli.conftest import SHORT, VARIANT, deit, is_refused

ASKED = "This is a bug in deit, not a mistake of yours. Please report it with the text above."
# Python imports a module of this name when it starts: here it makes an import fail, in some of the processes, and on
# request only once they work together.
PLANT = """
import os, sys

class Planted:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({module!r}) and os.environ.get("LOCAL_RANK", "0") in {ranks!r}:
            if not {together} or ("torch" in sys.modules and sys.modules["torch"].distributed.is_initialized()):
                raise {error}("planted")

sys.meta_path.insert(0, Planted())
"""


def broken(
    folder: Path, *words: object, module: str, error: str, ranks: str = "01", together: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs the command with a bug in a module."""
    plant = PLANT.format(module=module, error=error, ranks=ranks, together=together)
    (folder / "sitecustomize.py").write_text(plant)
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-m", "deit", *map(str, words)], capture_output=True, text=True, env=environment, timeout=240
    )


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RuntimeError, ArithmeticError])
def test_an_error_that_is_no_users_goes_through_a_command(error, student, photos, monkeypatch):
    def fails(*arguments: object, **options: object) -> None:
        raise error("planted")

    monkeypatch.setattr(classifier, "open_classifier", fails)
    result = deit("classify", student, photos / "val" / "red" / "0.png")
    assert isinstance(result.exception, error)


@pytest.mark.parametrize("error", ["ValueError", "TypeError"])
def test_a_bug_ends_in_a_traceback_and_exit_code_1(error, tmp_path):
    ran = broken(tmp_path, "recipes", module="deit.train.recipes.catalog", error=error)
    lines = ran.stderr.splitlines()
    assert (ran.returncode, ran.stdout) == (1, "")
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [f"{error}: planted", ASKED]


@pytest.mark.parametrize(("module", "ranks", "together"), [("deit.train.trial", "01", False), ("deit.", "1", True)])
def test_a_bug_in_several_processes_is_one_traceback_and_exit_code_1(module, ranks, together, photos, tmp_path):
    """In both, by which each ends for itself; in the second, while they work together."""
    words = ("train", photos, "--student", VARIANT, "--image-size", 32, *SHORT, "--out", tmp_path / "run")
    more = {"module": module, "ranks": ranks, "together": together}
    ran = broken(tmp_path, "--processes", 2, *words, error="ValueError", **more)
    assert ran.returncode == 1, ran.stderr
    assert ran.stderr.count("ValueError: planted") == ran.stderr.count(ASKED) == 1, ran.stderr
    assert "Error: " not in ran.stderr.replace("ValueError: ", "")


@pytest.mark.parametrize(
    "error",
    [UserError, WrongTypeError, WrongStateError, MissingPackageError, FileNotFoundError, ConnectionError, MemoryError],
)
def test_errors_of_users_and_of_the_machine_are_one_line(error, student, photos, monkeypatch):
    def fails(*arguments: object, **options: object) -> None:
        raise error("it does not fit.")

    monkeypatch.setattr(classifier, "open_classifier", fails)
    is_refused(deit("classify", student, photos / "val" / "red" / "0.png"), "Error: it does not fit.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("photos", "--seed", 10**22), "seed must be at least 0 and less than 2**63."),
        (("photos", "--device", "meta"), "The device 'meta' holds no numbers."),
        (("http://[x/a.tar",), "http://[x/a.tar is not an address"),
    ],
)
def test_words_that_other_libraries_refuse_are_refused_in_one_line(words, said, photos, tmp_path):
    given = (photos if word == "photos" else word for word in words)
    is_refused(deit("train", *given, "--student", VARIANT, "--out", tmp_path / "run"), said)

"""The command as a whole: its options, its help and what it imports; and the real program for exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import deit as package
from deit.cli.app import app
from tests.cli.conftest import deit, succeeds

PROGRAM = Path(sys.executable).with_name("deit")

OPTIONS = {
    "inspect": [
        "--out", "--model", "--predictions", "--image-column", "--label-column", "--problem-type", "--value-range",
        "--batch-size", "--device", "--json",
    ],
    "train": [
        "--out", "--student", "--init", "--teacher", "--teacher-cache", "--recipe", "--minutes", "--plan", "--epochs",
        "--batch-size", "--seed", "--image-size", "--labels", "--freeze", "--folds", "--exclude", "--set", "--log",
        "--device", "--sharding", "--gradient-checkpointing", "--detect-anomaly", "--deterministic", "--cache-size",
        "--resume", "--auto-resume", "--notice-file",
    ],
    "pretrain": [
        "--out", "--student", "--init", "--config", "--recipe", "--epochs", "--batch-size", "--seed", "--image-size",
        "--set", "--device", "--sharding", "--gradient-checkpointing", "--detect-anomaly", "--deterministic",
        "--cache-size", "--resume", "--auto-resume", "--notice-file",
    ],
    "recipes": ["--yaml", "--json"],
    "evaluate": [
        "--teacher", "--head", "--report", "--json", "--batch-size", "--device", "--engine", "--precision",
        "--held-out", "--image-column", "--label-column", "--knn", "--value-range", "--average", "--strict",
        "--cache-size",
    ],
    "calibrate": [
        "--training-images", "--precision", "--recall", "--positive", "--json", "--batch-size", "--device",
        "--image-column", "--label-column", "--value-range", "--average", "--strict",
    ],
    "classify": [
        "--top-k", "--out", "--batch-size", "--device", "--engine", "--json", "--value-range", "--average", "--strict",
        "--coverage", "--sets", "--per-class", "--abstain", "--raw", "--resume", "--on", "--workers", "--unit-images",
        "--embedding", "--explain", "--image-column", "--audit", "--audit-contents",
    ],
    "embed": ["--out", "--token", "--block", "--batch-size", "--device", "--value-range", "--strict"],
    "explain": [
        "--out", "--method", "--target", "--head", "--random-orders", "--seed", "--device", "--json", "--value-range",
        "--strict",
    ],
    "convert": ["--to", "--variant", "--token-merging"],
    "export": ["--out", "--to", "--precision", "--check", "--opset", "--tolerance", "--pixels"],
    "quantize": ["--calibrate", "--out", "--engine", "--agreement", "--allow-slower"],
    "benchmark": [
        "--engines", "--precisions", "--batch-sizes", "--seconds", "--noisy", "--threads", "--device", "--out",
        "--json",
    ],
    "push": ["--private", "--message", "--branch", "--propose"],
    "serve": [
        "--host", "--port", "--device", "--engine", "--average", "--workers", "--max-batch", "--max-wait-ms",
        "--max-queue", "--degrade", "--drain-seconds", "--token-file", "--settings",
    ],
    "demo": ["--out", "--seed"],
}  # fmt: skip
ARGUMENTS = {
    "inspect": ["data"],
    "train": ["data"],
    "pretrain": ["data"],
    "recipes": ["name"],
    "evaluate": ["model", "data"],
    "calibrate": ["model", "data"],
    "classify": ["model", "images"],
    "embed": ["model", "images"],
    "explain": ["model", "images"],
    "convert": ["source", "destination"],
    "export": ["model"],
    "quantize": ["model"],
    "benchmark": ["model"],
    "push": ["model", "name"],
    "serve": ["models"],
    "demo": [],
}


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_commands_are_these():
    assert list(typer.main.get_command(app).commands) == list(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_a_command_are_these_and_not_too_many(name):
    parameters = typer.main.get_command(app).commands[name].params
    assert [p.opts[0] for p in parameters if p.param_type_name == "option"] == OPTIONS[name]
    assert [p.name for p in parameters if p.param_type_name == "argument"] == ARGUMENTS[name]
    special = [p for p in parameters if str(getattr(p, "help", "")).startswith(("Bulk:", "Many machines:"))]
    assert len(OPTIONS[name]) - len(special) <= {"train": 22, "classify": 17}.get(name, 15)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_explains_every_option(name):
    text = succeeds(name, "--help").output
    for option in OPTIONS[name]:
        (explained,) = re.findall(rf"^  {option}\b(?!-)(.*(?:\n   .*)*)", text, re.MULTILINE)
        assert re.search(r"[A-Za-z]{3,}.*\.", explained)


def test_without_arguments_the_command_shows_its_help():
    result = deit()
    assert result.exit_code == 2
    assert "Usage: deit" in result.output
    assert all(name in result.output for name in OPTIONS)


def test_the_version_is_shown():
    assert succeeds("--version").output == f"deit {package.__version__}\n"


def test_a_missing_option_is_named():
    result = deit("train", "somewhere")
    assert result.exit_code == 2
    assert "Missing option '--out'" in result.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from deit.cli.app import app; "
        "print(sorted({'torch', 'timm', 'torchvision', 'numpy', 'PIL', 'yaml', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"


def test_the_program_shows_its_help():
    result = run_program("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Small, fast image classifiers" in result.stdout


def test_the_program_ends_with_one_line_and_code_2_for_a_mistake_of_the_user(tmp_path):
    result = run_program("classify", str(tmp_path), "nowhere.png")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: No image, folder or match for 'nowhere.png'.\n"


def test_a_traceback_is_shown_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIT_TRACEBACK", "1")
    result = run_program("classify", str(tmp_path), "nowhere.png")
    assert result.returncode == 2
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("\nError: No image, folder or match for 'nowhere.png'.\n")


def test_the_program_ends_at_once_with_its_code_after_all_exit_handlers(tmp_path):
    code = """
import atexit, sys
from deit import cli
cli.main = lambda: (atexit.register(lambda: print("handled")), atexit.register(print, "first"), sys.exit(3))
class Late:
    def __del__(self): print("taken apart")
sys.late = Late()
cli.command()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, "first\nhandled\n", "")


def test_a_mistake_of_the_program_ends_it_as_python_does():
    code = "from deit import cli\ndef fail(): raise RuntimeError('a mistake')\ncli.main = fail\ncli.command()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("RuntimeError: a mistake\n")


def test_a_training_imports_no_library_that_it_may_not_need_before_its_inputs_are_read():
    code = (
        "import sys; import deit.cli.training.train, deit.train.trial, deit.train.loop, deit.data.open_data; "
        "from deit.train.recipes.recipe import Recipe; Recipe(); "
        "print(sorted({'timm', 'torchvision', 'torch._dynamo', 'matplotlib', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_the_packages_of_the_command_it_says_how_to_install_them(name):
    result = run_without(name)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert f"The deit command needs the '{name}' package" in result.stderr
    assert 'pip install "deit[cli]"' in result.stderr


def test_other_missing_modules_are_not_taken_for_those():
    result = run_without("deit.cli.training.train")
    assert result.returncode == 1
    assert "ModuleNotFoundError: No module named 'deit.cli.training.train'" in result.stderr


def run_without(module: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a new process that cannot find a module."""
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent())
from deit.cli import main
main()
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

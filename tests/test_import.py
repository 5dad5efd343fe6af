"""What importing the package loads, and what it says when something is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import deit

HEAVY = (
    "torch", "torchvision", "timm", "typer", "rich", "transformers", "matplotlib", "sklearn", "yaml",
    "keras", "tensorflow", "jax",
)  # fmt: skip

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import deit
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def in_core_or_models(name: str) -> bool:
    return deit._HOME[name].startswith(("deit.core", "deit.models", "deit.inference.pipelines"))


def test_importing_the_package_loads_no_framework():
    code = f"import sys, deit; print([m for m in {HEAVY} if m in sys.modules], set(dir(deit)) >= set(deit.__all__))"
    result = python(code)
    assert (result.stdout.strip(), result.stderr) == ("[] True", "")


def test_the_core_loads_no_framework_and_adds_no_log_handlers():
    names = [n for n in deit._HOME if deit._HOME[n].startswith("deit.core")]
    assert len(names) >= 5
    code = (
        f"import sys, logging, deit\n[getattr(deit, n) for n in {names}]\n"
        f"print([m for m in {HEAVY} if m in sys.modules], logging.getLogger().handlers)"
    )
    result = python(code)
    assert (result.stdout.strip(), result.stderr) == ("[] []", "")


def test_a_star_import_leaves_keras_out_which_would_start_tensorflow():
    keras_names = {name for name, home in deit._HOME.items() if home.startswith("deit.keras.")}
    assert {"TFDeiTModel", "KerasDeiTModel", "KerasDistillation"} <= keras_names
    assert not keras_names & set(deit.__all__)
    assert keras_names <= set(dir(deit))


@pytest.mark.parametrize("name", [n for n in deit.__all__ if n in deit._HOME and in_core_or_models(n)])
def test_every_public_name_of_core_and_models_resolves(name):
    value = getattr(deit, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(deit)


def test_the_version_is_a_number_of_three_parts():
    assert "__version__" in deit.__all__
    assert len([int(part) for part in deit.__version__.split(".")]) == 3


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'deit' has no attribute 'DeitModel'"):
        _ = deit.DeitModel


@pytest.mark.parametrize(
    ("name", "use", "error"),
    [
        ("deit.DeiTModel", "", "ModuleNotFoundError"),
        ("deit.Explainer", "", "ModuleNotFoundError"),
        ("Opening a model", "deit.Predictor.open('x')", "deit.core.errors.MissingPackageError"),
    ],
)
def test_without_pytorch_what_needs_it_says_how_to_install_it(name, use, error):
    code = BLOCK.format(module="torch") + f"print(deit.DeiTConfig().hidden_size)\n{use or name}"
    result = python(code)
    assert result.stdout.strip() == "768"
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"{error}: {name} needs the 'torch' package. Install it with: pip install \"deit[torch]\""

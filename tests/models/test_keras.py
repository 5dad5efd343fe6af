"""The Keras models against PyTorch's, one process for each backend; what they do alone is in tests/keras."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deit
from tests.keras.model_cases import MODELS
from tests.models.keras_masked_cases import write_masked_cases
from tests.models.keras_model_cases import write_model_cases
from tests.models.keras_training_cases import write_training_cases

ROOT = Path(__file__).parents[2]
# What the process of a backend must live without.
HIDDEN = {
    "tensorflow": ("torch", "torchvision", "timm", "jax", "transformers"),
    "jax": ("torch", "torchvision", "timm", "tensorflow", "transformers"),
    "torch": (),
}
# JAX compiles every operation of a call outside of jit: these tests need many small ones, and none to be fast.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
RUN = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import pytest

sys.exit(pytest.main({arguments!r}))
"""

# Importing TensorFlow here would abort the process when torchvision comes after it, so packages are only looked for.
if find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)


@pytest.fixture(scope="session")
def keras_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras_cases")
    write_model_cases(folder, redraw_parameters)
    if find_spec("transformers") is not None:
        write_masked_cases(folder)
    write_training_cases(folder)
    return folder


def redraw_parameters(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def run(backend: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
        env={**os.environ, **QUIET, "KERAS_BACKEND": backend, **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", HIDDEN)
def test_the_contract_holds_on(backend, keras_cases, tmp_path):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    arguments = ["tests/keras", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}"]
    code = RUN.format(hidden=HIDDEN[backend], arguments=arguments)
    result = run(backend, code, DEIT_KERAS_CASES=str(keras_cases), DEIT_KERAS_SAVED=str(tmp_path))
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-3000:]
    _check_what_keras_saved(keras_cases, tmp_path)


def _check_what_keras_saved(cases: Path, saved: Path) -> None:
    """PyTorch -> Keras -> PyTorch: the same bytes, and PyTorch opens them."""
    for name, (model_class, _, _) in MODELS.items():
        for file in ("model.safetensors", "config.json"):
            assert (saved / name / file).read_bytes() == (cases / name / file).read_bytes(), name
        assert type(getattr(deit, model_class).from_pretrained(saved / name)).__name__ == model_class
    new = deit.DeiTForImageClassification.from_pretrained(saved / "made by keras")
    logits = new(torch.from_numpy(np.load(saved / "pixels.npy"))).logits.detach().numpy()
    np.testing.assert_allclose(logits, np.load(saved / "logits.npy"), atol=1e-5)


def test_importing_the_package_and_the_pytorch_classes_starts_no_keras():
    code = "import sys, deit; deit.DeiTModel, deit.Predictor; print([m for m in sys.modules if m.split('.')[0] in "
    result = run("tensorflow", code + "('keras', 'tensorflow', 'jax')])")
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_a_backend_that_is_not_installed_is_named_each_time_it_is_asked_for(backend):
    code = RUN.split("import pytest")[0].format(hidden=(backend,), arguments=None) + (
        "import deit\nfor _ in range(2):\n    try:\n        deit.TFDeiTModel\n"
        "    except ModuleNotFoundError as error:\n        print(error)\n"
    )
    result = run(backend, code)
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2, result.stderr
    for line in lines:
        assert f"KERAS_BACKEND={backend}" in line
        assert f'pip install "deit[{backend}]"' in line


def test_without_keras_a_model_says_how_to_install_it():
    code = RUN.split("import pytest")[0].format(hidden=("keras",), arguments=None) + "import deit\ndeit.KerasViTModel"
    last = run("jax", code).stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: deit.KerasViTModel needs the 'keras' package. Install it with: pip")


def test_a_backend_that_changes_after_the_import_is_refused():
    code = (
        "import os, deit\ndeit.TFDeiTModel\nos.environ['KERAS_BACKEND'] = 'tensorflow'\n"
        "try:\n    deit.TFDeiTModel(deit.DeiTConfig())\nexcept RuntimeError as error:\n    print(error)"
    )
    result = run("jax", code)
    assert result.stdout.startswith("Keras runs on 'jax' in this process, and KERAS_BACKEND asks for 'tensorflow'.")

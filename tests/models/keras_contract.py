"""Runs tests/keras on one backend, in a process of its own, with the numbers of PyTorch in a folder."""

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
from filelock import FileLock

import deit
from tests.keras.model_cases import MODELS
from tests.models.keras_masked_cases import write_masked_cases
from tests.models.keras_model_cases import write_model_cases
from tests.models.keras_order_cases import write_order_cases
from tests.models.keras_training_cases import write_training_cases

ROOT = Path(__file__).parents[2]
# What the process of a backend must live without.
HIDDEN = {
    "tensorflow": ("torch", "torchvision", "timm", "jax", "transformers"),
    "jax": ("torch", "torchvision", "timm", "tensorflow", "transformers"),
    "torch": (),
}
# JAX compiles every operation outside of jit, and these tests run many small ones once: both flags make compilation
# faster and the compiled code slower.
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
}
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


def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the numbers of PyTorch, which the first to ask writes for all processes of the run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "keras_cases"
    with FileLock(f"{folder}.lock"):
        if not (folder / "whole").exists():
            folder.mkdir(exist_ok=True)
            write_model_cases(folder, redraw_parameters)
            if find_spec("transformers") is not None:
                write_masked_cases(folder)
            write_training_cases(folder)
            (folder / "orders").mkdir(exist_ok=True)
            write_order_cases(folder / "orders")
            (folder / "whole").touch()
    return folder


def redraw_parameters(model: Any) -> Any:
    """Gives every parameter of a model large random values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def run(backend: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process on a backend."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        cwd=ROOT,
        env={**os.environ, **QUIET, "KERAS_BACKEND": backend, **environment},
    )


def check_contract(backend: str, folder: Path, saved: Path) -> None:
    """Runs the tests, and opens in PyTorch what they saved.

    Args:
        backend: Of Keras.
        folder: Of `cases`.
        saved: Where the tests write.
    """
    # Importing TensorFlow here would abort the process when torchvision comes after it: packages are only looked for.
    if find_spec("keras") is None or find_spec(backend) is None:
        pytest.skip(f"Keras or {backend} is not installed")
    arguments = ["tests/keras", "-q", "-p", "no:cacheprovider", f"--basetemp={saved / 'inside'}"]
    code = RUN.format(hidden=HIDDEN[backend], arguments=arguments)
    result = run(backend, code, DEIT_KERAS_CASES=str(folder), DEIT_KERAS_SAVED=str(saved))
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-3000:]
    _check_what_keras_saved(folder, saved)


def _check_what_keras_saved(folder: Path, saved: Path) -> None:
    """PyTorch -> Keras -> PyTorch: the same bytes, and PyTorch opens them."""
    for name, (model_class, _, _) in MODELS.items():
        for file in ("model.safetensors", "config.json"):
            assert (saved / name / file).read_bytes() == (folder / name / file).read_bytes(), name
        assert type(getattr(deit, model_class).from_pretrained(saved / name)).__name__ == model_class
    new = deit.DeiTForImageClassification.from_pretrained(saved / "made by keras")
    logits = new(torch.from_numpy(np.load(saved / "pixels.npy"))).logits.detach().numpy()
    np.testing.assert_allclose(logits, np.load(saved / "logits.npy"), atol=1e-5)

"""TensorFlow, PyTorch, torchvision and Keras in one process, in every order that matters and with each part missing.

Each order is a process of its own, because TensorFlow in front of triton ends it with a segmentation fault. Inside, the
four TensorFlow samples of transformers' pages run on a model directory, and what else loads torchvision or triton.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.keras.samples import ALL, FAST, ON_ARRAYS, ONE, PILLOW, REFUSED, SAMPLES
from tests.models.keras_order_cases import write_order_cases

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "deit").rglob("*.py"))
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SETUP = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np
place = {place!r}
"""
# Everything else here that loads torchvision, timm or torch._dynamo.
LATER = """
import torch
from PIL import Image
import deit

image = Image.open(place + "/image.png")
fast = deit.AutoImageProcessor.from_pretrained(place + "/classifier", use_fast=True)
assert type(fast).__name__ == "DeiTImageProcessorFast"
classify = deit.pipeline(model=place + "/classifier", image_processor=fast, device="cpu")
assert classify(image)[0]["label"].startswith("LABEL_")
model = deit.DeiTForImageClassification.from_pretrained(place + "/classifier").train()
model.gradient_checkpointing_enable()
optimizer = torch.optim.AdamW(model.parameters())
model(**fast(image, return_tensors="pt"), labels=torch.tensor([1])).loss.backward()
optimizer.step()
from deit.data.augment import Augmentation
from deit.train.optimization import build_optimizer
assert deit.fit and deit.Recipe and deit.open_data and deit.Predictor and deit.list_recipes()
"""
# A process of TensorFlow takes seconds, so that each order has one and the first alone runs every sample. Where PyTorch
# is missing they run in the contract, tests/keras/test_processors.py.
ORDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "tensorflow first, all the rest after": ((), "import tensorflow\n" + PILLOW + ALL + SAMPLES + LATER),
    "torch and transformers in front of tensorflow": (
        (), "import torch, transformers, deit\ndeit.DeiTModel\n" + PILLOW + ONE + SAMPLES + LATER,
    ),
    "torchvision in front of tensorflow": ((), "import torchvision\n" + FAST + ONE + SAMPLES),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orders")
    write_order_cases(folder)
    return folder


def run(code: str, hidden: tuple[str, ...], place: Path, backend: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SETUP.format(hidden=hidden, place=str(place)) + code],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**os.environ, **QUIET, "KERAS_BACKEND": backend},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.parametrize("order", ORDERS)
def test_the_samples_of_the_documentation_run_with(order, place):
    hidden, code = ORDERS[order]
    run(code, hidden, place, "tensorflow")


def test_keras_runs_on_pytorch_without_torchvision(place):
    if find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    run("import torch, deit\n" + ON_ARRAYS + REFUSED, ("torchvision", "timm"), place, "torch")


def _loads_triton(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        names = [name.name for name in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    else:
        return False
    return any(name.split(".")[0] in ("torchvision", "timm") or "flex_attention" in name for name in names)


def _makes_safe(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node) == "make_order_safe()"


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f.stem)
def test_whatever_loads_torchvision_makes_the_order_safe_before(file):
    for owner in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for block in ("body", "orelse", "handlers", "finalbody"):
            safe = False
            for node in getattr(owner, block, None) or () if isinstance(getattr(owner, block, None), list) else ():
                safe = safe or _makes_safe(node)
                assert safe or not _loads_triton(node), f"{file}:{node.lineno}"

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
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deit

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "deit").rglob("*.py"))
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 16, "encoder_stride": 16, "num_labels": 5,
}  # fmt: skip
MODELS = {
    "model": "DeiTModel",
    "masked": "DeiTForMaskedImageModeling",
    "classifier": "DeiTForImageClassification",
    "teacher": "DeiTForImageClassificationWithTeacher",
}
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
# The samples of transformers' pages: a PIL image, the Auto class, tensors of TensorFlow, each class, argmax by tf.math.
SAMPLES = """
import tensorflow as tf
from PIL import Image
from deit import AutoImageProcessor, TFDeiTModel
from deit import TFDeiTForImageClassification, TFDeiTForImageClassificationWithTeacher, TFDeiTForMaskedImageModeling

image = Image.open(place + "/image.png")
wanted = dict(np.load(place + "/wanted.npz"))
tolerance = 1e-4 if wanted_processor == "DeiTImageProcessor" else 2e-2
for name in names:
    image_processor = AutoImageProcessor.from_pretrained(place + "/" + name)
    assert type(image_processor).__name__ == wanted_processor, type(image_processor)
    inputs = image_processor(images=image, return_tensors="tf")
    assert isinstance(inputs.pixel_values, tf.Tensor)
    if name == "model":
        found = TFDeiTModel.from_pretrained(place + "/model")(**inputs).last_hidden_state
    elif name == "masked":
        model = TFDeiTForMaskedImageModeling.from_pretrained(place + "/masked")
        num_patches = (model.config.image_size // model.config.patch_size) ** 2
        mask = tf.cast(tf.random.uniform((1, num_patches), minval=0, maxval=2, dtype=tf.int32), tf.bool)
        outputs = model(inputs.pixel_values, bool_masked_pos=mask)
        assert np.isfinite(float(outputs.loss)) and list(outputs.reconstruction.shape) == [1, 3, 32, 32]
        found = model(inputs.pixel_values, bool_masked_pos=tf.zeros((1, num_patches))).reconstruction
    else:
        kind = TFDeiTForImageClassification if name == "classifier" else TFDeiTForImageClassificationWithTeacher
        model = kind.from_pretrained(place + "/" + name)
        found = model(**inputs).logits
        predicted_class_idx = tf.math.argmax(found, axis=-1)[0]
        assert int(predicted_class_idx) == wanted[name].argmax()
        assert model.config.id2label[int(predicted_class_idx)].startswith("LABEL_")
    np.testing.assert_allclose(found.numpy(), wanted[name], atol=tolerance)
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
REFUSED = """
import deit
try:
    deit.AutoImageProcessor.from_pretrained(place + "/model", backend="torchvision")
except ModuleNotFoundError as error:
    assert "Install it with: pip install" in str(error) and 'backend="pil"' in str(error), error
else:
    raise AssertionError("torchvision is hidden")
"""
PILLOW, FAST = 'wanted_processor = "DeiTImageProcessor"\n', 'wanted_processor = "DeiTImageProcessorFast"\n'
ALL, ONE = f"names = {tuple(MODELS)}\n", 'names = ("teacher",)\n'
# A process of TensorFlow takes seconds, so that each order has one and the first alone runs every sample.
ORDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "tensorflow first, all the rest after": ((), "import tensorflow\n" + PILLOW + ALL + SAMPLES + LATER),
    "torch and transformers in front of tensorflow": (
        (), "import torch, transformers, deit\ndeit.DeiTModel\n" + PILLOW + ONE + SAMPLES + LATER,
    ),
    "torchvision in front of tensorflow": ((), "import torchvision\n" + FAST + ONE + SAMPLES),
    "without torch": (
        ("torch", "torchvision", "timm", "jax", "transformers"),
        PILLOW + ONE + SAMPLES + REFUSED,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directories, an image, and what PyTorch answers."""
    import torch

    folder = tmp_path_factory.mktemp("orders")
    processor = deit.DeiTImageProcessor(size=36, crop_size=32)
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
        (60, 50), Image.Resampling.BICUBIC
    )
    image.save(folder / "image.png")
    pixels = processor(image, return_tensors="pt")
    wanted = {}
    for name, kind in MODELS.items():
        torch.manual_seed(0)
        model = getattr(deit, kind)(deit.DeiTConfig(**SIZES)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        with torch.no_grad():
            output = model(**pixels)
        wanted[name] = output[0].numpy()
    np.savez(folder / "wanted.npz", **wanted)
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


ON_ARRAYS = """
import deit
from PIL import Image
processor = deit.AutoImageProcessor.from_pretrained(place + "/classifier")
assert type(processor).__name__ == "DeiTImageProcessor"
inputs = processor(Image.open(place + "/image.png"), return_tensors="np")
model = deit.TFDeiTForImageClassification.from_pretrained(place + "/classifier")
import keras
found = keras.ops.convert_to_numpy(model(**inputs).logits)
np.testing.assert_allclose(found, np.load(place + "/wanted.npz")["classifier"], atol=1e-4)
"""


@pytest.mark.parametrize(
    ("backend", "hidden", "before", "after"),
    [
        ("jax", ("torch", "torchvision", "timm", "tensorflow", "transformers"), "", REFUSED),
        ("torch", ("torchvision", "timm"), "import torch, deit\n", REFUSED),
    ],
)
def test_the_other_backends_run_with_what_is_there(backend, hidden, before, after, place):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    run(before + ON_ARRAYS + after, hidden, place, backend)


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

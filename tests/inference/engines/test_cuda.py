"""The engine for GPUs. Its network and kernels are tested on the CPU; recording and fp8 need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from deit import DeiTConfig, DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTImageProcessor
from deit.core.errors import UserError
from deit.inference.contract import FEATURES, Contract
from deit.inference.engines.cuda_engine import LARGEST_BATCH, CudaEngine, graph_size
from deit.inference.engines.opening import open_engine
from deit.inference.engines.torch_engine import TorchEngine
from deit.inference.graph.cuda_classifier import CudaClassifier
from deit.inference.graph.folding import fold

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model_and_contract(kind=DeiTForImageClassificationWithTeacher, **changes):
    torch.manual_seed(0)
    values = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
    config = DeiTConfig(**values | {"image_size": 32, "patch_size": 8, "num_labels": 10} | changes)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    heads = ("both", "class", "distillation") if kind is DeiTForImageClassificationWithTeacher else ("class",)
    processor = DeiTImageProcessor(size=32, crop_size=32)
    names = [str(i) for i in range(10)]
    return model, Contract(processor=processor, label_names=names, head_names=heads, image_size=(32, 32))


def pixels_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 1},
        {"hidden_act": "relu"},
        {"pruned_heads": {1: [0]}},
        {"layer_norm_eps": 0.1},
        {"head_average": "probabilities"},
        {"image_size": (33, 32)},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
@pytest.mark.parametrize("kind", [DeiTForImageClassificationWithTeacher, DeiTForImageClassification])
def test_the_network_for_gpus_equals_the_model(kind, changes) -> None:
    model, contract = model_and_contract(kind, **changes)
    lean = fold(model, contract.processor, takes_uint8=False, with_features=True)
    classifier = CudaClassifier(lean, torch.float32)
    pixels = torch.from_numpy(pixels_of(3))
    if "image_size" in changes:
        pixels = torch.nn.functional.pad(pixels, (0, 0, 0, 1))
    expected = TorchEngine(model, contract).with_features(pixels.numpy())
    with torch.inference_mode():
        outputs = classifier(pixels)
        together = classifier.all_outputs(pixels)
    assert len(outputs) == len(expected)
    for name, output in zip((*contract.head_names, FEATURES), outputs, strict=True):
        np.testing.assert_allclose(output.numpy(), expected[name], rtol=1e-4, atol=2e-5)
    assert [part.shape[1] for part in together.split(classifier.output_widths, 1)] == classifier.output_widths


def test_sizes_of_graphs() -> None:
    assert [graph_size(images) for images in (0, 1, 16, 17, 24, 25, 256)] == [1, 1, 16, 24, 24, 32, 256]


def test_the_kernels_equal_pytorch() -> None:
    """In Triton's interpreter, which needs no GPU."""
    pytest.importorskip("triton")
    code = """
import torch
import torch.nn.functional as F
from deit.inference.graph.triton_kernels import gelu, normalize

torch.manual_seed(0)
for rows, width in [(5, 192), (33, 64), (3, 100), (130, 48)]:
    x, delta, shift = torch.randn(rows, width), torch.randn(rows, width), torch.randn(width)
    expected = F.layer_norm(x + shift, (width,), eps=0.01)
    found = normalize(x, shift, 0.01, delta=None, dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    total = x + delta
    found = normalize(x, shift, 0.01, delta=delta, dtype=torch.float32)
    torch.testing.assert_close(found, F.layer_norm(total + shift, (width,), eps=0.01), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x, total)
    torch.testing.assert_close(gelu(x, torch.float32), F.gelu(x), rtol=1e-5, atol=1e-6)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_cpu_is_refused(deit_directory) -> None:
    model, contract = model_and_contract()
    with pytest.raises(UserError, match=r"runs on GPUs of CUDA\. Received the device 'cpu'\."):
        CudaEngine(model, contract, "cpu")
    with pytest.raises(UserError, match=r"runs on GPUs of CUDA\. Received the device 'cpu'\. Pass device='cuda'"):
        open_engine(deit_directory(), engine="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"runs on GPUs of CUDA, and PyTorch finds none\. Leave out the engine"):
            open_engine(deit_directory(), "auto", engine="cuda")
    with pytest.raises(UserError, match="must be fp32 or bf16 or fp8"):
        CudaEngine(model, contract, "cpu", precision="int4")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_answers_on_a_gpu(precision) -> None:
    model, contract = model_and_contract()
    engine = CudaEngine(model, contract, "cuda", precision=precision)
    plain = TorchEngine(model, contract, "cuda")
    tolerance = {"fp32": 1e-3, "bf16": 0.05, "fp8": 0.3}[precision]
    for count in (1, 3, 17, 20, 17, 1, LARGEST_BATCH + 5):
        expected, found = plain.with_features(pixels_of(count)), engine.with_features(pixels_of(count))
        for name, values in expected.items():
            assert found[name].shape == values.shape
            error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
            assert error < tolerance, (count, name, error)
    assert set(engine._graphs) >= {1, 3, 24}


@pytest.mark.gpu
@needs_gpu
def test_threads_get_their_own_answers_on_a_gpu() -> None:
    model, contract = model_and_contract()
    engine, plain = CudaEngine(model, contract, "cuda", precision="fp32"), TorchEngine(model, contract, "cuda")
    batches = [pixels_of(count) for count in (1, 2, 5, 9, 30, 2, 1, 5) * 4]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine, batches))
    for batch, answers in zip(batches, found, strict=True):
        np.testing.assert_allclose(answers["class"], plain(batch)["class"], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_auto_takes_the_engine_on_a_gpu(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("DEIT_ENGINE", raising=False)
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    model, contract = model_and_contract()
    model.save_pretrained(tmp_path / "model")
    contract.processor.save_pretrained(tmp_path / "model")
    engine = open_engine(tmp_path / "model", "cuda", engine="auto")
    plain = TorchEngine(model, contract, "cuda")
    ends = time.monotonic() + 30
    while not engine.is_decided and time.monotonic() < ends:
        answers = engine(pixels_of(8))
    assert engine.name == "cuda", engine.describe()
    np.testing.assert_allclose(engine(pixels_of(8))["class"], plain(pixels_of(8))["class"], atol=0.05)
    assert answers.keys() == engine(pixels_of(3)).keys()
    remembering = open_engine(tmp_path / "model", "cuda", engine="auto")
    while not remembering.is_decided and time.monotonic() < ends + 30:
        remembering(pixels_of(8))
    assert remembering.choice.source == "remembered"

"""Models go through PyTorch's older exporter, packed weights or not; ONNX Runtime is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deit

onnxruntime = pytest.importorskip("onnxruntime")

MODELS = (
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "ViTForImageClassification",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_exported_by_tracing(
    name: str, packed: bool, tiny_fields: dict[str, Any], redraw: Callable[..., Any], tmp_path: Path
) -> None:
    kind = getattr(deit, name)
    model = redraw(kind(kind.config_class(**tiny_fields))).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixels, return_dict=False)
    if packed:
        model.pack_weights()
    torch.onnx.export(model, (pixels,), str(tmp_path / "model.onnx"), dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    assert len(outputs) == len(expected)
    for output, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.tensor(output), value, atol=1e-5, rtol=1e-5)

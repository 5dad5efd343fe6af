"""Models that merge tokens, exported and converted: every library gives their own answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import deit
from deit.inference.graph.classifier_graph import PlainClassifier, classifier_graph
from deit.inference.graph.known_models import why_unknown
from deit.inference.graph.onnx_model import to_onnx
from deit.inference.graph.openvino_model import to_openvino
from deit.models.classifier import head_logits
from tests.inference.graph.graph_cases import contract_of, pixels_of
from tests.inference.graph.test_conversions import onnx_session, openvino_answers

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "image_size": 24,
    "patch_size": 4, "num_labels": 5,
}  # fmt: skip


@pytest.mark.slow
def test_converted_models_merge_the_same_tokens(redraw: Any) -> None:
    model = redraw(deit.DeiTForImageClassificationWithTeacher(deit.DeiTConfig(**SIZES))).eval()
    pixels = pixels_of(model, dtype=torch.float32)
    with torch.no_grad():
        whole = head_logits(model, pixels)
        expected = head_logits(deit.merge_tokens(model, 5), pixels)
    assert all((expected[name] - whole[name]).abs().max() > 1e-3 for name in whole)
    contract = contract_of(model)
    graph = classifier_graph(model, contract)
    assert why_unknown(model) == "it merges tokens"
    assert isinstance(graph, PlainClassifier)  # never the rewriting of a model that does not merge
    names = contract.head_names
    session = onnx_session(to_onnx(graph, contract))
    converted = to_openvino(graph, contract)
    for batch in (slice(0, 3), slice(0, 1)):
        found = session.run(list(names), {"pixels": pixels[batch].numpy()})
        found += openvino_answers(converted, pixels[batch].numpy(), names)
        for name, answer in zip(2 * names, found, strict=True):
            np.testing.assert_allclose(answer, expected[name][batch], atol=2e-4, rtol=2e-4)

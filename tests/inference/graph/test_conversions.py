"""What OpenVINO and ONNX Runtime compute of converted models."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from deit.core.errors import UserError
from deit.inference.graph.classifier_graph import classifier_graph
from deit.inference.graph.onnx_model import to_onnx
from deit.inference.graph.openvino_model import to_openvino
from tests.inference.graph.graph_cases import CASES, answers_of, contract_of, model_of, pixels_of

openvino = pytest.importorskip("openvino")
onnxruntime = pytest.importorskip("onnxruntime")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def openvino_answers(converted: Any, pixels: np.ndarray, names: tuple[str, ...]) -> list[np.ndarray]:
    compiled = openvino.compile_model(converted, "CPU", EXACT)
    found = compiled({"pixels": pixels})
    return [found[name] for name in names]


def onnx_session(converted: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(converted.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", [case for case in CASES if case != "bfloat16"])
def test_openvino_and_onnx_runtime_answer_as_the_model(case: str, redraw: Any) -> None:
    model = model_of(case, redraw)
    pixels = pixels_of(model)
    expected = [logits.numpy() for logits in answers_of(model, pixels)]
    contract = contract_of(model)
    graph = classifier_graph(model, contract)
    single = pixels.float().numpy()
    names = contract.head_names
    session = onnx_session(to_onnx(graph, contract))
    for batch in (slice(0, 3), slice(0, 1)):
        found = openvino_answers(to_openvino(graph, contract), single[batch], names)
        found += session.run(list(names), {"pixels": single[batch]})
        for one, other in zip(found, 2 * expected, strict=True):
            np.testing.assert_allclose(one, other[batch], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_every_opset_gives_the_same_answers(opset: int, redraw: Any) -> None:
    for case in ("two heads", "tanh GELU"):
        model = model_of(case, redraw)
        contract, pixels = contract_of(model), pixels_of(model)
        converted = to_onnx(classifier_graph(model, contract), contract, opset=opset)
        assert converted.opset_import[0].version == opset
        assert Counter(node.op_type for node in converted.graph.node)["Attention"] == (opset == 23)
        found = onnx_session(converted).run(list(contract.head_names), {"pixels": pixels.float().numpy()})
        for one, other in zip(found, answers_of(model, pixels), strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_out_of_range_is_refused(opset: int, redraw: Any) -> None:
    model = model_of("one head", redraw)
    with pytest.raises(UserError, match=f"between 18 and 23. Received: {opset}"):
        to_onnx(classifier_graph(model, contract_of(model)), contract_of(model), opset=opset)


def test_integers_in_give_the_same_answers_in_every_library(redraw: Any) -> None:
    model = model_of("two heads", redraw, torch.float32)
    contract = contract_of(model)
    graph = classifier_graph(model, contract, takes_uint8=True)
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pixels = contract.processor(list(images.numpy()), do_resize=False, return_tensors="pt").pixel_values
    expected = 2 * [logits.numpy() for logits in answers_of(model, pixels)]
    converted = to_openvino(graph, contract, takes_uint8=True, batch_size=2)
    assert converted.input("pixels").get_element_type() == openvino.Type.u8
    found = openvino_answers(converted, images.numpy(), contract.head_names)
    session = onnx_session(to_onnx(graph, contract, takes_uint8=True))
    assert [i.shape for i in session.get_inputs()] == [["batch", 3, 16, 16]]
    found += session.run(list(contract.head_names), {"pixels": images.numpy()})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-4, rtol=5e-4)


def test_a_model_of_timm_is_converted_with_names_and_batches_of_any_size(redraw: Any) -> None:
    import timm

    model = timm.create_model("test_vit", num_classes=5).eval()
    contract = contract_of(model_of("one head", redraw), head_names=("class",), image_size=(160, 160))
    graph = classifier_graph(model, contract, takes_uint8=True)
    images = torch.randint(0, 256, (3, 3, 160, 160), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pixels = contract.processor(list(images.numpy()), do_resize=False, do_center_crop=False).pixel_values
    with torch.no_grad():
        expected = model(torch.from_numpy(np.stack(pixels))).numpy()
    found = openvino_answers(to_openvino(graph, contract, takes_uint8=True), images.numpy(), ("class",))
    found += onnx_session(to_onnx(graph, contract, takes_uint8=True)).run(["class"], {"pixels": images.numpy()})
    for one in found:
        np.testing.assert_allclose(one, expected, atol=1e-3, rtol=1e-3)


def test_the_graphs_hold_no_clutter_and_no_numbers_but_float32(redraw: Any) -> None:
    model = model_of("two heads", redraw)
    contract = contract_of(model)
    graph = classifier_graph(model, contract)
    depth = len(graph.blocks)
    converted = to_onnx(graph, contract)
    kinds = Counter(node.op_type for node in converted.graph.node)
    assert kinds["Slice"] == 2  # the last block's
    assert kinds["LayerNormalization"] == 2 * depth + 1
    assert kinds["Softmax"] == depth
    assert kinds["MatMul"] == 8 * depth + 2
    assert {"Squeeze", "Split", "Shape", "Expand", "Concat"}.isdisjoint(kinds)
    assert {tensor.data_type for tensor in converted.graph.initializer} <= {1, 7}  # float32, int64
    operators = Counter(node.get_type_name() for node in to_openvino(graph, contract).get_ops())
    assert operators["ScaledDotProductAttention"] == depth - 1
    assert operators["MVN"] == 2 * depth + 1
    assert operators["MatMul"] == 6 * depth + 4
    assert {"ShapeOf", "Broadcast", "Concat", "Gather", "VariadicSplit"}.isdisjoint(operators)


def test_the_form_for_this_machine_gives_the_same_answers(redraw: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = model_of("two heads", redraw)
    contract, pixels = contract_of(model), pixels_of(model)
    converted = to_openvino(classifier_graph(model, contract), contract, fast_here=True)
    assert "Erf" in {node.get_type_name() for node in converted.get_ops()}
    found = openvino_answers(converted, pixels.float().numpy(), contract.head_names)
    for one, other in zip(found, answers_of(model, pixels), strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=2e-4, rtol=2e-4)

"""Converts a classifier graph to OpenVINO."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit.core.errors import MissingPackageError
from deit.inference.contract import Contract
from deit.inference.graph.lean_classifier import LeanClassifier

INPUT_NAME = "pixels"


def to_openvino(
    graph: nn.Module, contract: Contract, *, takes_uint8: bool = False, batch_size: int | None = None
) -> Any:
    """Converts a classifier graph to an `openvino.Model` in float32.

    Compile it with `INFERENCE_PRECISION_HINT`: OpenVINO's default is bfloat16 on some processors. Save it with
    `compress_to_fp16=False`.

    Args:
        graph: Result of `classifier_graph`.
        contract: Of the model.
        takes_uint8: As in the call of `classifier_graph`.
        batch_size: Images in a batch; None for any number.

    Returns:
        A model with the input "pixels", (B, C, H, W), and an output for each head, with its name.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError('OpenVINO is not installed. Install it with: pip install "deit[openvino]"') from error
    batch = -1 if batch_size is None else batch_size
    height, width = contract.image_size or (-1, -1)
    shape = openvino.PartialShape([batch, contract.num_channels, height, width])
    kind = openvino.Type.u8 if takes_uint8 else openvino.Type.f32
    model = _built(graph, shape, kind) if isinstance(graph, LeanClassifier) else _traced(graph, shape, kind)
    model.inputs[0].get_node().set_friendly_name(INPUT_NAME)
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    for output, name in zip(model.outputs, contract.head_names, strict=True):
        output.get_tensor().set_names({name})
        output.get_node().set_friendly_name(name)
    model.validate_nodes_and_infer_types()
    return model


def _built(graph: LeanClassifier, shape: Any, kind: Any) -> Any:
    import openvino
    from openvino import opset15

    pixels = opset15.parameter(shape, kind, name=INPUT_NAME)
    ops = _OpenVINOOperations()
    outputs = graph.run(ops, pixels.output(0))
    return openvino.Model([opset15.result(output) for output in outputs], [pixels], "deit")


def _traced(graph: nn.Module, shape: Any, kind: Any) -> Any:
    """Converts any module, which OpenVINO does by tracing it."""
    import openvino

    sizes = [1 if size.is_dynamic else size.get_length() for size in shape]
    example = torch.zeros(sizes, dtype=torch.uint8 if kind == openvino.Type.u8 else torch.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch's tracer: deprecation, values that count as constants
        return openvino.convert_model(graph.float(), example_input=example, input=[(shape, kind)])


class _OpenVINOOperations:
    """The operations in OpenVINO; see `Operations`. A value is an output of a node."""

    def __init__(self) -> None:
        from openvino import opset15

        self.opset: Any = opset15

    def to_float(self, pixels: Any) -> Any:
        return self.opset.convert(pixels, "f32").output(0)

    def cut_in_patches(self, pixels: Any, weight: Tensor) -> Any:
        size, width = list(weight.shape[2:]), weight.shape[0]
        node = self.opset.convolution(pixels, self._constant(weight), size, [0, 0], [0, 0], [1, 1])
        rows = self.opset.reshape(node, self._whole(0, width, -1), special_zero=True)
        return self._swap(rows, 0, 2, 1)

    def put_in_front(self, x: Any, count: int) -> Any:
        zero = self._constant(torch.tensor(0.0))
        return self.opset.pad(x, self._whole(0, count, 0), self._whole(0, 0, 0), "constant", zero).output(0)

    def add(self, x: Any, y: Any) -> Any:
        return self.opset.add(x, self._constant(y) if isinstance(y, Tensor) else y).output(0)

    def first(self, x: Any, count: int) -> Any:
        begin, end, step, axis = (self._whole(number) for number in (0, count, 1, 1))
        return self.opset.slice(x, begin, end, step, axis).output(0)

    def normalize(self, x: Any, width: int, epsilon: float) -> Any:
        return self.opset.mvn(x, self._whole(-1), True, epsilon, "inside_sqrt").output(0)

    def linear(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        product = self.opset.matmul(x, self._constant(weight), False, True).output(0)
        return product if bias is None else self.add(product, bias[None, None])

    def activate(self, x: Any, name: str) -> Any:
        ops = self.opset
        if name == "gelu":
            return ops.gelu(x, "erf").output(0)
        if name == "tanh_gelu":
            return ops.gelu(x, "tanh").output(0)
        if name == "sigmoid_gelu":
            return ops.swish(x, self._constant(torch.tensor(1.702))).output(0)
        return (ops.relu(x) if name == "relu" else ops.swish(x)).output(0)

    def attend(self, query: Any, key: Any, value: Any, heads: int) -> Any:
        inner = query.get_partial_shape()[2].get_length()
        parts = []
        for part in (query, key, value):
            tokens = part.get_partial_shape()[1].get_length()
            shape = self._whole(0, tokens, heads, inner // heads)
            parts.append(self._swap(self.opset.reshape(part, shape, special_zero=True), 0, 2, 1, 3))
        scale = self._constant(torch.tensor(1.0))
        none = self._constant(torch.tensor(0.0))
        mixed = self.opset.scaled_dot_product_attention(*parts, none, scale)
        tokens = query.get_partial_shape()[1].get_length()
        shape = self._whole(0, tokens, inner)
        return self.opset.reshape(self._swap(mixed, 0, 2, 1, 3), shape, special_zero=True).output(0)

    def linear_heads(self, x: Any, weight: Tensor, bias: Tensor) -> Any:
        product = self.opset.matmul(self._swap(x, 1, 0, 2), self._constant(weight), False, False)
        return self.add(product.output(0), bias)

    def split_heads(self, x: Any, count: int) -> tuple[Any, ...]:
        parts = self.opset.split(x, self._whole_number(0), count).outputs()
        return tuple(self.opset.squeeze(part, self._whole(0)).output(0) for part in parts)

    def scale(self, x: Any, factor: float) -> Any:
        return self.opset.multiply(x, self._constant(torch.tensor(factor))).output(0)

    def log_softmax(self, x: Any) -> Any:
        return self.opset.log_softmax(x, -1).output(0)

    def softplus(self, x: Any) -> Any:
        return self.opset.softplus(x).output(0)

    def maximum(self, x: Any, y: Any) -> Any:
        return self.opset.maximum(x, y).output(0)

    def absolute(self, x: Any) -> Any:
        return self.opset.abs(x).output(0)

    def _swap(self, x: Any, *order: int) -> Any:
        return self.opset.transpose(x, self._whole(*order)).output(0)

    def _constant(self, tensor: Tensor) -> Any:
        return self.opset.constant(tensor.detach().float().cpu().numpy())

    def _whole(self, *numbers: int) -> Any:
        return self.opset.constant(np.array(numbers, dtype=np.int64))

    def _whole_number(self, number: int) -> Any:
        return self.opset.constant(np.int64(number))

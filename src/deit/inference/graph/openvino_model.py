"""Converts a classifier graph to OpenVINO."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit.inference.contract import Contract
from deit.inference.graph.lean_classifier import LeanClassifier, output_names
from deit.inference.graph.operations import Mlp
from deit.runtime.packages import require_packages

INPUT_NAME = "pixels"


def to_openvino(
    graph: nn.Module,
    contract: Contract,
    *,
    takes_uint8: bool = False,
    batch_size: int | None = None,
    fast_here: bool = False,
) -> Any:
    """Converts a classifier graph to an `openvino.Model` in float32.

    Compile it with `INFERENCE_PRECISION_HINT`: OpenVINO's default is bfloat16 on some processors. Save it with
    `compress_to_fp16=False`.

    Args:
        graph: Result of `classifier_graph`.
        contract: Of the model.
        takes_uint8: As in the call of `classifier_graph`.
        batch_size: Images in a batch; None for any number.
        fast_here: Chooses, of two equal forms, the one that is faster on this machine in float32. Leave it out for
            files, which are opened elsewhere or quantized.

    Returns:
        A model with the input "pixels", (B, C, H, W), and an output for each head, with its name; of a graph that
        gives features also "features".

    Raises:
        MissingPackageError: OpenVINO is not installed.
    """
    require_packages("A conversion to OpenVINO", "openvino", extra="openvino")
    import openvino

    batch = -1 if batch_size is None else batch_size
    height, width = contract.image_size or (-1, -1)
    shape = openvino.PartialShape([batch, contract.num_channels, height, width])
    kind = openvino.Type.u8 if takes_uint8 else openvino.Type.f32
    model = _built(graph, shape, kind, fast_here) if isinstance(graph, LeanClassifier) else _traced(graph, shape, kind)
    model.inputs[0].get_node().set_friendly_name(INPUT_NAME)
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    for output, name in zip(model.outputs, output_names(graph, contract), strict=True):
        output.get_tensor().set_names({name})
        output.get_node().set_friendly_name(name)
    model.validate_nodes_and_infer_types()
    return model


def _built(graph: LeanClassifier, shape: Any, kind: Any, fast_here: bool) -> Any:
    import openvino
    from openvino import opset15

    pixels = opset15.parameter(shape, kind, name=INPUT_NAME)
    # Without AVX-512, OpenVINO's plain product is a sixth faster than the one that GELU can join.
    separates_gelu = fast_here and torch.backends.cpu.get_cpu_capability() == "AVX2"
    ops = _OpenVINOOperations(separates_gelu=separates_gelu)
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
    """The operations in OpenVINO; see `Operations`. A value is an output of a node.

    Args:
        separates_gelu: Whether GELU is a step of its own, and not joined to the product before it.
    """

    def __init__(self, *, separates_gelu: bool) -> None:
        from openvino import opset15

        self.opset: Any = opset15
        self.separates_gelu = separates_gelu

    def to_float(self, pixels: Any) -> Any:
        return self.opset.convert(pixels, "f32").output(0)

    def cut_in_patches(self, pixels: Any, weight: Tensor, grid: tuple[int, int]) -> Any:
        (_, channels, high, wide), (rows, columns) = weight.shape, grid
        ends = (rows * high, columns * wide)
        for axis, end in zip((2, 3), ends, strict=True):
            if pixels.get_partial_shape()[axis].get_length() != end:
                pixels = self._beginning(pixels, end, axis)
        cut = self._swap(self._shaped(pixels, 0, channels, rows, high, columns, wide), 0, 2, 4, 1, 3, 5)
        return self.linear(self._shaped(cut, 0, rows * columns, channels * high * wide), weight.flatten(1), None)

    def put_in_front(self, x: Any, count: int) -> Any:
        zero = self._constant(torch.tensor(0.0))
        return self.opset.pad(x, self._whole(0, count, 0), self._whole(0, 0, 0), "constant", zero).output(0)

    def add(self, x: Any, y: Any) -> Any:
        return self.opset.add(x, self._constant(y) if isinstance(y, Tensor) else y).output(0)

    def first(self, x: Any, count: int) -> Any:
        return self._beginning(x, count, 1)

    def _beginning(self, x: Any, count: int, axis: int) -> Any:
        return self.opset.slice(x, *(self._whole(number) for number in (0, count, 1, axis))).output(0)

    def normalize(self, x: Any, width: int, epsilon: float) -> Any:
        return self.opset.mvn(x, self._whole(-1), True, epsilon, "inside_sqrt").output(0)

    def linear(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        product = self._product(x, self._constant(weight), turned=True)
        return product if bias is None else self.add(product, bias[None, None])

    def feed_forward(self, x: Any, layers: Mlp) -> Any:
        if layers.activation == "gelu" and self.separates_gelu:
            # With y = x / sqrt(2), GELU(x) is y (1 + erf(y)) / sqrt(2): OpenVINO does not join that to the product.
            factor = math.sqrt(0.5)
            hidden = self.linear(x, layers.weight * factor, layers.bias * factor)
            erf = self.add(self.opset.erf(hidden).output(0), torch.tensor(1.0))
            hidden = self.opset.multiply(hidden, erf).output(0)
            return self.linear(hidden, layers.second_weight * factor, layers.second_bias)
        hidden = self._activated(self.linear(x, layers.weight, layers.bias), layers.activation)
        return self.linear(hidden, layers.second_weight, layers.second_bias)

    def _activated(self, x: Any, name: str) -> Any:
        ops = self.opset
        if name == "gelu":
            return ops.gelu(x, "erf").output(0)
        if name == "tanh_gelu":
            return ops.gelu(x, "tanh").output(0)
        if name == "sigmoid_gelu":
            return ops.swish(x, self._constant(torch.tensor(1.702))).output(0)
        return (ops.relu(x) if name == "relu" else ops.swish(x)).output(0)

    def attend(self, query: Any, key: Any, value: Any, heads: int) -> Any:
        tokens, inner = (query.get_partial_shape()[axis].get_length() for axis in (1, 2))
        parts = (self._shaped(part, 0, tokens, heads, inner // heads) for part in (query, key, value))
        no_mask, scale = (self._constant(torch.tensor(number)) for number in (0.0, 1.0))
        turned = (self._swap(part, 0, 2, 1, 3) for part in parts)
        mixed = self.opset.scaled_dot_product_attention(*turned, no_mask, scale)
        return self._shaped(self._swap(mixed, 0, 2, 1, 3), 0, tokens, inner)

    def attend_of_few(self, query: Any, x: Any, key_weight: Tensor, value_weight: Tensor) -> Any:
        heads, inner, width = key_weight.shape
        count = query.get_partial_shape()[1].get_length()
        query = self._swap(self._shaped(query, 0, count, heads, inner), 2, 0, 1, 3)  # (H, B, M, d)
        rows = self._product(self._shaped(query, heads, -1, inner), self._constant(key_weight))  # (H, B * M, D)
        rows = self._swap(self._shaped(rows, heads, -1, count, width), 1, 0, 2, 3)  # (B, H, M, D)
        rows = self._shaped(rows, 0, heads * count, width)
        mixed = self._product(self.opset.softmax(self._product(rows, x, turned=True), -1), x)  # (B, H * M, D)
        mixed = self._swap(self._shaped(mixed, 0, heads, count, width), 1, 0, 2, 3)  # (H, B, M, D)
        mixed = self._product(self._shaped(mixed, heads, -1, width), self._constant(value_weight), turned=True)
        mixed = self._swap(self._shaped(mixed, heads, -1, count, inner), 1, 2, 0, 3)  # (B, M, H, d)
        return self._shaped(mixed, 0, count, heads * inner)

    def linear_heads(self, x: Any, weight: Tensor, bias: Tensor) -> Any:
        return self.add(self._product(self._swap(x, 1, 0, 2), self._constant(weight)), bias)

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

    def _product(self, x: Any, y: Any, *, turned: bool = False) -> Any:
        return self.opset.matmul(x, y, False, turned).output(0)

    def _shaped(self, x: Any, *sizes: int) -> Any:
        """Reshapes; 0 keeps a size, and -1 stands for the rest."""
        return self.opset.reshape(x, self._whole(*sizes), special_zero=True).output(0)

    def _swap(self, x: Any, *order: int) -> Any:
        return self.opset.transpose(x, self._whole(*order)).output(0)

    def _constant(self, tensor: Tensor) -> Any:
        return self.opset.constant(tensor.detach().float().cpu().numpy())

    def _whole(self, *numbers: int) -> Any:
        return self.opset.constant(np.array(numbers, dtype=np.int64))

    def _whole_number(self, number: int) -> Any:
        return self.opset.constant(np.int64(number))

"""Converts a classifier graph to ONNX."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.inference.contract import Contract
from deit.inference.graph.lean_classifier import LeanClassifier, output_names
from deit.inference.graph.operations import Mlp
from deit.runtime.packages import require_packages

INPUT_NAME = "pixels"
LOWEST_OPSET, HIGHEST_OPSET = 18, 23


def to_onnx(graph: nn.Module, contract: Contract, *, takes_uint8: bool = False, opset: int = 18) -> Any:
    """Converts a classifier graph to an `onnx.ModelProto` in float32, for batches of any size.

    Args:
        graph: Result of `classifier_graph`.
        contract: Of the model.
        takes_uint8: As in the call of `classifier_graph`.
        opset: Version of the operators, 18 to 23. 18 is what most programs read; 23 has an operator for attention.

    Returns:
        A model with the input "pixels", (B, C, H, W), and an output for each head, with its name; of a graph that
        gives features also "features".

    Raises:
        MissingPackageError: onnx is not installed.
        UserError: The opset is out of range.
    """
    require_packages("A conversion to ONNX", "onnx", extra="onnx")
    import onnx

    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UserError(f"The opset must lie between {LOWEST_OPSET} and {HIGHEST_OPSET}. Received: {opset}.")
    if isinstance(graph, LeanClassifier):
        model = _built(graph, contract, takes_uint8, opset)
    else:
        model = _exported(graph, contract, takes_uint8, opset)
    onnx.checker.check_model(model)
    return model


def _built(graph: LeanClassifier, contract: Contract, takes_uint8: bool, opset: int) -> Any:
    from onnx import TensorProto, helper

    assert contract.image_size is not None
    kind = TensorProto.UINT8 if takes_uint8 else TensorProto.FLOAT
    pixels = helper.make_tensor_value_info(INPUT_NAME, kind, ["batch", contract.num_channels, *contract.image_size])
    ops = _ONNXOperations(
        opset, contract.image_size, {tensor.data_ptr(): name for name, tensor in graph.named_buffers()}
    )
    found = graph.run(ops, INPUT_NAME)
    names = output_names(graph, contract)
    nodes = [*ops.nodes, *(helper.make_node("Identity", [f], [n]) for f, n in zip(found, names, strict=True))]
    widths = [*[graph.head_weight.shape[2]] * len(contract.head_names), graph.head_weight.shape[1]]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in zip(names, widths, strict=False)  # the last one is that of the features
    ]
    network = helper.make_graph(nodes, "deit", [pixels], outputs, list(ops.constants.values()))
    return _model(network, opset)


def _model(network: Any, opset: int) -> Any:
    from onnx import helper

    opsets = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(opsets)
    return helper.make_model(network, opset_imports=opsets, ir_version=version, producer_name="deit")


def _exported(graph: nn.Module, contract: Contract, takes_uint8: bool, opset: int) -> Any:
    """Converts any module by PyTorch's exporter."""
    import onnx

    height, width = contract.image_size or (224, 224)
    # Two images: the exporter takes 1 for a constant.
    example = torch.zeros(2, contract.num_channels, height, width)
    example = example.to(torch.uint8) if takes_uint8 else example
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.onnx.export(
            graph.float(),
            (example,),
            input_names=[INPUT_NAME],
            output_names=list(contract.head_names),
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program.save(str(path))
        return onnx.load(path)


class _ONNXOperations:
    """The operations in ONNX; see `Operations`. A value is the name of an output of a node.

    Args:
        opset: Version of the operators.
        image_size: (height, width) of the pixels.
        names: Address of a tensor -> its name.
    """

    def __init__(self, opset: int, image_size: tuple[int, int], names: dict[int, str]) -> None:
        self.opset, self.image_size, self.names = opset, image_size, names
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def to_float(self, pixels: str) -> str:
        return self._node("Cast", pixels, to=1)

    def cut_in_patches(self, pixels: str, weight: Tensor, grid: tuple[int, int]) -> str:
        (_, channels, high, wide), (rows, columns) = weight.shape, grid
        if (rows * high, columns * wide) != self.image_size:
            ends = self._whole(rows * high, columns * wide)
            pixels = self._node("Slice", pixels, self._whole(0, 0), ends, self._whole(2, 3))
        cut = self._node("Reshape", pixels, self._whole(0, channels, rows, high, columns, wide))
        cut = self._node("Transpose", cut, perm=[0, 2, 4, 1, 3, 5])
        cut = self._node("Reshape", cut, self._whole(0, rows * columns, channels * high * wide))
        return self._node("MatMul", cut, self._constant(weight.flatten(1), turned=True))

    def put_in_front(self, x: str, count: int) -> str:
        return self._node("Pad", x, self._whole(0, count, 0, 0, 0, 0))

    def add(self, x: str, y: str | Tensor) -> str:
        return self._node("Add", x, self._constant(y) if isinstance(y, Tensor) else y)

    def first(self, x: str, count: int) -> str:
        return self._node("Slice", x, *(self._whole(number) for number in (0, count, 1)))

    def normalize(self, x: str, width: int, epsilon: float) -> str:
        ones = self._initializer(f"ones_{width}", np.ones(width, dtype=np.float32))
        return self._node("LayerNormalization", x, ones, axis=-1, epsilon=epsilon)

    def linear(self, x: str, weight: Tensor, bias: Tensor | None) -> str:
        product = self._node("MatMul", x, self._constant(weight, turned=True))
        return product if bias is None else self.add(product, bias)

    def feed_forward(self, x: str, layers: Mlp) -> str:
        hidden = self._activated(self.linear(x, layers.weight, layers.bias), layers.activation)
        return self.linear(hidden, layers.second_weight, layers.second_bias)

    def _activated(self, x: str, name: str) -> str:
        if name in ("gelu", "tanh_gelu") and self.opset >= 20:
            return self._node("Gelu", x, approximate="none" if name == "gelu" else "tanh")
        if name == "gelu":  # in the order that ONNX Runtime joins to one operator
            part = self._node("Erf", self._node("Div", x, self._number(math.sqrt(2))))
            return self.scale(self._node("Mul", x, self._node("Add", part, self._number(1.0))), 0.5)
        if name == "tanh_gelu":
            cube = self.scale(self._node("Mul", x, self._node("Mul", x, x)), 0.044715)
            part = self._node("Tanh", self.scale(self._node("Add", x, cube), math.sqrt(2 / math.pi)))
            return self.scale(self._node("Mul", x, self._node("Add", part, self._number(1.0))), 0.5)
        if name == "relu":
            return self._node("Relu", x)
        return self._node("Mul", x, self._node("Sigmoid", self.scale(x, 1.702) if name == "sigmoid_gelu" else x))

    def attend(self, query: str, key: str, value: str, heads: int) -> str:
        if self.opset >= 23:
            return self._node("Attention", query, key, value, q_num_heads=heads, kv_num_heads=heads, scale=1.0)
        split = self._whole(0, 0, heads, -1)
        rows, columns, values = (self._node("Reshape", part, split) for part in (query, key, value))
        rows = self._node("Transpose", rows, perm=[0, 2, 1, 3])
        columns = self._node("Transpose", columns, perm=[0, 2, 3, 1])
        values = self._node("Transpose", values, perm=[0, 2, 1, 3])
        mixed = self._node("MatMul", self._node("Softmax", self._node("MatMul", rows, columns), axis=-1), values)
        return self._node("Reshape", self._node("Transpose", mixed, perm=[0, 2, 1, 3]), self._whole(0, 0, -1))

    def attend_of_few(self, query: str, x: str, key_weight: Tensor, value_weight: Tensor) -> str:
        heads, inner, width = key_weight.shape
        query = self._node("Reshape", query, self._whole(0, 0, heads, inner))
        query = self._node("Transpose", query, perm=[0, 2, 1, 3])
        rows = self._node("MatMul", query, self._constant(key_weight))  # (B, H, M, D)
        scores = self._node("MatMul", self._node("Reshape", rows, self._whole(0, -1, width)), self._turned(x))
        mixed = self._node("MatMul", self._node("Softmax", scores, axis=-1), x)  # (B, H * M, D)
        mixed = self._node("Reshape", mixed, self._whole(0, heads, -1, width))
        mixed = self._node("MatMul", mixed, self._constant(value_weight, turned=True))  # (B, H, M, d)
        return self._node(
            "Reshape", self._node("Transpose", mixed, perm=[0, 2, 1, 3]), self._whole(0, 0, heads * inner)
        )

    def _turned(self, x: str) -> str:
        return self._node("Transpose", x, perm=[0, 2, 1])

    def linear_heads(self, x: str, weight: Tensor, bias: Tensor) -> str:
        product = self._node("MatMul", self._node("Transpose", x, perm=[1, 0, 2]), self._constant(weight))
        return self.add(product, bias)

    def split_heads(self, x: str, count: int) -> tuple[str, ...]:
        numbers = (self._scalar(i) for i in range(count))
        return tuple(self._node("Gather", x, number, axis=0) for number in numbers)

    def scale(self, x: str, factor: float) -> str:
        return self._node("Mul", x, self._number(factor))

    def log_softmax(self, x: str) -> str:
        return self._node("LogSoftmax", x, axis=-1)

    def softplus(self, x: str) -> str:
        return self._node("Softplus", x)

    def maximum(self, x: str, y: str) -> str:
        return self._node("Max", x, y)

    def absolute(self, x: str) -> str:
        return self._node("Abs", x)

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, tensor: Tensor, *, turned: bool = False) -> str:
        values = tensor.detach().float().cpu().numpy()
        name = self.names[tensor.data_ptr()] if tensor.ndim else f"number_{float(values)!r}"
        return self._initializer(name, np.swapaxes(values, -1, -2) if turned else values)

    def _number(self, number: float) -> str:
        return self._initializer(f"number_{number!r}", np.float32(number))

    def _whole(self, *numbers: int) -> str:
        return self._initializer("whole_" + "_".join(map(str, numbers)), np.array(numbers, dtype=np.int64))

    def _scalar(self, number: int) -> str:
        return self._initializer(f"index_{number}", np.int64(number))

    def _initializer(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

"""Builds graphs of OpenVINO: the preprocessing before a model, and the probabilities after it."""

from __future__ import annotations

from typing import Any

import numpy as np

from deit.export.pixels.geometry import CHANNELS, Geometry
from deit.export.pixels.graph_values import SINGLE, Value, operations_of, scored
from deit.export.pixels.preprocessing import preprocess

IMAGES = "images"

_SAME = {
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Max": "maximum",
    "Min": "minimum",
    "Less": "less",
    "Floor": "floor",
    "Abs": "abs",
    "Sin": "sin",
    "Unsqueeze": "unsqueeze",
    "Sigmoid": "sigmoid",
}
_TYPES = {"int64": "i64", "float32": "f32"}


class OpenVINOGraph:
    """A graph of OpenVINO that is being built. Operations have their names in ONNX."""

    def __init__(self) -> None:
        from openvino import opset15

        self._opset: Any = opset15

    def node(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """Adds an operation; returns its result."""
        ops = self._opset
        if kind in _SAME:
            node = getattr(ops, _SAME[kind])(*inputs)
        elif kind == "Cast":
            node = ops.convert(*inputs, _TYPES[attributes["to"]])
        elif kind == "Shape":
            node = ops.shape_of(*inputs, "i64")
        elif kind == "Gather":
            node = ops.gather(*inputs, self.constant(np.int64(attributes["axis"])))
        elif kind == "Range":
            node = ops.range(*inputs, "i64")
        elif kind == "ReduceSum":
            node = ops.reduce_sum(*inputs, keep_dims=True)
        elif kind == "Concat":
            node = ops.concat(list(inputs), attributes["axis"])
        elif kind == "MatMul":
            node = ops.matmul(*inputs, False, False)
        elif kind == "Slice":
            values, start, stop, axes = inputs
            node = ops.slice(values, start, stop, self.constant(np.array([1])), axes)
        elif kind == "Reshape":
            node = ops.reshape(*inputs, special_zero=True)
        elif kind == "Softmax":
            node = ops.softmax(*inputs, attributes["axis"])
        else:
            assert kind == "Transpose", kind
            node = ops.transpose(*inputs, self.constant(np.array(attributes["perm"])))
        return node.output(0)

    def constant(self, values: Any) -> Any:
        """Adds an array; returns its handle."""
        return self._opset.constant(np.asarray(values)).output(0)


def preprocessing_nodes(geometry: Geometry) -> tuple[Any, Any]:
    """Returns the input "images", uint8 (B, H, W, 3), and the pixels made of it, float32 (B, 3, h, w)."""
    import openvino
    from openvino import opset15

    shape = openvino.PartialShape([-1, -1, -1, CHANNELS])
    images = opset15.parameter(shape, openvino.Type.u8, name=IMAGES)
    images.output(0).get_tensor().set_names({IMAGES})
    graph = OpenVINOGraph()
    pixels = preprocess(operations_of(graph, SINGLE), geometry, Value(graph, images.output(0), "uint8"))
    return images, pixels.handle


def scores_node(logits: Any, function: str, temperature: float | None) -> Any:
    """Returns scores of logits (B, K); see `scored`."""
    return scored(Value(OpenVINOGraph(), logits, SINGLE), function, temperature).handle

"""Builds graphs of ONNX: the preprocessing before a model, and the probabilities after it."""

from __future__ import annotations

from typing import Any

import numpy as np

from deit.export.pixels.geometry import CHANNELS, Geometry
from deit.export.pixels.graph_values import DOUBLE, SINGLE, Value, operations_of, scored
from deit.export.pixels.preprocessing import preprocess

IMAGES, PIXELS = "images", "pixels"


class ONNXGraph:
    """A graph of ONNX that is being built.

    Args:
        prefix: Begins all names, so that graphs can be put together.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._names: dict[Any, str] = {}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation; returns the name of its result."""
        from onnx import helper

        if "to" in attributes:
            attributes["to"] = helper.np_dtype_to_tensor_dtype(np.dtype(attributes["to"]))
        name = f"{self._prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any) -> str:
        """Adds an array, once; returns its name."""
        from onnx import numpy_helper

        array = np.asarray(values, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = f"{self._prefix}constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]


def preprocessing_graph(geometry: Geometry) -> Any:
    """Returns an `onnx.GraphProto` from "images", uint8 (B, H, W, 3), to "pixels", float32 (B, 3, h, w)."""
    from onnx import TensorProto, helper

    graph = ONNXGraph("preprocessing_")
    pixels = preprocess(operations_of(graph, DOUBLE), geometry, Value(graph, IMAGES, "uint8"))
    nodes = [*graph.nodes, helper.make_node("Identity", [pixels.handle], [PIXELS])]
    given = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["batch", "height", "width", CHANNELS])
    made = helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, ["batch", CHANNELS, *geometry.output])
    return helper.make_graph(nodes, "deit_preprocessing", [given], [made], graph.constants)


def preprocessing_model(geometry: Geometry, opset: int) -> bytes:
    """Returns the preprocessing alone as a file of ONNX."""
    from onnx import helper

    opsets = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(preprocessing_graph(geometry), opset_imports=opsets, ir_version=version)
    return bytes(model.SerializeToString())


def scores_graph(function: str, temperature: float | None, prefix: str, name: str, classes: int) -> Any:
    """Returns an `onnx.GraphProto` from "logits", float32 (B, K), to scores (B, K).

    Args:
        function: A name of `FUNCTIONS`.
        temperature: What logits are divided by; None leaves that out.
        prefix: Begins all names.
        name: Of the result.
        classes: K.
    """
    from onnx import TensorProto, helper

    graph = ONNXGraph(f"{prefix}_scores_")
    logits = Value(graph, "logits", SINGLE)
    scores = scored(logits, function, temperature)
    nodes = [*graph.nodes, helper.make_node("Identity", [scores.handle], [name])]
    ends = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", classes]) for each in ("logits", name))
    given, made = ends
    return helper.make_graph(nodes, "deit_scores", [given], [made], graph.constants)

"""Builds graphs of ONNX: the preprocessing before a model, and the probabilities after it."""

from __future__ import annotations

from typing import Any

import numpy as np

from deit.export.geometry import CHANNELS, Geometry
from deit.export.graph_values import DOUBLE, Value, operations_of
from deit.export.preprocessing import preprocess

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

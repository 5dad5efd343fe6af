"""Quantizes ONNX models with ONNX Runtime: QuantizeLinear and DequantizeLinear around products, ranges from images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deit.core.file_names import ONNX_NAME
from deit.export.quantization.attempts import Attempt, Product
from deit.export.quantization.pictures import Array
from deit.inference.contract import Contract
from deit.runtime.packages import require_packages

MODEL = ONNX_NAME
PACKAGES = ("onnx", "onnxruntime")


def require() -> None:
    """Checks that the packages are installed.

    Raises:
        MissingPackageError: One is not.
    """
    require_packages("Quantizing for ONNX Runtime", *PACKAGES, extra="quantize")


def converted(graph: Any, contract: Contract) -> Any:
    """Returns the model to quantize."""
    from deit.inference.graph.onnx_model import to_onnx

    return to_onnx(graph, contract)


def products(model: Any) -> list[Product]:
    """Returns the matrix products with a weight, in the order of the model."""
    shapes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    return [
        Product(name=node.name, inputs=int(shapes[node.input[1]][-2]))
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and len(shapes.get(node.input[1], ())) >= 2
    ]


def write_quantized(model: Any, attempt: Attempt, calibration: Array, folder: Path) -> None:
    """Quantizes a model and writes it. Only products with a weight are quantized, by the channels of the weight.

    Without instructions for 8-bit products (VNNI), sums of two products overflow 16 bits on x86: ranges are 7 bits
    there, which costs a little accuracy and is right on every processor.

    Args:
        model: Result of `converted`.
        attempt: How. ONNX Runtime does no smoothing.
        calibration: Pixels (N, C, H, W).
        folder: Where to.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    wanted = [each.name for number, each in enumerate(products(model)) if number not in attempt.left]
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "model.onnx"
        onnx.save(model, source)
        with _without_advice():
            quantize_static(
                source,
                folder / MODEL,
                _Reader(calibration),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=wanted,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Drops ONNX Runtime's advice to infer shapes beforehand, which `to_onnx` has no need of."""

    def is_other(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)


class _Reader:
    """Gives images one by one, as `onnxruntime.quantization.CalibrationDataReader` does."""

    def __init__(self, calibration: Array) -> None:
        self._images: Iterator[Array] = (calibration[i : i + 1] for i in range(len(calibration)))

    def get_next(self) -> dict[str, Array] | None:
        """Returns the next image; None after the last."""
        image = next(self._images, None)
        return None if image is None else {"pixels": image}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(self.get_next, None)

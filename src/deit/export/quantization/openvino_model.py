"""Quantizes models of OpenVINO with NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

from deit.core.file_names import OPENVINO_NAME
from deit.export.quantization.attempts import Attempt, Product
from deit.export.quantization.pictures import Array
from deit.inference.contract import Contract
from deit.inference.engines.openvino_engine import REST_OF_INT8, computes_in_bf16
from deit.runtime.packages import require_packages

MODEL = OPENVINO_NAME
PACKAGES = ("openvino", "nncf")


def require() -> None:
    """Checks that the packages are installed.

    Raises:
        MissingPackageError: One is not.
    """
    # What NNCF imports of PyTorch warns of a missing GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    require_packages("Quantizing for OpenVINO", *PACKAGES, extra="quantize")


def converted(graph: Any, contract: Contract) -> Any:
    """Returns the model to quantize."""
    from deit.inference.graph.openvino_model import to_openvino

    return to_openvino(graph, contract)


def products(model: Any) -> list[Product]:
    """Returns the matrix products with a weight, in the order of the model."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = node.input_value(1).get_node()
        if weight.get_type_name() == "Constant":
            rows = list(weight.get_output_shape(0))
            transposed = node.get_attributes()["transpose_b"]
            found.append(Product(name=node.get_friendly_name(), inputs=int(rows[-1] if transposed else rows[-2])))
    return found


def write_quantized(model: Any, attempt: Attempt, calibration: Array, folder: Path) -> None:
    """Quantizes a model and writes it. Where this CPU multiplies in bf16, that is what the rest will be computed in.

    Args:
        model: Result of `converted`.
        attempt: How.
        calibration: Pixels (N, C, H, W).
        folder: Where to.
    """
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters

    weighted = products(model)
    left = [weighted[number].name for number in attempt.left]
    logging.getLogger("nncf").setLevel(logging.ERROR)  # `nncf.set_log_level` reaches the handlers of others too
    with contextlib.redirect_stdout(io.StringIO()):  # bars of its own
        quantized = nncf.quantize(
            model,
            nncf.Dataset(range(len(calibration)), lambda i: calibration[i : i + 1]),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=left) if left else None,
            advanced_parameters=AdvancedQuantizationParameters(
                smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=attempt.smoothing)
            ),
        )
    quantized.set_rt_info("bf16" if computes_in_bf16() else "fp32", REST_OF_INT8)
    openvino.save_model(quantized, folder / MODEL, compress_to_fp16=False)

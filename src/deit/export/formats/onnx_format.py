"""Writes and runs ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deit.core.errors import UserError
from deit.core.file_names import ONNX_CLASSIFIER_NAME as CLASSIFIER, ONNX_NAME as MODEL
from deit.export.formats.written_format import Array, Images, Opened, Wanted, refuse_precision, same_metadata
from deit.export.original import Original
from deit.runtime.packages import require_packages

PRECISIONS = ("fp32", "fp16")
PACKAGES = ("onnx", "onnxruntime", "torch")

__all__ = ["CLASSIFIER", "MODEL", "PACKAGES", "PRECISIONS", "opened", "require", "write"]

_SILENT = 3  # errors only


def require(wanted: Wanted) -> None:
    """See `Format`."""
    from deit.inference.graph.onnx_model import HIGHEST_OPSET, LOWEST_OPSET

    refuse_precision(wanted.precision, PRECISIONS, "an ONNX export")
    if not LOWEST_OPSET <= wanted.opset <= HIGHEST_OPSET:
        raise UserError(f"The opset must lie between {LOWEST_OPSET} and {HIGHEST_OPSET}. Received: {wanted.opset}.")
    require_packages("An ONNX export", "onnx", "onnxruntime", extra="onnx")


def write(original: Original, wanted: Wanted, folder: Path) -> None:
    """See `Format`."""
    import onnx

    from deit.inference.graph.onnx_model import to_onnx

    model = to_onnx(original.graph, original.contract, opset=wanted.opset)
    if wanted.precision == "fp16":
        model = _in_half(model)
    _save(model, original, folder / MODEL)
    if original.geometry is None:
        return
    from deit.export.pixels.onnx_graph import preprocessing_graph, scores_graph

    def of(graph: Any) -> Any:
        return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)

    answer = original.contract.head_names[0]
    front = onnx.compose.merge_models(
        of(preprocessing_graph(original.geometry)), model, io_map=[("pixels", "pixels")], outputs=[answer]
    )
    back = of(
        scores_graph(
            original.function, original.temperature, answer, original.output_name, len(original.contract.label_names)
        )
    )
    whole = onnx.compose.merge_models(front, back, io_map=[(answer, "logits")])
    _save(whole, original, folder / CLASSIFIER)


def _in_half(model: Any) -> Any:
    """Returns a model that computes in float16; its inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    half.topological_sort()  # the conversions of the inputs come last, which ONNX forbids
    return half.model


def _save(model: Any, original: Original, path: Path) -> None:
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, original.metadata)
    model.producer_name = "deit"
    model.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def opened(original: Original, wanted: Wanted, folder: Path) -> Opened:
    """See `Format`."""
    import onnxruntime

    model = _session(folder / MODEL, original)
    heads = list(original.contract.head_names)

    def logits(pixels: Array) -> dict[str, Array]:
        return dict(zip(heads, model.run(heads, {"pixels": pixels}), strict=True))

    name = f"onnxruntime {onnxruntime.__version__}"
    if original.geometry is None:
        return Opened(name=name, logits=logits, pixels=None, scores=None)
    from deit.export.pixels.onnx_graph import preprocessing_model

    front = _session(preprocessing_model(original.geometry, wanted.opset), None)
    whole = _session(folder / CLASSIFIER, original)

    def pixels(images: Images) -> Array:
        return np.asarray(front.run(None, {"images": images})[0])

    def scores(images: Images) -> Array:
        return np.asarray(whole.run([original.output_name], {"images": images})[0])

    return Opened(name=name, logits=logits, pixels=pixels, scores=scores)


def _session(model: Path | bytes, original: Original | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    given = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    if original is not None and isinstance(model, Path):
        same_metadata(session.get_modelmeta().custom_metadata_map, original.metadata, model)
    return session

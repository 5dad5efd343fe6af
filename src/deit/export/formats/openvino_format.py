"""Writes and runs files of OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deit.core.errors import UserError
from deit.core.file_names import OPENVINO_CLASSIFIER_NAME as CLASSIFIER, OPENVINO_NAME as MODEL
from deit.export.formats.written_format import Array, Images, Opened, Wanted, refuse_precision, same_metadata
from deit.export.original import Original
from deit.inference.engines.openvino_engine import computes_in_bf16
from deit.runtime.packages import require_packages

PRECISIONS = ("fp32", "fp16", "bf16")
PACKAGES = ("openvino", "torch")

__all__ = ["CLASSIFIER", "MODEL", "PACKAGES", "PRECISIONS", "opened", "require", "write"]

_HAMMING = 5
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
_ROUNDED = {"INFERENCE_PRECISION_HINT": "bf16"}


def require(wanted: Wanted) -> None:
    """See `Format`."""
    refuse_precision(wanted.precision, PRECISIONS, "an export for OpenVINO")
    require_packages("An export for OpenVINO", "openvino", extra="openvino")
    if wanted.precision == "bf16" and not computes_in_bf16():
        raise UserError("This processor does not compute in bf16, so an export for it cannot be checked here.")


def write(original: Original, wanted: Wanted, folder: Path) -> None:
    """See `Format`."""
    from deit.inference.graph.openvino_model import to_openvino

    if original.geometry is not None and original.geometry.resample == _HAMMING:
        raise UserError("OpenVINO has no float64, which the filter hamming needs. Export without the preprocessing.")
    model = to_openvino(original.graph, original.contract)
    _save(model, original, folder / MODEL, in_half=wanted.precision == "fp16")
    if original.geometry is not None:
        _save(_classifier(original, folder / MODEL), original, folder / CLASSIFIER, in_half=False)


def _classifier(original: Original, path: Path) -> Any:
    """Puts the preprocessing, in float32 whatever the weights are, before the model that was written."""
    import openvino
    from openvino import opset15

    from deit.export.pixels.openvino_graph import preprocessing_nodes, scores_node

    assert original.geometry is not None
    images, pixels = preprocessing_nodes(original.geometry)
    model = openvino.Core().read_model(path)
    model.inputs[0].replace(pixels)
    answer = model.outputs[0].get_node().input(0).get_source_output()
    scores = opset15.result(scores_node(answer, original.function, original.temperature))
    scores.output(0).get_tensor().set_names({original.output_name})
    scores.set_friendly_name(original.output_name)
    return openvino.Model([scores], [images], "deit")


def _save(model: Any, original: Original, path: Path, *, in_half: bool) -> None:
    import openvino

    for name, value in original.metadata.items():
        model.set_rt_info(value, ["deit_export", name])
    openvino.save_model(model, path, compress_to_fp16=in_half)


def opened(original: Original, wanted: Wanted, folder: Path) -> Opened:
    """See `Format`."""
    import openvino

    core = openvino.Core()
    heads = original.contract.head_names
    read = core.read_model(folder / MODEL)
    wanted_texts = original.metadata
    found = {n: read.get_rt_info(["deit_export", n]).astype(str) for n in wanted_texts if _has(read, n)}
    same_metadata(found, wanted_texts, folder / MODEL)
    model = core.compile_model(read, "CPU", _ROUNDED if wanted.precision == "bf16" else _EXACT)

    def logits(pixels: Array) -> dict[str, Array]:
        answers = model(pixels)
        return {name: np.array(answers[name], np.float32) for name in heads}

    name = f"openvino {openvino.__version__.partition('-')[0]}"
    if original.geometry is None:
        return Opened(name=name, logits=logits, pixels=None, scores=None)
    from deit.export.pixels.openvino_graph import preprocessing_nodes

    images, result = preprocessing_nodes(original.geometry)
    front = core.compile_model(openvino.Model([openvino.opset15.result(result)], [images], "front"), "CPU", _EXACT)
    whole = core.compile_model(folder / CLASSIFIER, "CPU", _EXACT)

    def pixels(images: Images) -> Array:
        return np.array(front(images)[0])

    def scores(images: Images) -> Array:
        return np.array(whole(images)[original.output_name])

    return Opened(name=name, logits=logits, pixels=pixels, scores=scores)


def _has(model: Any, name: str) -> bool:
    return bool(model.has_rt_info(["deit_export", name]))

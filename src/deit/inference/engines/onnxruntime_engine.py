"""Runs classifiers with ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from deit.core.errors import UserError, parsing
from deit.inference.contract import FEATURES, Array, Contract
from deit.inference.engines.engine import ask_in_parts, check_pixels
from deit.inference.engines.exported import ExportedModel
from deit.inference.engines.torch_engine import TorchEngine
from deit.runtime.packages import require_packages
from deit.runtime.threads import inference_threads

_SILENT = 3  # only errors


class OnnxRuntimeEngine:
    """Runs an ONNX model: pixels to the logits of each head.

    Waiting threads of ONNX Runtime do not spin.

    Args:
        model: A file, or the bytes of a model, with one input, (B, C, H, W), and outputs that are named as the heads;
            one more, "features", is what the class head is given.
        contract: What it takes and what its answers mean.
        precision: "fp32" or "auto", which is the same: the CPU multiplies in the type that the model is written in.

    Raises:
        UserError: There is no such precision.
        DamagedFileError: ONNX Runtime cannot read the model.
        MissingPackageError: onnxruntime is not installed.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, model: str | os.PathLike[str] | bytes, contract: Contract, *, precision: str = "fp32") -> None:
        if precision not in ("auto", "fp32"):
            raise UserError(
                f"The engine onnxruntime computes in the precision of the model, fp32. Received {precision!r}."
            )
        self.precision = "fp32"
        self.contract = contract
        self.threads = inference_threads()
        self._session = _open_session(model, self.threads)
        self._input = self._session.get_inputs()[0].name
        names = [output.name for output in self._session.get_outputs()]
        if missing := [name for name in contract.head_names if name not in names]:
            raise UserError(f"The ONNX model has no output {missing[0]!r}. Its outputs: {', '.join(names)}.")
        self._names = [name for name in (*contract.head_names, FEATURES) if name in names]

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first one is the answer of the model.

        Args:
            pixels: (B, C, H, W), float32.
        """
        return self._ask(pixels, list(self.contract.head_names))

    def with_features(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits of each head, and as `FEATURES` what the class head is given, (B, D), if the model says.

        Args:
            pixels: (B, C, H, W), float32.
        """
        return self._ask(pixels, self._names)

    @property
    def gives_features(self) -> bool:
        """Whether `with_features` returns features."""
        return FEATURES in self._names

    def _ask(self, pixels: Array, names: list[str]) -> dict[str, Array]:
        check_pixels(pixels, self.contract)

        def ask(part: Array) -> dict[str, Array]:
            found = self._session.run(names, {self._input: np.ascontiguousarray(part)})
            return {name: np.asarray(value, np.float32) for name, value in zip(names, found, strict=True)}

        return ask_in_parts(ask, pixels, self.threads)


def rewritten_for_onnxruntime(opened: TorchEngine, *, precision: str = "fp32") -> OnnxRuntimeEngine:
    """Returns the engine that runs in ONNX Runtime what PyTorch has opened; see `OnnxRuntimeEngine`."""
    import_onnxruntime()
    from deit.inference.graph.classifier_graph import classifier_graph
    from deit.inference.graph.onnx_model import to_onnx

    model = to_onnx(classifier_graph(opened.model, opened.contract, with_features=True), opened.contract)
    return OnnxRuntimeEngine(model.SerializeToString(), opened.contract, precision=precision)


def open_onnxruntime_export(exported: ExportedModel, *, precision: str) -> OnnxRuntimeEngine:
    """Opens an exported model, which computes in the type that it is written in.

    Raises:
        UserError: See `OnnxRuntimeEngine`; or `precision` is neither that of the export nor "auto".
    """
    given = "fp32" if precision == exported.precision else precision
    opened = OnnxRuntimeEngine(exported.file, exported.contract, precision=given)
    opened.precision = exported.precision
    return opened


def _open_session(model: str | os.PathLike[str] | bytes, threads: int) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _SILENT
    for kind in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{kind}.allow_spinning", "0")
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise FileNotFoundError(f"There is no file {model}.")
    with parsing(Path("the model") if isinstance(model, bytes) else Path(model), "an ONNX model"):
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model), options, providers=["CPUExecutionProvider"]
        )


def import_onnxruntime() -> Any:
    """Returns the package `onnxruntime`.

    Raises:
        MissingPackageError: It is not installed.
    """
    require_packages("The engine onnxruntime", "onnxruntime", extra="onnx")
    import onnxruntime

    return onnxruntime

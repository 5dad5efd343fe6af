"""Runs classifiers with OpenVINO, on the CPU."""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from deit.core.errors import UserError, parsing
from deit.inference.contract import FEATURES, Array, Contract
from deit.inference.engines.engine import ask_in_parts, check_pixels
from deit.inference.engines.exported import ExportedModel
from deit.inference.engines.torch_engine import TorchEngine
from deit.runtime.auto_precision import LEAST_SPEEDUP, VARIABLE
from deit.runtime.packages import require_packages
from deit.runtime.threads import inference_threads

PRECISIONS = ("auto", "fp32", "bf16")

REST_OF_INT8 = ["deit_quantize", "rest"]  # where a quantized model says what its other operations were checked in

_ROUNDS = 5  # of the measurement that precision="auto" makes

_engines: WeakSet[OpenVinoEngine] = WeakSet()
_of_parents: list[Any] = []  # compiled models that a forked process cannot use, and must not end


def _leave_to_parent() -> None:
    """Makes the engines of a forked process compile their models anew.

    The threads of the old ones stayed in the parent, and ending them would wait for these. Another thread of the parent
    may have had the lock.
    """
    for engine in list(_engines):
        if engine._request is not None:
            _of_parents.append(engine._request)
        engine._request, engine._lock = None, threading.Lock()


class OpenVinoEngine:
    """Runs a model of OpenVINO: pixels to the logits of each head.

    Batches of every size share one compiled model: compiling for one size gains nothing measurable. Calls of several
    threads wait for each other. A process that was forked compiles the model anew, since threads of OpenVINO do not
    survive a fork.

    Args:
        model: An `openvino.Model` with one input, (B, C, H, W), and outputs that are named as the heads; one more,
            "features", is what the class head is given.
        contract: What it takes and what its answers mean.
        precision: "fp32", "bf16" to multiply in bfloat16, or "auto" for the faster one (both are measured).
        cache: A folder in which OpenVINO keeps the compiled model; None compiles it each time.

    Raises:
        UserError: There is no such precision, or the CPU has no instructions for it.
        MissingPackageError: openvino is not installed.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, model: Any, contract: Contract, *, precision: str = "fp32", cache: str | os.PathLike[str] | None = None
    ) -> None:
        self.contract = contract
        self.threads = inference_threads()
        self._model, self._cache = model, cache
        self._lock = threading.Lock()
        self._names = _output_names(model, contract)
        self.precision = self._choose(precision)
        self._computes = self.precision
        self._request: Any = self._compile(self._computes)
        if not _engines and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_leave_to_parent)
        _engines.add(self)

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first one is the answer of the model.

        Args:
            pixels: (B, C, H, W), float32.
        """
        answers = self.with_features(pixels)
        return {name: answers[name] for name in self.contract.head_names}

    def with_features(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits of each head, and as `FEATURES` what the class head is given, (B, D), if the model says.

        Args:
            pixels: (B, C, H, W), float32.

        Raises:
            UserError: They have another size.
        """
        check_pixels(pixels, self.contract)
        with self._lock:
            if self._request is None:  # after a fork
                self._request = self._compile(self._computes)
            return ask_in_parts(self._infer, pixels, self.threads)

    def _infer(self, pixels: Array) -> dict[str, Array]:
        found = self._request.infer({0: np.ascontiguousarray(pixels)})
        # The arrays lie in memory of OpenVINO, which the next call writes to.
        return {name: np.array(found[number], np.float32) for name, number in self._names.items()}

    @property
    def gives_features(self) -> bool:
        """Whether `with_features` returns features."""
        return FEATURES in self._names

    def _choose(self, precision: str) -> str:
        if precision not in PRECISIONS:
            raise UserError(f"The precision must be {' or '.join(PRECISIONS)}. Received: {precision!r}.")
        multiplies = computes_in_bf16()
        if precision == "bf16" and not multiplies:
            raise UserError("This CPU has no instructions for bf16, so OpenVINO computes in fp32. Pass precision fp32.")
        if precision != "auto":
            return precision
        pinned = os.environ.get(VARIABLE, "")
        if pinned in ("fp32", "bf16"):
            return pinned if multiplies else "fp32"
        if not multiplies or self.contract.image_size is None:
            return "fp32"
        return "bf16" if self._speedup_of_bf16() >= LEAST_SPEEDUP else "fp32"

    def _speedup_of_bf16(self) -> float:
        """Returns the time of an image in fp32 divided by that in bf16, of calls in turns."""
        assert self.contract.image_size is not None
        pixels = np.zeros((1, self.contract.num_channels, *self.contract.image_size), np.float32)
        requests = {precision: self._compile(precision) for precision in ("fp32", "bf16")}
        ratios = []
        for number in range(_ROUNDS + 1):
            seconds = {}
            for precision, request in requests.items():
                started = time.perf_counter()
                request.infer({0: pixels})
                seconds[precision] = time.perf_counter() - started
            if number:  # the first call also prepares the kernels
                ratios.append(seconds["fp32"] / max(seconds["bf16"], 1e-9))
        return statistics.median(ratios)

    def _compile(self, precision: str) -> Any:
        import openvino
        import openvino.properties as properties
        import openvino.properties.hint as hints

        asked = {
            hints.inference_precision: openvino.Type.bf16 if precision == "bf16" else openvino.Type.f32,
            hints.performance_mode: hints.PerformanceMode.LATENCY,
            hints.enable_cpu_pinning: False,  # beside other work, a thread that cannot move waits
            hints.enable_hyper_threading: True,  # the number of threads decides alone
            properties.num_streams: 1,
            properties.inference_num_threads: self.threads,
        }
        core = openvino.Core()
        if self._cache is not None:
            core.set_property({properties.cache_dir: os.fspath(self._cache)})
        return core.compile_model(self._model, "CPU", asked).create_infer_request()


def rewritten_for_openvino(
    opened: TorchEngine, *, precision: str = "fp32", cache: str | os.PathLike[str] | None = None
) -> OpenVinoEngine:
    """Returns the engine that runs in OpenVINO what PyTorch has opened; see `OpenVinoEngine` for the arguments."""
    import_openvino()
    from deit.inference.graph.classifier_graph import classifier_graph
    from deit.inference.graph.openvino_model import to_openvino

    graph = classifier_graph(opened.model, opened.contract, with_features=True)
    model = to_openvino(graph, opened.contract, fast_here=True)
    return OpenVinoEngine(model, opened.contract, precision=precision, cache=cache)


def open_openvino_export(exported: ExportedModel, *, precision: str) -> OpenVinoEngine:
    """Opens an exported model.

    Args:
        exported: The model.
        precision: See `OpenVinoEngine`. "fp16", in which weights are stored, computes all else in fp32; so does "bf16"
            of an export on a CPU without instructions for it. "int8" computes all else as it was checked: the file says
            so (`REST_OF_INT8`), and a CPU without bf16 takes fp32.

    Raises:
        UserError: See `OpenVinoEngine`.
    """
    model = read_openvino_model(exported.file)
    if precision == "int8" == exported.precision:
        in_bf16 = model.has_rt_info(REST_OF_INT8) and model.get_rt_info(REST_OF_INT8).astype(str) == "bf16"
        precision = "bf16" if in_bf16 and computes_in_bf16() else "fp32"
    if precision == "fp16" == exported.precision:
        precision = "fp32"
    if precision == "bf16" == exported.precision and not computes_in_bf16():
        precision = "fp32"
    opened = OpenVinoEngine(model, exported.contract, precision=precision)
    if exported.precision == "int8":
        opened.precision = exported.precision
    return opened


def computes_in_bf16() -> bool:
    """Whether OpenVINO multiplies in bf16 on this CPU. Where it does not, it computes in fp32 without a word.

    Raises:
        MissingPackageError: openvino is not installed.
    """
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def import_openvino() -> Any:
    """Returns the package `openvino`.

    Raises:
        MissingPackageError: It is not installed.
    """
    require_packages("The engine openvino", "openvino", extra="openvino")
    import openvino

    return openvino


def read_openvino_model(path: Path) -> Any:
    """Reads an OpenVINO model: an .xml file and the .bin file of the same name beside it.

    The weights are in memory afterwards, so whatever happens to the files changes no answer.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: OpenVINO cannot read it.
        MissingPackageError: openvino is not installed.
    """
    openvino = import_openvino()
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise FileNotFoundError(f"No {file.name} in {file.parent}. An OpenVINO model is an .xml and a .bin file.")
    core = openvino.Core()
    core.set_property({openvino.properties.enable_mmap: False})
    with parsing(path, "an OpenVINO model"):
        return core.read_model(path)


def _output_names(model: Any, contract: Contract) -> dict[str, int]:
    """Returns for each head, and for the features where they are given, the number of the output."""
    numbers = {name: i for i, output in enumerate(model.outputs) for name in output.get_names()}
    if missing := [name for name in contract.head_names if name not in numbers]:
        raise UserError(
            f"The OpenVINO model has no output {missing[0]!r}. Its outputs: {', '.join(sorted(numbers)) or 'none'}."
        )
    return {name: numbers[name] for name in (*contract.head_names, FEATURES) if name in numbers}

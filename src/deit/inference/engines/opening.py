"""Opens a model with the engine that is asked for, or with the one that its file belongs to.

A new engine is one file like `openvino_engine` and one row of `ENGINES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from deit.core.errors import UserError, shown
from deit.core.model_directory import kind_of_model
from deit.inference.engines.engine import Engine
from deit.inference.engines.exported import ENDINGS, ExportedModel, find_export
from deit.inference.engines.torch_engine import TorchEngine, open_torch_engine, open_torchvision_engine
from deit.runtime.auto_precision import VARIABLE as AUTO_PRECISION
from deit.runtime.devices import AUTO, accelerator, resolve
from deit.runtime.packages import require_packages

VARIABLE = "DEIT_ENGINE"  # of the environment: what "auto" stands for

TORCH, COMPILED, CUDA, OPENVINO, ONNXRUNTIME = "torch", "torch-compiled", "cuda", "openvino", "onnxruntime"

_PLACES = {"cpu": "the CPU", "cuda": "GPUs of CUDA"}


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """How one engine opens models.

    Attributes:
        weights: From a model that PyTorch has opened from its weights, and a precision.
        export: From an exported model and a precision; None if the engine opens no files. The endings of these files
            are in `ENDINGS`.
        device_type: The only kind of device that the engine runs on; None for all.
        precisions: Those that it computes a model directory in, beside "auto".
        package: What must be installed.
    """

    weights: Callable[[TorchEngine, str], Engine]
    export: Callable[[ExportedModel, str], Engine] | None = None
    device_type: str | None = "cpu"
    precisions: tuple[str, ...] = ("fp32", "bf16")
    package: str = "torch"


def _torch(opened: TorchEngine, precision: str) -> Engine:
    return opened


def _compiled(opened: TorchEngine, precision: str) -> Engine:
    from deit.inference.engines.compiled_engine import CompiledEngine

    return CompiledEngine(opened.model, opened.contract, opened.device, precision=precision)


def _cuda(opened: TorchEngine, precision: str) -> Engine:
    from deit.inference.engines.cuda_engine import CudaEngine

    return CudaEngine(opened.model, opened.contract, opened.device, precision=precision)


def _auto(opened: TorchEngine, precision: str) -> Engine:
    from deit.inference.engines.auto_engine import AutoEngine

    return AutoEngine(opened, precision)


def _openvino(opened: TorchEngine, precision: str) -> Engine:
    from deit.inference.engines.openvino_engine import rewritten_for_openvino

    return rewritten_for_openvino(opened, precision=precision)


def _openvino_export(exported: ExportedModel, precision: str) -> Engine:
    from deit.inference.engines.openvino_engine import open_openvino_export

    return open_openvino_export(exported, precision=precision)


def _onnxruntime(opened: TorchEngine, precision: str) -> Engine:
    from deit.inference.engines.onnxruntime_engine import rewritten_for_onnxruntime

    return rewritten_for_onnxruntime(opened, precision=precision)


def _onnxruntime_export(exported: ExportedModel, precision: str) -> Engine:
    from deit.inference.engines.onnxruntime_engine import open_onnxruntime_export

    return open_onnxruntime_export(exported, precision=precision)


ENGINES: dict[str, EngineKind] = {
    TORCH: EngineKind(weights=_torch, device_type=None),
    COMPILED: EngineKind(weights=_compiled, device_type=None),
    CUDA: EngineKind(weights=_cuda, device_type="cuda", precisions=("fp32", "bf16", "fp8"), package="triton"),
    OPENVINO: EngineKind(weights=_openvino, export=_openvino_export, package="openvino"),
    ONNXRUNTIME: EngineKind(
        weights=_onnxruntime, export=_onnxruntime_export, precisions=("fp32",), package="onnxruntime"
    ),
}


_AUTO = EngineKind(weights=_auto, device_type=None)


def chosen_engine(engine: str | None) -> str:
    """Returns what the engine None or "auto" stands for: DEIT_ENGINE of the environment, else "auto".

    Raises:
        UserError: DEIT_ENGINE names no engine.
    """
    if engine not in (None, AUTO):
        return str(engine)
    pinned = os.environ.get(VARIABLE) or AUTO
    if pinned not in (AUTO, *ENGINES):
        raise UserError(f"{VARIABLE} must be one of {', '.join((AUTO, *ENGINES))}. Received: {shown(pinned)}.")
    return pinned


def open_engine(
    name_or_path: str | os.PathLike[str],
    device: str = "cpu",
    *,
    engine: str = TORCH,
    precision: str | None = None,
    head_average: str | None = None,
) -> Engine:
    """Opens a classifier by its path or name.

    Args:
        name_or_path: See `deit.models.weights.model_names.find_model`. The preprocessing of `timm/NAME` is timm's.
            `torchvision/NAME` stands for the weights that torchvision publishes, with its preprocessing. The file of an
            exported model (`openvino_model.xml`, `model.onnx`), and a directory with such files and no weights, open
            with the engine that they belong to, whatever `engine` says.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one. OpenVINO and ONNX Runtime run on the CPU, and
            the engine "cuda" on a GPU of CUDA.
        engine: "torch", "torch-compiled", "cuda", "openvino" or "onnxruntime"; "auto" takes the fastest one while
            PyTorch answers, see `AutoEngine`, or what DEIT_ENGINE says.
        precision: "fp32", or "bf16" to multiply in bfloat16 where the engine finds that safe; "auto" takes the faster
            one, see `choose_precision` and `OpenVinoEngine`. The engine "cuda" has "fp8" too, see `CudaEngine`. None is
            "fp32", for the engine "auto" it is "auto", and for an exported model its own.
        head_average: What two heads answer with together: "logits" (their mean, as the paper's code and transformers)
            or "probabilities" (the mean of their softmax outputs, as the paper's text). None follows the model's
            configuration, whose default is "logits".

    Raises:
        OSError: See `find_model`; or a file is missing.
        MissingPackageError: PyTorch or the package of the engine is not installed.
        UserError: A file is damaged or holds no classifier; there is no such engine, device, precision or average; the
            engine does not run on the device; or the model has one head, of which there is no average.
    """
    require_packages("Opening a model", "torch", extra="torch")
    from deit.models.weights.model_names import find_model, timm_name
    from deit.models.weights.torchvision import torchvision_name

    engine = chosen_engine(engine)
    kind = _kind(engine)
    place = _device(engine, device)
    first, second = _precisions(engine, place, precision)
    if torchvision_name(name_or_path):
        opened = open_torchvision_engine(str(name_or_path), place, precision=first, head_average=head_average)
        return kind.weights(opened, second)
    path = find_model(name_or_path)
    exported = find_export(path, engine)
    if exported is not None:
        return _open_export(exported, device, precision, head_average)
    if not path.is_dir():
        known = ", ".join(["a model directory", *(f"*{ending}" for ending in ENDINGS.values())])
        raise UserError(f"{path} cannot be opened as a model. Pass one of: {known}.")
    published = timm_name(name_or_path) is not None and kind_of_model(path) == "timm"
    opened = open_torch_engine(path, place, precision=first, head_average=head_average, published=published)
    return kind.weights(opened, second)


def _kind(engine: str) -> EngineKind:
    if engine == AUTO:
        return _AUTO
    if engine not in ENGINES:
        raise UserError(f"Unknown engine {shown(engine)}. Known: {', '.join((AUTO, *ENGINES))}.")
    return ENGINES[engine]


def _precisions(engine: str, device: str, precision: str | None) -> tuple[str, str]:
    """Returns the precision in which PyTorch opens a model, and that which its engine is given."""
    if engine in (CUDA, OPENVINO, ONNXRUNTIME):
        return "fp32", precision or "fp32"
    if engine != AUTO:
        return precision or "fp32", precision or "fp32"
    if resolve(device).device.type not in ("cpu", "cuda"):  # PyTorch has no rival there
        return precision or "fp32", precision or "fp32"
    asked = precision or AUTO
    if asked == AUTO and os.environ.get(AUTO_PRECISION) in ("fp32", "bf16"):
        asked = os.environ[AUTO_PRECISION]
    return "fp32" if asked == AUTO else asked, asked


def _device(engine: str, device: str) -> str:
    """Returns the device that a model is opened on: "auto" is one of the only kind that an engine runs on.

    Raises:
        UserError: The engine does not run on it.
    """
    only = _kind(engine).device_type
    if only is None:
        return device
    if device != AUTO and resolve(device).device.type != only:
        raise UserError(
            f"The engine {engine} runs on {_PLACES[only]}. Received the device {device!r}. Pass device={only!r}."
        )
    if device == AUTO and only == "cuda" and accelerator().type != only:
        raise UserError(f"The engine {engine} runs on {_PLACES[only]}, and PyTorch finds none. Leave out the engine.")
    return only if device == AUTO else device


def _open_export(exported: ExportedModel, device: str, precision: str | None, head_average: str | None) -> Engine:
    _device(exported.engine, device)
    if head_average is not None:
        raise UserError(f"The average of heads is part of the exported model {exported.file}. Leave out the average.")
    kind = ENGINES[exported.engine]
    assert kind.export is not None
    return kind.export(exported, precision or exported.precision)

"""The engines that "auto" may take in place of plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from deit.inference.engines.engine import Engine
from deit.inference.engines.onnxruntime_engine import rewritten_for_onnxruntime
from deit.inference.engines.openvino_engine import computes_in_bf16, rewritten_for_openvino
from deit.inference.engines.torch_engine import TorchEngine
from deit.runtime.devices import bf16_instructions

PACKAGES = ("openvino", "onnxruntime", "triton")  # on which the answer depends


@dataclass(frozen=True)
class Candidate:
    """An engine and a precision to measure."""

    engine: str
    precision: str

    def open(self, plain: TorchEngine) -> Engine:
        """Opens it from what plain PyTorch has opened."""
        if self.engine == "openvino":
            return rewritten_for_openvino(plain, precision=self.precision)
        if self.engine == "cuda":
            from deit.inference.engines.cuda_engine import CudaEngine

            return CudaEngine(plain.model, plain.contract, plain.device, precision=self.precision)
        if self.engine == "onnxruntime":
            return rewritten_for_onnxruntime(plain, precision=self.precision)
        return TorchEngine(plain.model, plain.contract, plain.device, precision=self.precision)


def why_none(plain: TorchEngine) -> str:
    """Returns why plain PyTorch has no rival for a model; empty if it has one."""
    from deit.inference.graph.known_models import why_unknown

    place = plain.placement.device.type
    if place not in ("cpu", "cuda"):
        return f"the others run on the CPU and on GPUs of CUDA, and the device is {plain.device}"
    if plain.contract.folder is None or not plain.contract.folder.is_dir():
        return "the model was opened from no model directory"
    if reason := why_unknown(plain.model):
        return f"the model cannot be rewritten: {reason}"
    if place == "cuda":
        return "" if find_spec("triton") else "Triton is not installed, which the engine cuda needs"
    if not any(find_spec(name) for name in ("openvino", "onnxruntime")):
        return 'no other engine is installed, pip install "deit[openvino]" adds a faster one'
    return ""


def candidates(plain: TorchEngine, precision: str) -> list[Candidate]:
    """Returns the engines to measure.

    On a GPU of CUDA, the engine for it. On the CPU, OpenVINO where it is installed, else ONNX Runtime: beside OpenVINO
    it was never the fastest. bf16 only where the CPU has instructions for it.

    Args:
        plain: What answers until then.
        precision: "fp32" or "bf16" allow that alone, "auto" both.
    """
    found = []
    if plain.placement.device.type == "cuda":
        return [Candidate("cuda", each) for each in ("fp32", "bf16") if precision in ("auto", each)]
    if find_spec("openvino"):
        kinds = ["bf16"] if computes_in_bf16() else []
        found = [Candidate("openvino", kind) for kind in ("fp32", *kinds)]
    elif find_spec("onnxruntime"):
        found = [Candidate("onnxruntime", "fp32")]
    if not find_spec("openvino") and plain.precision == "fp32" and bf16_instructions():
        found.append(Candidate("torch", "bf16"))
    return [each for each in found if precision in ("auto", each.precision)]

"""Runs classifiers of this package on GPUs of CUDA, each batch as one recorded graph of kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from deit.core.errors import UserError
from deit.inference.contract import Array, Contract
from deit.inference.engines.torch_engine import TorchEngine
from deit.inference.graph.cuda_classifier import CudaClassifier
from deit.inference.graph.folding import fold
from deit.inference.graph.known_models import why_unknown
from deit.inference.graph.lean_classifier import output_names
from deit.runtime.devices import resolve
from deit.runtime.packages import require_packages

PRECISIONS = ("fp32", "bf16", "fp8")
LARGEST_BATCH = 256  # fills every GPU of today; larger ones are answered in parts, so memory stays bounded

_EXACT_SIZES = 16  # up to here there is a graph for each size of batches; above, for each eighth one
_STEP = 8
_FIRST_FP8 = (8, 9)  # compute capability of the first GPUs that multiply e4m3
_ATTENTIONS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
_WARM_UPS, _TIMES = 3, 20


class _Graph(NamedTuple):
    """A recorded forward pass and its memory."""

    graph: Any  # torch.cuda.CUDAGraph
    pixels: Tensor  # (b, C, H, W)
    outputs: Tensor  # (b, numbers of all outputs), float32


class CudaEngine(TorchEngine):
    """Runs a classifier of this package on a GPU, rewritten for it and recorded as a graph for each size of batches.

    Recording takes some tenths of a second, at the first batch of a size. Batches of up to 16 images have a graph of
    their own size; larger ones are filled up to a multiple of 8, and above 256 answered in parts.

    The weights are copied: later changes of the model do not reach this engine.

    Args:
        model: A classifier of this package.
        contract: See `TorchEngine`.
        device: "cuda", "cuda:1", ...
        precision: "fp32", "bf16", or "fp8" for products of 8-bit numbers (e4m3), which are less exact: see
            docs/engines.md. "auto" is "bf16".

    Raises:
        MissingPackageError: Triton is not installed.
        UserError: The device is no GPU of CUDA, or one without fp8; the model cannot be rewritten; or there is no such
            precision.
    """

    name = "cuda"
    gives_features = True

    def __init__(self, model: Any, contract: Contract, device: str = "cuda", *, precision: str = "bf16") -> None:
        precision = "bf16" if precision == "auto" else precision
        if precision not in PRECISIONS:
            raise UserError(
                f"The precision of the engine cuda must be {' or '.join(PRECISIONS)}. Received: {precision!r}."
            )
        if resolve(device).device.type != "cuda":
            raise UserError(f"The engine cuda runs on GPUs of CUDA. Received the device {device!r}.")
        require_packages("The engine cuda", "triton", extra="torch")
        if reason := why_unknown(model):
            raise UserError(f"The engine cuda cannot run this model: {reason}. Pass engine='torch'.")
        super().__init__(model, contract, device, precision="fp32")
        self.precision = precision
        self._where = self.placement.device
        if precision == "fp8" and torch.cuda.get_device_capability(self._where) < _FIRST_FP8:
            raise UserError(f"{torch.cuda.get_device_name(self._where)} does not multiply fp8. Pass precision='bf16'.")
        if precision == "fp8" and not has_widths_for_fp8(model):
            raise UserError("The engine cuda needs layers whose widths 16 divides for fp8. Pass precision='bf16'.")
        self._classifier = cuda_classifier(self.model, contract, precision)
        self._graphs: dict[int, _Graph] = {}
        self._pool: Any = None
        self._lock = threading.Lock()  # the graphs share their memory

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first one is the answer of the model.

        Args:
            pixels: (B, C, H, W), float32.
        """
        answers = self.with_features(pixels)
        return {name: answers[name] for name in self.contract.head_names}

    def with_features(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits of each head, and as `FEATURES` what the class head is given, (B, D).

        Args:
            pixels: (B, C, H, W), float32.
        """
        parts = np.array_split(pixels, max(-(-len(pixels) // LARGEST_BATCH), 1))
        with self._lock, torch.cuda.device(self._where), torch.inference_mode():
            outputs = np.concatenate([self._run(part) for part in parts])
        names, widths = output_names(self._classifier.lean, self.contract), self._classifier.output_widths
        return dict(zip(names, np.split(outputs, np.cumsum(widths)[:-1], axis=1), strict=True))

    def _run(self, pixels: Array) -> Array:
        """Returns all outputs beside each other, (B, numbers)."""
        size = graph_size(len(pixels))
        recorded = self._graphs.get(size)
        if recorded is None:
            recorded = self._graphs[size] = self._record(size, pixels.shape[1:])
        recorded.pixels[: len(pixels)].copy_(torch.from_numpy(pixels))
        recorded.graph.replay()
        return recorded.outputs[: len(pixels)].cpu().numpy()

    def _record(self, size: int, shape: tuple[int, ...]) -> _Graph:
        pixels = torch.zeros(size, *shape, device=self._where)
        self._classifier.attention = fastest_attention(self._classifier, size)
        outputs, graph, self._pool = record(lambda: self._classifier.all_outputs(pixels), self._pool)
        return _Graph(graph, pixels, outputs)


def cuda_classifier(model: Any, contract: Contract, precision: str) -> CudaClassifier:
    """Rewrites a classifier on a GPU, for which `why_unknown` returns None, in one of `PRECISIONS`."""
    lean = fold(model, contract.processor, takes_uint8=False, with_features=True)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return CudaClassifier(lean, dtype, fp8=precision == "fp8").eval()


def has_widths_for_fp8(model: Any) -> bool:
    """Whether 16 divides the widths of all layers in the blocks of a classifier."""
    blocks = getattr(model, model.base_model_prefix).trunk.blocks
    layers = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
    return not any(side % 16 for layer in layers for side in layer.weight.shape)


def graph_size(images: int) -> int:
    """Returns for how many images the graph is that answers a batch."""
    return max(images, 1) if images <= _EXACT_SIZES else -(-images // _STEP) * _STEP


def record(function: Callable[[], Tensor], pool: Any = None) -> tuple[Tensor, Any, Any]:
    """Records what a function does on the GPU.

    Args:
        function: What to record; it must do the same each time.
        pool: Of another graph, to share its memory: then they cannot run at the same time.

    Returns:
        The result, which each replay of the graph writes anew; the graph; and its pool.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = function()
    return result, graph, graph.pool()


def fastest_attention(classifier: CudaClassifier, batch: int) -> SDPBackend | None:
    """Returns the fastest attention of PyTorch for a size of batches, as measured now; None in fp32, for its choice."""
    if classifier.dtype == torch.float32:
        return None
    attend = classifier.example_of_attention(batch)
    seconds: dict[SDPBackend, float] = {}
    for each in _ATTENTIONS:
        classifier.attention = each
        try:
            _, graph, _ = record(attend)
        except RuntimeError:  # this GPU or this shape has none
            continue
        seconds[each] = _seconds(graph)
    return min(seconds, key=seconds.__getitem__) if seconds else None


def _seconds(graph: Any) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(_TIMES):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / _TIMES

"""Runs classifiers with PyTorch's compiler, inductor."""

from __future__ import annotations

import logging
from typing import Any

from deit.core.errors import UserError
from deit.inference.contract import Array, Contract
from deit.inference.engines.torch_engine import TorchEngine

logger = logging.getLogger(__name__)


class CompiledEngine(TorchEngine):
    """Runs a classifier as `torch.compile` makes it: the first batch takes up to a minute, the first of one image too.

    PyTorch keeps what it compiled (TORCHINDUCTOR_CACHE_DIR), so the next process waits some seconds. On the CPU, it
    needs a C++ compiler.

    Args:
        model: See `TorchEngine`.
        contract: See `TorchEngine`.
        device: See `TorchEngine`.
        precision: See `TorchEngine`.

    Raises:
        UserError: There is no such device or precision.
    """

    name = "torch-compiled"

    def __init__(self, model: Any, contract: Contract, device: str = "cpu", *, precision: str = "fp32") -> None:
        super().__init__(model, contract, device, precision=precision)
        import torch

        from deit.inference.graph.classifier_graph import classifier_graph

        self.graph = classifier_graph(self.model, contract)
        options: dict[str, Any] = {"freezing": True} if self.placement.device.type == "cpu" else {}
        self._compiled = torch.compile(self.graph, options=options)
        logger.warning("torch-compiled compiles the model at the first batch, which can take a minute.")

    def __call__(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first one is the answer of the model.

        Args:
            pixels: (B, 3, H, W), float32.

        Raises:
            UserError: There is no compiler of C++.
        """
        import torch
        from torch._inductor.exc import InvalidCxxCompiler

        batch = torch.from_numpy(pixels).to(self.placement.device)
        if len(batch) > 1:
            torch._dynamo.mark_dynamic(batch, 0)  # one compilation for batches of every size
        try:
            with torch.no_grad(), self.placement.autocast():
                outputs = self._compiled(batch)
        except Exception as error:
            if isinstance(error, InvalidCxxCompiler) or isinstance(error.__cause__, InvalidCxxCompiler):
                raise UserError(
                    "The engine torch-compiled needs a C++ compiler, such as g++. None was found."
                ) from error
            raise
        names = self.contract.head_names
        return {name: logits.float().cpu().numpy() for name, logits in zip(names, outputs, strict=True)}

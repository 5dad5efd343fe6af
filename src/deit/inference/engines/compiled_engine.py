"""Runs classifiers with PyTorch's compiler, inductor."""

from __future__ import annotations

import logging
from typing import Any

from deit.core.errors import UserError
from deit.inference.contract import FEATURES, Array, Contract
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
        from deit.inference.graph.lean_classifier import output_names

        self.graph = classifier_graph(self.model, contract, with_features=True)
        self._names = output_names(self.graph, contract)
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
        answers = self.with_features(pixels)
        return {name: answers[name] for name in self.contract.head_names}

    def with_features(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits of each head, and as `FEATURES` what the class head is given, (B, D), if the model says.

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
        return {name: values.float().cpu().numpy() for name, values in zip(self._names, outputs, strict=True)}

    @property
    def gives_features(self) -> bool:
        """Whether `with_features` returns features."""
        return FEATURES in self._names

"""A runner is any function from pixels (B, 3, H, W) to logits (B, K); this opens one from a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from deit.core.configuration import read_config
from deit.core.labels import names_in_order
from deit.core.model_directory import kind_of_model

Array = npt.NDArray[np.float32]

# What timm raises for files that are missing, damaged or of another architecture than they say.
_TIMM_ERRORS = (RuntimeError, OSError, ValueError, TypeError, AttributeError, KeyError, AssertionError, SafetensorError)


class TorchRunner:
    """Runs a classifier with PyTorch.

    Args:
        model: A module from pixels to logits or to a known output; it is put in evaluation mode.
        label_names: Class names in the order of the logits.
        device: "cpu", "cuda", ...

    Raises:
        ValueError: There is no such device.
    """

    def __init__(self, model: Any, label_names: list[str], device: str = "cpu") -> None:
        try:
            self.model = model.to(device).eval()
        except (RuntimeError, AssertionError) as error:  # what PyTorch raises for names and for missing drivers
            raise ValueError(f"The device {device!r} cannot be used ({error}). Pass device='cpu'.") from error
        self.label_names = label_names
        self.device = device

    def heads(self, pixels: Array) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first is the model's answer.

        Args:
            pixels: (B, 3, H, W), float32.
        """
        import torch

        from deit.models.classifier import head_logits

        with torch.inference_mode():
            heads = head_logits(self.model, torch.from_numpy(pixels).to(self.device))
        return {name: logits.float().cpu().numpy() for name, logits in heads.items()}

    def __call__(self, pixels: Array) -> Array:
        """Returns the logits (B, K) that the model answers with: the mean of its heads."""
        return next(iter(self.heads(pixels).values()))


def open_runner(folder: Path, device: str = "cpu") -> TorchRunner:
    """Opens a model directory of this package or of timm.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or describes something that is no classifier; or there is no such device.
    """
    if kind_of_model(folder) == "deit":
        from deit.models.classifier import open_classifier

        classifier = open_classifier(folder)
        if device == "cpu":
            classifier.pack_weights()
        return TorchRunner(classifier, names_in_order(classifier.config.id2label), device)
    import timm

    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except _TIMM_ERRORS as error:
        raise ValueError(f"timm cannot open {folder} ({error}). Its files may be damaged.") from error
    names = read_config(folder).get("label_names") or [str(i) for i in range(model.num_classes)]
    return TorchRunner(model, names, device)

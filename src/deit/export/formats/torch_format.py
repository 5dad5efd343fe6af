"""Writes and runs programs of PyTorch (`torch.export`)."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit.core.file_names import TORCH_CLASSIFIER_NAME as CLASSIFIER, TORCH_NAME as MODEL
from deit.export.formats.written_format import Array, Images, Opened, Wanted, refuse_precision, same_metadata
from deit.export.original import Original
from deit.export.pixels.torch_preprocessing import Preprocessing

PRECISIONS = ("fp32", "fp16", "bf16")
PACKAGES = ("torch",)

__all__ = ["CLASSIFIER", "MODEL", "PACKAGES", "PRECISIONS", "opened", "require", "write"]

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_METADATA = "deit.json"


class _Model(nn.Module):
    """Pixels, float32 (B, C, H, W), to a tuple of logits (B, K), float32; computes in another type."""

    def __init__(self, graph: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(graph).to(dtype), dtype

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.to(torch.float32) for each in self.network(pixels.to(self.dtype)))


class _Classifier(nn.Module):
    """Images, uint8 (B, H, W, 3), to scores (B, K), float32."""

    def __init__(self, model: _Model, original: Original) -> None:
        super().__init__()
        assert original.geometry is not None
        self.preprocessing, self.model = Preprocessing(original.geometry), model
        self.function, self.temperature = original.function, original.temperature

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(self.preprocessing(images))[0]
        if self.temperature is not None:
            logits = logits / self.temperature
        if self.function == "none":
            return logits
        return logits.softmax(1) if self.function == "softmax" else logits.sigmoid()


def require(wanted: Wanted) -> None:
    """See `Format`."""
    refuse_precision(wanted.precision, PRECISIONS, "an export for PyTorch")


def write(original: Original, wanted: Wanted, folder: Path) -> None:
    """See `Format`."""
    model = _Model(original.graph, _TYPES[wanted.precision]).eval()
    assert original.contract.image_size is not None
    size = original.contract.image_size
    # Two images: the exporter takes 1 for a constant.
    pixels = torch.zeros(2, original.contract.num_channels, *size)
    _save(model, pixels, {0: torch.export.Dim.DYNAMIC}, original, folder / MODEL)
    if original.geometry is not None:
        images = torch.zeros(2, size[0] + 3, size[1] + 7, 3, dtype=torch.uint8)
        sides = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
        _save(_Classifier(model, original).eval(), images, sides, original, folder / CLASSIFIER)


def _save(module: nn.Module, example: Tensor, sides: dict[int, Any], original: Original, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.export.export(module, (example,), dynamic_shapes=(sides,), strict=False)
        torch.export.save(program, path, extra_files={_METADATA: json.dumps(original.metadata)})


def opened(original: Original, wanted: Wanted, folder: Path) -> Opened:
    """See `Format`."""
    model = _open(folder / MODEL, original)
    heads = original.contract.head_names

    @torch.inference_mode()
    def logits(pixels: Array) -> dict[str, Array]:
        return {name: each.numpy() for name, each in zip(heads, model(torch.from_numpy(pixels)), strict=True)}

    name = f"torch {torch.__version__.partition('+')[0]}"
    if original.geometry is None:
        return Opened(name=name, logits=logits, pixels=None, scores=None)
    front, whole = Preprocessing(original.geometry), _open(folder / CLASSIFIER, original)

    @torch.inference_mode()
    def pixels(images: Images) -> Array:
        return np.asarray(front(torch.from_numpy(images)).numpy())

    @torch.inference_mode()
    def scores(images: Images) -> Array:
        return np.asarray(whole(torch.from_numpy(images)).numpy())

    return Opened(name=name, logits=logits, pixels=pixels, scores=scores)


def _open(path: Path, original: Original) -> Any:
    texts = {_METADATA: ""}
    program = torch.export.load(path, extra_files=texts)
    same_metadata(json.loads(texts[_METADATA]), original.metadata, path)
    return program.module()

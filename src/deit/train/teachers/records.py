"""Encodes a teacher's answers for the teacher cache as classes or logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deit.core.errors import DamagedFileError


class HardRecords:
    """Encodes the teacher's top class in 2 bytes per view, or 4 above 65,536 classes.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        self._classes = num_classes
        self._type = np.dtype("<u2" if num_classes <= 1 << 16 else "<u4")
        self.bytes_per_view = self._type.itemsize

    def encode(self, logits: Tensor) -> bytes:
        """Encodes logits (B, K)."""
        return logits.argmax(dim=1).cpu().numpy().astype(self._type).tobytes()

    def decode(self, record: bytes) -> Tensor:
        """Decodes classes (B,).

        Raises:
            ValueError: A class number is K or more.
        """
        classes = torch.from_numpy(np.frombuffer(record, self._type).astype(np.int64))
        if len(classes) and int(classes.max()) >= self._classes:
            raise DamagedFileError(f"class {int(classes.max())} of {self._classes}")
        return classes


class SoftRecords:
    """Encodes the teacher's logits: all of them in fp32, or the k largest in fp16 if there are more classes.

    Replaces the other logits by one common value that keeps their total share of the softened distribution, so the k
    largest probabilities do not change.

    Args:
        num_classes: Number of classes K.
        top_k: Number of logits to keep.
        temperature: Temperature of the distillation loss.
    """

    def __init__(self, num_classes: int, top_k: int, temperature: float) -> None:
        self._classes, self._kept, self._temperature = num_classes, min(top_k, num_classes), temperature
        if self._kept == num_classes:
            self._type = np.dtype([("logits", "<f4", (num_classes,))])
        else:
            number = "<u2" if num_classes <= 1 << 16 else "<u4"
            self._type = np.dtype([("class", number, (self._kept,)), ("logit", "<f2", (self._kept,)), ("rest", "<f2")])
        self.bytes_per_view = self._type.itemsize

    def encode(self, logits: Tensor) -> bytes:
        """Encodes logits (B, K)."""
        logits = logits.detach().float().cpu()
        views: npt.NDArray[Any] = np.empty(len(logits), self._type)
        if self._kept == self._classes:
            views["logits"] = logits.numpy()
            return views.tobytes()
        logits = logits - logits.amax(dim=1, keepdim=True)  # does not change the softmax; fp16 is most precise near 0
        values, classes = logits.topk(self._kept, dim=1)
        others = logits.scatter(1, classes, -torch.inf)
        mass = torch.logsumexp(others / self._temperature, dim=1)
        rest = self._temperature * (mass - float(np.log(self._classes - self._kept)))
        lowest = float(np.finfo(np.float16).min)
        views["class"], views["logit"] = classes.numpy(), values.clamp(min=lowest).numpy()
        views["rest"] = rest.clamp(min=lowest).numpy()
        return views.tobytes()

    def decode(self, record: bytes) -> Tensor:
        """Decodes logits (B, K).

        Raises:
            ValueError: A logit is NaN or infinite, or a class number is K or more.
        """
        logits = self._decode(record)
        if not bool(torch.isfinite(logits).all()):
            raise DamagedFileError("logits that are NaN or infinite")
        return logits

    def _decode(self, record: bytes) -> Tensor:
        views = np.frombuffer(record, self._type)
        if self._kept == self._classes:
            return torch.from_numpy(views["logits"].copy())
        rest = torch.from_numpy(views["rest"].astype(np.float32))
        logits = rest[:, None].repeat(1, self._classes)
        classes = torch.from_numpy(views["class"].astype(np.int64))
        if classes.numel() and int(classes.max()) >= self._classes:
            raise DamagedFileError(f"class {int(classes.max())} of {self._classes}")
        return logits.scatter(1, classes, torch.from_numpy(views["logit"].astype(np.float32)))

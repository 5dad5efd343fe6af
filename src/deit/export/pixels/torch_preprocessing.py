"""The exported preprocessing in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit.export.pixels.geometry import Geometry
from deit.export.pixels.preprocessing import preprocess


class Preprocessing(nn.Module):
    """Makes pixels (B, 3, h, w), float32, of images (B, H, W, 3), uint8, all of one size.

    Args:
        geometry: What to do.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, images: Tensor) -> Tensor:
        """Returns the pixels."""
        pixels: Tensor = preprocess(_TorchOperations(images.device), self.geometry, images)
        return pixels


class _TorchOperations:
    """See `Operations`. Lengths are numbers of Python, and symbols while a program is traced."""

    is_double = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def lengths(self, images: Tensor) -> tuple[int, int]:
        return images.shape[1], images.shape[2]

    def whole(self, numbers: Any) -> Tensor:
        return torch.from_numpy(np.array(numbers, np.int64)).to(self.device)

    def count(self, length: Any) -> Tensor:
        if isinstance(length, torch.SymInt):
            # A symbol of its own: else its long expression is in all shapes, and a program takes a minute to load.
            length = torch.scalar_tensor(length, dtype=torch.int64).item()
            torch._check(length >= 6)
        return torch.arange(length, device=self.device)

    def real(self, x: Any) -> Any:
        return x.to(torch.float64) if isinstance(x, Tensor) else x

    def single(self, x: Tensor) -> Tensor:
        return x.to(torch.float32)

    def index(self, x: Tensor) -> Tensor:
        return x.to(torch.int64)

    def quotient(self, x: Any, y: Any) -> Any:
        return torch.div(x, y, rounding_mode="trunc") if isinstance(x, Tensor) else x // y

    def larger(self, x: Any, y: Any) -> Any:
        return x.clamp(min=y) if isinstance(x, Tensor) else torch.sym_max(x, y)

    def smaller(self, x: Any, y: Any) -> Any:
        return x.clamp(max=y) if isinstance(x, Tensor) else torch.sym_min(x, y)

    def floor(self, x: Tensor) -> Tensor:
        return torch.floor(x)

    def absolute(self, x: Tensor) -> Tensor:
        return x.abs()

    def sine(self, x: Tensor) -> Tensor:
        return torch.sin(x)

    def below(self, x: Tensor, y: Any) -> Tensor:
        return (x < y).to(x.dtype)

    def total(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)

    def unsqueeze(self, x: Tensor, axis: int) -> Tensor:
        return x.unsqueeze(axis)

    def column(self, x: Tensor, number: int) -> Tensor:
        return x[:, number]

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1)

    def take(self, x: Tensor, places: Tensor) -> Tensor:
        return x[:, places]

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def part(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        return x.narrow(axis, start, stop - start)

    def shape(self, x: Tensor, *sides: int) -> Tensor:
        return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(sides)])

    def swap(self, x: Tensor, *order: int) -> Tensor:
        return x.permute(order)

    def look_up(self, table: Any, places: Tensor) -> Tensor:
        return torch.from_numpy(table).to(self.device)[places]

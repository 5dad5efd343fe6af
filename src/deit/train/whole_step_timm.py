"""Replaces timm's drop path and batch norm with activation by versions that act on the whole step.

A file of its own, because importing timm takes seconds and most students do not use it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deit.runtime.library_order import make_order_safe
from deit.train.whole_batch_norm import normalized

make_order_safe()
from timm.layers.drop import DropPath  # noqa: E402
from timm.layers.norm_act import BatchNormAct2d  # noqa: E402


class _DropPath(DropPath):
    """Drop path that draws for the whole step."""

    share: Any

    def forward(self, x: Tensor) -> Tensor:
        if self.share.rows is None or not self.training or not self.drop_prob:
            return super().forward(x)
        ones = x.new_ones(self.share.total, *[1] * (x.ndim - 1))
        return x * super().forward(ones)[self.share.rows]


class _BatchNormAct2d(BatchNormAct2d):
    """timm's batch norm, which applies dropout and an activation after it."""

    share: Any

    def forward(self, x: Tensor) -> Tensor:
        whole = self.training and self.share.rows is not None
        return self.act(self.drop(normalized(self, x))) if whole else super().forward(x)


DRAWS: dict[type[nn.Module], type[nn.Module]] = {DropPath: _DropPath}
NORMS: dict[type[nn.Module], type[nn.Module]] = {BatchNormAct2d: _BatchNormAct2d}

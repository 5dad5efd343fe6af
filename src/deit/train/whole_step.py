"""Makes random draws and batch norm independent of the number of processes and accumulated parts.

Dropout and drop path draw for all images of the step, in every process and part alike, and use the rows of the images
at hand. Batch norm takes mean and variance over all processes. So neither depends on how many processes there are.
What cannot be made equal is named by `ShareOfStep.notes`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from deit.models.trunk.vision_transformer import Attention, DropPath
from deit.runtime.processes import Processes
from deit.train.whole_batch_norm import normalized


class ShareOfStep:
    """The images at hand among those of the step, and the layers of a student that need to know them.

    Changes the types of dropout, drop path and batch norm layers in place; outside of `at_hand` they do what they did
    before. Nothing changes where one process does a step in one part.

    Args:
        student: Whose layers it is.
        processes: Those that share a step.
        parts: Into which each process divides its share.

    Attributes:
        draws_whole: Whether random draws are made for the whole step; each process then needs the same random state
            at the beginning of each part.
        notes: What depends on the number of processes or parts all the same, in sentences.
    """

    def __init__(self, student: nn.Module, processes: Processes, parts: int) -> None:
        self.processes, self._parts = processes, parts
        self.total = 0
        self.rows: Tensor | None = None
        self.notes: list[str] = []
        divided = processes.world_size * parts > 1
        draws_of_timm, norms_of_timm = _types_of_timm(student) if divided else ({}, {})
        draws, norms_of_step = _DRAWS | draws_of_timm, _NORMS | norms_of_timm
        others = _random_layers_of_other_kinds(student, draws.keys()) if divided else []
        self.draws_whole = divided and not others
        if others:
            self.notes.append(
                f"Random draws of {', '.join(others)} are made in each process and part alone, so this training "
                "depends on the number of processes and on accumulate."
            )
        if self.draws_whole:
            self._take_over(student, draws)
        norms = [m for m in student.modules() if isinstance(m, _BatchNorm)]
        if norms and parts > 1:
            self.notes.append(
                f"Batch norm sees the {parts} parts of accumulate={parts} one by one, so this training is not that of "
                "the whole batch at once. Pass accumulate=1 where memory allows it."
            )
        if processes.world_size > 1:
            self._take_over(student, norms_of_step)
            synchronized = {kind.__name__ for kind in norms_of_step.values()}
            left = sorted({type(m).__name__ for m in student.modules() if isinstance(m, _BatchNorm)} - synchronized)
            if left:
                self.notes.append(
                    f"{', '.join(left)} sees the images of each process alone, so this training depends on how many "
                    "processes there are."
                )

    def _take_over(self, student: nn.Module, types: dict[type[nn.Module], type[nn.Module]]) -> None:
        for module in student.modules():
            if type(module) in types:
                module.__class__ = types[type(module)]
                module.share = self  # type: ignore[assignment]

    @contextmanager
    def at_hand(self, part: int, images: int, device: torch.device) -> Iterator[None]:
        """Says which images the student is about to see, for a block.

        Args:
            part: Number of the part, from 0.
            images: In each part.
            device: Where they are.
        """
        world_size = self.processes.world_size
        first = self.processes.rank + part * images * world_size
        self.total = images * self._parts * world_size
        self.rows = torch.arange(first, first + images * world_size, world_size, device=device)
        try:
            yield
        finally:
            self.rows = None


def _random_layers_of_other_kinds(student: nn.Module, known: Collection[type[nn.Module]]) -> list[str]:
    """Names the layers that draw in ways of their own: fused attention with dropout, dropout of whole channels, ..."""
    found = set()
    for module in student.modules():
        kind = type(module)
        if isinstance(module, _DropoutNd):
            active = module.p > 0 and kind is not nn.Dropout
        elif isinstance(module, Attention):
            active = module.dropout_rate > 0
        elif kind in known:
            active = False
        else:  # timm's heads drop by functions; blocks of others by attributes of these names
            names = ("drop_rate", "drop_prob", "attn_drop_rate")
            active = any(isinstance(rate := getattr(module, name, 0), float) and rate > 0 for name in names)
        if active:
            found.add(kind.__name__)
    return sorted(found)


class _Dropout(nn.Dropout):
    """Dropout whose draws are those of the whole step."""

    share: Any

    def forward(self, input: Tensor) -> Tensor:
        share = self.share
        if share.rows is None or not self.training or not self.p:
            return super().forward(input)
        whole = F.dropout(input.new_ones(share.total, *input.shape[1:]), self.p)
        return input * whole[share.rows]


class _DropPath(DropPath):
    """Drop path whose draws are those of the whole step."""

    share: Any

    def draw(self, x: Tensor) -> Tensor:
        if self.share.rows is None:
            return super().draw(x)
        return super().draw(x[:1].expand(self.share.total, *x.shape[1:]))[self.share.rows]


class _BatchNorm1d(nn.BatchNorm1d):
    share: Any

    def forward(self, input: Tensor) -> Tensor:
        whole = self.training and self.share.rows is not None
        return normalized(self, input) if whole else super().forward(input)


class _BatchNorm2d(nn.BatchNorm2d):
    share: Any

    def forward(self, input: Tensor) -> Tensor:
        whole = self.training and self.share.rows is not None
        return normalized(self, input) if whole else super().forward(input)


_DRAWS: dict[type[nn.Module], type[nn.Module]] = {nn.Dropout: _Dropout, DropPath: _DropPath}
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
}


def _types_of_timm(student: nn.Module) -> tuple[dict[type[nn.Module], type[nn.Module]], ...]:
    """Returns what takes the place of timm's drop path and batch norm; nothing for a student without layers of timm.

    The import of timm takes seconds, and a student that has its layers has it loaded already.
    """
    if not any(type(module).__module__.partition(".")[0] == "timm" for module in student.modules()):
        return {}, {}
    from deit.train.whole_step_timm import DRAWS, NORMS

    return DRAWS, NORMS

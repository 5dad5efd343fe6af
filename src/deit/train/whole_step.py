"""Makes random draws and batch norm independent of the number of processes and accumulated parts.

Dropout and drop path draw for all images of the step in every process and part, and then use the rows of their own
images. Batch norm takes mean and variance over all processes. `ShareOfStep.notes` names the layers for which this is
not possible.
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
    """Position of the current images within the step, for the layers of a student that need it.

    Replaces the classes of dropout, drop path and batch norm layers in place. Outside of `at_hand` these layers behave
    as before. Replaces nothing if one process computes a step in one part.

    Args:
        student: Module whose layers are replaced.
        processes: Processes that share a step.
        parts: Number of parts into which each process divides its share.

    Attributes:
        draws_whole: True if random draws are made for the whole step. Each process then needs the same random state
            at the start of each part.
        notes: Sentences that name what still depends on the number of processes or parts.
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
                f"{', '.join(others)} makes random draws in each process and part separately, so this training "
                "depends on the number of processes and on accumulate."
            )
        if self.draws_whole:
            self._take_over(student, draws)
        norms = [m for m in student.modules() if isinstance(m, _BatchNorm)]
        if norms and parts > 1:
            self.notes.append(
                f"Batch norm normalizes the {parts} parts of accumulate={parts} one by one, so this training differs "
                "from one on the whole batch. Pass accumulate=1 if memory allows it."
            )
        if processes.world_size > 1:
            self._take_over(student, norms_of_step)
            synchronized = {kind.__name__ for kind in norms_of_step.values()}
            left = sorted({type(m).__name__ for m in student.modules() if isinstance(m, _BatchNorm)} - synchronized)
            if left:
                self.notes.append(
                    f"{', '.join(left)} normalizes the images of each process alone, so this training depends on the "
                    "number of processes."
                )

    def _take_over(self, student: nn.Module, types: dict[type[nn.Module], type[nn.Module]]) -> None:
        for module in student.modules():
            if type(module) in types:
                module.__class__ = types[type(module)]
                module.share = self  # type: ignore[assignment]

    @contextmanager
    def at_hand(self, part: int, images: int, device: torch.device) -> Iterator[None]:
        """Sets the images that the student sees inside a `with` block.

        Args:
            part: Number of the part, from 0.
            images: Number of images in each part.
            device: Device of the images.
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
    """Names layers whose draws cannot be shared: fused attention with dropout, dropout of whole channels, ..."""
    found = set()
    for module in student.modules():
        kind = type(module)
        if isinstance(module, _DropoutNd):
            active = module.p > 0 and kind is not nn.Dropout
        elif isinstance(module, Attention):
            active = module.dropout_rate > 0
        elif kind in known:
            active = False
        else:  # timm's heads and other blocks drop by functions; their rates have these names
            names = ("drop_rate", "drop_prob", "attn_drop_rate")
            active = any(isinstance(rate := getattr(module, name, 0), float) and rate > 0 for name in names)
        if active:
            found.add(kind.__name__)
    return sorted(found)


class _Dropout(nn.Dropout):
    """Dropout that draws for the whole step."""

    share: Any

    def forward(self, input: Tensor) -> Tensor:
        share = self.share
        if share.rows is None or not self.training or not self.p:
            return super().forward(input)
        whole = F.dropout(input.new_ones(share.total, *input.shape[1:]), self.p)
        return input * whole[share.rows]


class _DropPath(DropPath):
    """Drop path that draws for the whole step."""

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
    """Returns the replacements of timm's drop path and batch norm; none for a student without layers of timm.

    Importing timm takes seconds, so only students that already use timm import it.
    """
    if not any(type(module).__module__.partition(".")[0] == "timm" for module in student.modules()):
        return {}, {}
    from deit.train.whole_step_timm import DRAWS, NORMS

    return DRAWS, NORMS

"""Sums the losses of the steps since the last evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deit.runtime.processes import Processes

_PREFIX = "losses."  # of the names in a training state


class LossSums:
    """Sums of losses by name, each over this process's share of the steps.

    Args:
        sums: Name -> sum; none at the start of a run.
    """

    def __init__(self, sums: Mapping[str, Tensor] | None = None) -> None:
        self._sums = dict(sums or {})

    def __bool__(self) -> bool:
        return bool(self._sums)

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], device: torch.device) -> LossSums:
        """Returns the sums of a training state."""
        found = {name: value.to(device) for name, value in tensors.items() if name.startswith(_PREFIX)}
        return cls({name.removeprefix(_PREFIX): value for name, value in found.items()})

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds the losses of a step."""
        for name, loss in losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss

    def are_finite(self) -> bool:
        """Whether no step had an infinite or NaN loss."""
        return bool(torch.isfinite(self._sums["loss"]))

    def means(self, steps: int, processes: Processes) -> dict[str, float]:
        """Returns the mean of each loss over a number of steps and all processes, as "train_NAME"."""
        totals = torch.stack(list(self._sums.values())).double().cpu().numpy()
        means = processes.sum(totals) / (steps * processes.world_size)
        return {f"train_{name}": float(mean) for name, mean in zip(self._sums, means, strict=True)}

    def tensors(self, processes: Processes) -> dict[str, Tensor]:
        """Returns the sums for a training state: the mean over the processes, which a resumed run gives to each."""
        sums = self._sums
        if processes.world_size > 1 and sums:
            values = processes.sum_tensor(torch.stack(list(sums.values()))) / processes.world_size
            sums = dict(zip(sums, values.unbind(), strict=True))
        return {f"{_PREFIX}{name}": value for name, value in sums.items()}

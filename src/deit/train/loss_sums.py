"""Sums the losses of the steps since the last evaluation, but for those that were skipped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deit.runtime.processes import Processes

_PREFIX = "losses."  # of the names in a training state
_TAKEN = "taken"  # a sum beside those of the losses: the number of steps that were not skipped


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
    def from_state(cls, tensors: Mapping[str, Tensor], device: torch.device, steps: int) -> LossSums:
        """Returns the sums of a training state.

        Args:
            tensors: Of the state.
            device: Of the training.
            steps: Steps since the last evaluation; states of older versions, which skipped none, do not count them.
        """
        found = {name: value.to(device) for name, value in tensors.items() if name.startswith(_PREFIX)}
        sums = {name.removeprefix(_PREFIX): value for name, value in found.items()}
        return cls({_TAKEN: torch.tensor(float(steps), device=device), **sums} if sums else {})

    def add(self, losses: Mapping[str, Tensor], taken: Tensor) -> None:
        """Adds the losses of a step; nothing if it was not `taken`, ()."""
        for name, loss in {_TAKEN: taken.float(), **losses}.items():
            counted = torch.where(taken, loss, 0)
            self._sums[name] = self._sums[name] + counted if name in self._sums else counted

    def means(self, processes: Processes) -> dict[str, float]:
        """Returns the mean of each loss over steps and processes, as "train_NAME"; none if all steps were skipped."""
        totals = torch.stack(list(self._sums.values())).double().cpu().numpy()
        sums = dict(zip(self._sums, processes.sum(totals), strict=True))
        taken = sums.pop(_TAKEN)
        return {f"train_{name}": float(value / taken) for name, value in sums.items()} if taken else {}

    def tensors(self, processes: Processes) -> dict[str, Tensor]:
        """Returns the sums for a training state: the mean over the processes, which a resumed run gives to each."""
        sums = self._sums
        if processes.world_size > 1 and sums:
            values = processes.sum_tensor(torch.stack(list(sums.values()))) / processes.world_size
            sums = dict(zip(sums, values.unbind(), strict=True))
        return {f"{_PREFIX}{name}": value for name, value in sums.items()}

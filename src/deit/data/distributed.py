"""Several processes that work on one training or one evaluation, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

T = TypeVar("T")


class FirstProcessError(ValueError):
    """The first process met an error, which it reports itself; here it only ends the work, as that error does there."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The place of this process among those that work together; alone, it is the first of one.

    Attributes:
        rank: Number of this process, from 0.
        world_size: How many there are.
        local_rank: Number of this process on its machine, which is the number of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def sum(self, counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Returns the sum of an array over all processes; each must pass one of the same shape."""
        if self.world_size == 1:
            return counts
        parts: list[Any] = [None] * self.world_size
        distributed.all_gather_object(parts, counts)
        # Added in the order of the ranks: every process gets the same bits.
        total: npt.NDArray[np.float64] = np.sum(parts, axis=0)
        return total

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes, where it is: no GPU waits for Python."""
        if self.world_size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def swap(self, values: Tensor) -> Tensor:
        """Returns the values of the process at the other end: the first gets those of the last, and so on.

        Args:
            values: Of the same shape on every process.
        """
        other = self.world_size - 1 - self.rank
        if other == self.rank:
            return values
        values = values.contiguous()
        received = torch.empty_like(values)
        both = [
            distributed.P2POp(distributed.isend, values, other),
            distributed.P2POp(distributed.irecv, received, other),
        ]
        for work in distributed.batch_isend_irecv(both):
            work.wait()
        return received

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Returns, for each flag, whether it is set in at least one process."""
        if self.world_size == 1:
            return flags
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        values = torch.tensor(flags, dtype=torch.int32, device=device)
        distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist())

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.world_size > 1:
            distributed.barrier()

    def on_first(self, function: Callable[[], T]) -> T:
        """Runs a function on the first process alone, and returns its result on all of them.

        Raises:
            FirstProcessError: On the other processes: it raised an error on the first one, where that error goes on.
        """
        if self.world_size == 1:
            return function()
        outcome: list[Any] = [None, ""]
        failure: Exception | None = None
        if self.is_first:
            try:
                outcome[0] = function()
            except Exception as error:  # noqa: BLE001  # whatever it is, the others must not wait for ever
                failure, outcome[1] = error, str(error) or type(error).__name__
        distributed.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        if outcome[1]:
            raise FirstProcessError(outcome[1])
        result: T = outcome[0]
        return result


def current_processes() -> Processes:
    """Returns the place of this process in the group that is open, or a place alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    return Processes(
        rank=distributed.get_rank(),
        world_size=distributed.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


@contextmanager
def process_group(device: str | None = None) -> Iterator[Processes]:
    """Joins the other processes for a block, when `torchrun` started this one; without torchrun it does nothing.

    Args:
        device: Where the work will be done: "cpu" talks by gloo, "cuda" by nccl; None takes the GPU if there is one.

    Yields:
        The place of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield current_processes()
        return
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield current_processes()
    finally:
        distributed.destroy_process_group()

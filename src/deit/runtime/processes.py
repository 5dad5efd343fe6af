"""Connects the processes of one training or evaluation, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from deit.core.errors import UserError
from deit.runtime.devices import local_rank, resolve
from deit.runtime.signals import deadly_signals
from deit.runtime.together.alike import describe_differences, versions
from deit.runtime.together.joining import name_of_start
from deit.runtime.together.watch import LostProcessError, Watch, begin_watch

T = TypeVar("T")

# How long processes wait for one that checks a data set or writes a file: as long as that takes. One that has ended is
# noticed at once, since its connection ends. The steps of a training have PyTorch's limit.
_PATIENCE = timedelta(days=7)


class FirstProcessError(UserError):
    """Another process met an error, which it reports itself; here it only ends the work, as that error does there."""


class OtherProcessError(UserError):
    """Another process met an error, which the first process reports."""


@dataclass(frozen=True)
class _Failure:
    """Takes the place of a process's numbers, when it has none."""

    message: str


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
    _group: Any = field(default=None, compare=False, repr=False)  # of a thread of its own, see `apart`

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def sum(self, counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Returns the sum of an array over all processes; each must pass one of the same shape.

        Raises:
            OtherProcessError: Another process failed in the meantime, see `sharing`.
            FirstProcessError: Likewise, on processes but the first.
        """
        if self.world_size == 1:
            return counts
        parts = self._gather(counts)
        failed = [part for part in parts if isinstance(part, _Failure)]
        if failed:
            raise (OtherProcessError if self.is_first else FirstProcessError)(failed[0].message)
        # Added in the order of the ranks: every process gets the same bits.
        total: npt.NDArray[np.float64] = np.sum(parts, axis=0)
        return total

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, in the order of the ranks."""
        return [value] if self.world_size == 1 else self._gather(value)

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes, where it is: no GPU waits for Python."""
        if self.world_size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def whole(self, tensor: Tensor) -> Tensor:
        """Gathers a tensor of which each process holds a shard, as FSDP leaves it; returns any other as it is.

        Every process must call it, since gathering is a collective operation.
        """
        gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)  # DTensor takes seconds to import
        return tensor if gather is None else gather()

    def apart(self) -> Processes:
        """Returns the same processes with connections of their own, for a thread that works beside the run's.

        Every process must call it. Of the result only `gather`, `on_each` and `on_first` may be used, in one thread;
        `leave` ends it.
        """
        if self.world_size == 1:
            return self
        return replace(self, _group=distributed.new_group(backend="gloo", timeout=_PATIENCE))

    def leave(self) -> None:
        """Ends the connections that `apart` made."""
        if self._group is not None:
            distributed.destroy_process_group(self._group)

    def _connections(self) -> Any:
        return _patient_group() if self._group is None else self._group

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self._connections())
        return values

    def gathered(self, value: T) -> list[T] | None:
        """Returns in the first process what all have, in the order of their ranks, and in the others None."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        distributed.gather_object(value, values, dst=0, group=_patient_group())
        return values

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """For a block that ends in `sum`: an error of one process ends it in all of them, and the first one tells.

        A bug is not passed on: it ends its own process with a traceback, and by that the others.

        Raises:
            FirstProcessError: On processes but the first, in place of an error that the first one raises.
        """
        try:
            yield
        except (UserError, OSError) as error:
            if self.world_size > 1 and not isinstance(error, (FirstProcessError, OtherProcessError)):
                self._gather(_Failure(str(error)))
                if not self.is_first:
                    raise FirstProcessError(str(error)) from error
            raise

    def on_each(self, function: Callable[[], T]) -> T:
        """Runs a function, in which processes do not wait for each other, on every process; all succeed or none.

        Raises:
            FirstProcessError: In place of errors but that of the first process that has one.
        """
        if self.world_size > 1:
            self._connections()  # before one keeps the others waiting
        failure: Exception | None = None
        try:
            result = function()
        except Exception as error:
            if self.world_size == 1:
                raise
            failure = error
        if self.world_size > 1:
            messages = self._gather(None if failure is None else str(failure) or type(failure).__name__)
            failed = [rank for rank, message in enumerate(messages) if message is not None]
            if failed and failed[0] == self.rank and failure is not None:
                raise failure
            if failed:
                raise FirstProcessError(messages[failed[0]])
        return result

    def must_agree(self, facts: Mapping[str, Any]) -> None:
        """Refuses to work together if a process has other facts than the first; all must call it.

        Raises:
            UserError: One has; the message names it and the facts.
            FirstProcessError: Likewise, on processes but the first.
        """
        told = describe_differences(self._gather(dict(facts))) if self.world_size > 1 else ""
        if told:
            raise (UserError if self.is_first else FirstProcessError)(told)

    def first_text(self, text: str) -> str:
        """Returns the first text that is not empty, in the order of the processes."""
        return text if self.world_size == 1 else next(filter(None, self._gather(text)), "")

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
        return tuple(number > 0 for number in self.largest(*map(int, flags)))

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """Returns, for each number, the largest that a process has."""
        if self.world_size == 1:
            return numbers
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        values = torch.tensor(numbers, dtype=torch.int32, device=device)
        distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
        return tuple(int(value) for value in values.tolist())

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.world_size > 1:
            distributed.barrier(group=_patient_group())

    def on_first(self, function: Callable[[], T]) -> T:
        """Runs a function on the first process alone, and returns its result on all of them, however long it takes.

        Raises:
            FirstProcessError: On the other processes: it raised an error on the first one, where that error goes on.
        """
        if self.world_size == 1:
            return function()
        group = self._connections()  # before this one keeps the others waiting
        outcome: list[Any] = [None, ""]
        failure: Exception | None = None
        if self.is_first:
            try:
                outcome[0] = function()
            except Exception as error:  # noqa: BLE001  # whatever it is, the others must not wait for ever
                failure, outcome[1] = error, str(error) or type(error).__name__
        distributed.broadcast_object_list(outcome, src=0, group=group)
        if failure is not None:
            raise failure
        if outcome[1]:
            raise FirstProcessError(outcome[1])
        result: T = outcome[0]
        return result


_patient: tuple[Any, Any] | None = None  # the group of all processes, and one of the same that waits longer


def _patient_group() -> Any:
    """Returns a group of all processes that talks by gloo and waits; all of them ask for it at the same place first."""
    global _patient  # as PyTorch's own group, it belongs to the process
    whole = distributed.group.WORLD
    if _patient is None or _patient[0] is not whole:
        _patient = whole, distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return _patient[1]


def _forget_patient_group() -> None:
    """Lets go of it: a group that lives on after the end of PyTorch's own has threads, and they abort the process."""
    global _patient
    _patient = None


def current_processes() -> Processes:
    """Returns the place of this process in the group that is open, or a place alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    return Processes(
        rank=distributed.get_rank(),
        world_size=distributed.get_world_size(),
        local_rank=local_rank(),
    )


@contextmanager
def process_group(device: str | None = None) -> Iterator[Processes]:
    """Joins the other processes for a block, when `torchrun` started this one; without torchrun it does nothing.

    Args:
        device: Where the work will be done: "cpu" talks by gloo, "cuda" by nccl; "auto" and None take the GPU if there
            is one.

    While they work, each process watches the others: when one ends without a word, all end within ten seconds, see
    `Watch`.

    Yields:
        The place of this process.

    Raises:
        LostProcessError: Another process has ended, which has been told.
        UserError: A process cannot connect to the first one, or has other versions of libraries.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield current_processes()
        return
    chosen = resolve(device).device
    on_gpu = chosen.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(chosen)
    # Numbers that Python asks for travel by gloo even so: no GPU has to wait for them.
    with deadly_signals():  # PyTorch waits for the others without looking at them
        store, rank, world_size = next(distributed.rendezvous("env://"))  # type: ignore[attr-defined]
        name = name_of_start(store, rank, world_size)
        store = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    watch: Watch | None = None
    fails = True
    try:
        processes = current_processes()
        watch = begin_watch(processes.rank, processes.local_rank, processes.gather)
        processes.must_agree(versions())
        yield processes
        fails = False
    except Exception as error:
        if watch is not None and watch.explains(error):
            raise LostProcessError(str(error)) from error
        error.within_group = True  # type: ignore[attr-defined]  # it may be this process's alone
        fails = not _is_agreed(error)
        raise
    finally:
        if watch is not None:
            watch.leave(fails=fails)
        _forget_patient_group()
        distributed.destroy_process_group()
        if watch is not None:
            watch.close()


def _is_agreed(error: Exception) -> bool:
    """Whether all processes end the work together: the first tells why, or a signal stopped them after a step."""
    return isinstance(error, (FirstProcessError, OtherProcessError)) or hasattr(error, "exit_code")

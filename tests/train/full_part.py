"""Writes two states in parts, the second while the disk of the second process is full; see test_state_writer.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import deit.train.run.state
from deit.core.errors import UserError
from deit.runtime.processes import process_group
from deit.train.run.state import State
from deit.train.states.state_writer import StateWriter


def full(*args: object, **kwargs: object) -> None:
    """Stands for the writing of tensors."""
    raise SafetensorError("I/O error: No space left on device (os error 28)")


if __name__ == "__main__":
    with process_group("cpu") as processes:
        mesh = init_device_mesh("cpu", (processes.world_size,))
        divided = distribute_tensor(torch.arange(3.0), mesh, [Shard(0)])
        with StateWriter(Path(sys.argv[1]), processes, last=2) as states:
            states.save(State(step=1, tensors={"divided": divided}, meta={}))
            states.wait()
            if not processes.is_first:
                deit.train.run.state.save_file = full  # type: ignore[assignment]
            states.save(State(step=2, tensors={"divided": divided}, meta={}))
            try:
                states.wait()
            except UserError as error:
                sys.stdout.write(f"{processes.rank} {type(error).__name__} {error}\n")

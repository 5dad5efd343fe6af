"""Saves a state whose tensors are sharded over the processes that torchrun starts; see test_processes.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from deit.core.errors import UserError
from deit.runtime.processes import process_group
from deit.train.run.state import State, save_state

if __name__ == "__main__":
    with process_group("cpu") as processes:
        mesh = init_device_mesh("cpu", (processes.world_size,))
        sharded = distribute_tensor(torch.arange(10.0).reshape(5, 2), mesh, [Shard(0)])
        assert len(sharded.to_local()) < 5
        state = State(step=3, tensors={"sharded": sharded, "plain": torch.ones(3)}, meta={"teacher": None})
        try:
            end = save_state(Path(sys.argv[1]) / "states", state).name
        except (UserError, OSError) as error:
            end = type(error).__name__
        sys.stdout.write(f"{end}\n")

"""Where a training computes."""

from __future__ import annotations

import torch

from deit.runtime.devices import chosen_device, on_device
from deit.runtime.processes import current_processes


def training_device(device: str | torch.device | None) -> torch.device:
    """Returns the device of a training, which is there; of several processes each has its own GPU.

    Args:
        device: See `chosen_device`.

    Raises:
        ValueError: See `chosen_device`.
    """
    name = chosen_device(None if device is None else str(device))
    if name == "cuda" and current_processes().world_size > 1:
        name = f"cuda:{current_processes().local_rank}"
    on_device(torch.empty(0), name)
    return torch.device(name)

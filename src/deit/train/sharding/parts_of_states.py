"""The files of a state of which each process wrote a part: the safetensors of `torch.distributed.checkpoint`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.runtime.library_order import make_order_safe
from deit.train.sharding.fully_sharded import Layout, layout_of

_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # in the header of a file, as PyTorch names them


def first_indices(tensor: Any) -> tuple[int, ...]:
    """Returns where this process's part of a divided tensor begins in the whole one, for each dimension."""
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.offsets)


def header_of_parts(offsets: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Returns what the header of a file says of the parts in it; `HuggingFaceStorageReader` reads it.

    Args:
        offsets: Name of a tensor in the file -> where its part begins in the whole one.
    """
    return {_PLACES: json.dumps({name: {_OFFSETS: list(place)} for name, place in offsets.items()})}


def read_parts(folder: Path, layout: Layout) -> dict[str, Tensor]:
    """Reads the tensors of a state from all safetensors files of a folder, by `torch.distributed.checkpoint`.

    Args:
        folder: Of the state; any number of processes wrote it.
        layout: Of these tensors a process reads its own part alone. The others are whole, on the CPU.
    """
    make_order_safe()
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    def empty(name: str, found: Any) -> Tensor:
        like: Any = layout_of(name, layout)
        if like is None or like.shape != found.size:
            return torch.empty(found.size, dtype=found.properties.dtype)
        from torch.distributed import tensor

        options = {"device_mesh": like.device_mesh, "placements": like.placements}
        return tensor.empty(*found.size, dtype=found.properties.dtype, **options)

    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: empty(name, each) for name, each in found.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as it should be: `no_dist`
        try:
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        except CheckpointException as error:  # which is no `Exception`
            raise next(iter(error.failures.values()))[0] from error
    return tensors

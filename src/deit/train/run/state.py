"""Writes and reads training states. A state is complete on the disk, or it does not exist."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deit.core.errors import DamagedFileError, UserError, parsing, read_json
from deit.core.files import replace_folder_content, sha256_of_file
from deit.core.weights.files import find_weights
from deit.core.writing import writing
from deit.models.weights.tensor_source import open_source, read_tensors
from deit.runtime.processes import Processes, current_processes

logger = logging.getLogger(__name__)

_TENSORS = "tensors.safetensors"
_META = "meta.json"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """A training state.

    Attributes:
        step: Steps done.
        tensors: Weights, optimizer state and running averages, by name.
        meta: Plain values.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_state(
    folder: Path, state: State, processes: Processes | None = None, *, last: int = 2, good: int | None = None
) -> Path:
    """Writes a state into `folder/step-N`, and keeps the newest ones and the one to go back to.

    A collective operation: every process calls it with its own tensors. Sharded tensors are gathered one by one, and
    the first process writes. It writes files into a temporary folder, then a manifest with their hashes, syncs all,
    and renames the folder.

    Args:
        folder: Folder of the states.
        state: The state; each process has the same names in the same order.
        processes: The processes that save; None takes those of the open process group.
        last: How many of the newest states to keep, with this one.
        good: Step of one more state to keep; None for none.

    Returns:
        The new folder.

    Raises:
        WritingError: The first process cannot write.
        FirstProcessError: On the other processes, in place of an error of the first.
    """
    processes = current_processes() if processes is None else processes
    tensors = {}
    for name, tensor in state.tensors.items():
        whole = processes.whole(tensor)
        if processes.is_first:
            tensors[name] = whole.detach().cpu().contiguous()

    def write() -> Path:
        target = _write(folder, state.step, tensors, state.meta)
        spared = None if good is None else state_folder(folder, good)
        for old in _step_folders(folder)[:-last]:
            if old != spared:
                shutil.rmtree(old, ignore_errors=True)
        return target

    return processes.on_first(write)


def _write(folder: Path, step: int, tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> Path:
    target = state_folder(folder, step)
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
    with replace_folder_content(target) as temporary:
        save_file(tensors, temporary / _TENSORS)
        (temporary / _META).write_text(json.dumps({"step": step, **meta}), encoding="utf-8")
        manifest = {name: _hash(temporary / name) for name in (_TENSORS, _META)}
        (temporary / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return target


def state_folder(folder: Path, step: int) -> Path:
    """Returns the folder of the state after a step; it need not exist."""
    return folder / f"step-{step:08d}"


def has_states(folder: Path) -> bool:
    """Whether there are states, damaged or not."""
    return bool(_step_folders(folder))


def remove_states(folder: Path) -> None:
    """Removes the folder of states and the list of the run's images in it; files that cannot be removed stay."""
    shutil.rmtree(folder, ignore_errors=True)


def newest_state(folder: Path) -> Path | None:
    """Returns the newest complete state, or None. Does not read its content."""
    complete = [path for path in _step_folders(folder) if (path / _MANIFEST).is_file()]
    return complete[-1] if complete else None


def newest_values(folder: Path) -> dict[str, Any]:
    """Returns the plain values of the newest state that can be read; nothing where there is none. Checks no hashes."""
    for path in reversed(_step_folders(folder)):
        try:
            return read_json(path / _META, "the values of a training state")
        except (OSError, UserError):
            continue
    return {}


def load_state(folder: Path) -> State | None:
    """Reads the newest complete state of a folder, or None when none was ever saved.

    Skips damaged states with a warning.

    Raises:
        ValueError: There are states, and all of them are damaged.
    """
    paths = _step_folders(folder)
    for path in reversed(paths):
        state = read_state(path)
        if state is not None:
            return state
    if paths:
        raise UserError(f"Every training state in {folder} is damaged. Begin a new run in another folder.")
    return None


def read_state(path: Path) -> State | None:
    """Reads the state in a folder `step-N`; None, with a warning, if it is missing or damaged."""
    try:
        manifest = read_json(path / _MANIFEST, "the manifest of a training state")
        damaged = [name for name in (_TENSORS, _META) if manifest.get(name) != _hash(path / name)]
        if not damaged:
            return _read(path)
    except (OSError, UserError) as error:
        logger.warning("Passed over the training state %s: %s", path, error)
        return None
    logger.warning("Passed over the training state %s: %s is damaged.", path, damaged[0])
    return None


def _read(path: Path) -> State:
    meta = read_json(path / _META, "the values of a training state")
    with parsing(path, "a training state"):
        # Into memory: the kept weights stay as long as the run, and the file might be written into.
        tensors = read_tensors(open_source(find_weights(path / _TENSORS, use_safetensors=True)))
        return State(step=int(meta.pop("step")), tensors=tensors, meta=meta)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's tensors by name. Its settings come from the recipe and are not stored."""
    return {
        f"optimizer.{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores the tensors that `optimizer_tensors` returned."""
    states: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith("optimizer."):
            _, index, name = full_name.split(".", 2)
            states.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _step_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _hash(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe blocks, and a device never ends
        raise DamagedFileError(f"{path} is a folder, a pipe or a device, not a file.")
    return sha256_of_file(path)

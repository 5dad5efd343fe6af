"""Writes and reads training states. A state is complete on the disk, or it does not exist."""

from __future__ import annotations

import contextlib
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

from deit.core.config.file_fields import FileFields
from deit.core.errors import DamagedFileError, UserError, parsing, read_json
from deit.core.files import replace_folder_content, sha256_of_file, sync_file
from deit.core.weights.files import find_weights
from deit.core.writing import writing
from deit.models.weights.tensor_source import open_source, read_tensors
from deit.runtime.processes import Processes, current_processes
from deit.train.sharding.fully_sharded import Layout, is_divided, own_parts
from deit.train.sharding.parts_of_states import first_indices, header_of_parts, read_parts

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


@dataclass(frozen=True, kw_only=True)
class StagedState:
    """A copy of a state in main memory, which the training does not change any more.

    Attributes:
        step: Steps done.
        tensors: This process's parts of tensors that are divided; in the first process the others, too.
        offsets: Name of a tensor -> where its part begins in the whole one, for each dimension.
        is_part: Whether each process writes a part of the state; else the first one writes it all.
        meta: Plain values as JSON.
    """

    step: int
    tensors: dict[str, Tensor]
    offsets: dict[str, tuple[int, ...]]
    is_part: bool
    meta: str


def stage_state(state: State, processes: Processes) -> StagedState:
    """Copies a state to main memory, of tensors that are divided among processes only this process's part.

    Args:
        state: Of this process; each has the same names.
        processes: Those that save.
    """
    tensors, offsets = {}, {}
    for name, tensor in state.tensors.items():
        (part,) = own_parts([tensor])
        if part.numel() if is_divided(tensor) else processes.is_first:
            tensors[name] = part.detach().to("cpu", copy=True).contiguous()
            offsets[name] = first_indices(tensor) if is_divided(tensor) else (0,) * tensor.ndim
    is_part = any(map(is_divided, state.tensors.values()))
    meta = json.dumps({"step": state.step, **state.meta})
    return StagedState(step=state.step, tensors=tensors, offsets=offsets, is_part=is_part, meta=meta)


def save_state(
    folder: Path, state: State, processes: Processes | None = None, *, last: int = 2, good: int | None = None
) -> Path:
    """Writes a state into `folder/step-N` and waits for it; a run writes its states by `StateWriter`.

    A collective operation: every process calls it with its own tensors.

    Args:
        folder: See `write_state`.
        state: See `stage_state`.
        processes: The processes that save; None takes those of the open process group.
        last: See `write_state`.
        good: See `write_state`.

    Returns:
        The new folder.

    Raises:
        WritingError: See `write_state`.
        FirstProcessError: On the other processes, in place of an error of one.
    """
    processes = current_processes() if processes is None else processes
    staged = stage_state(state, processes)
    if staged.is_part:
        return write_state(folder, staged, processes, last=last, good=good)
    return processes.on_first(lambda: write_state(folder, staged, Processes(), last=last, good=good))


def write_state(folder: Path, staged: StagedState, processes: Processes, *, last: int, good: int | None) -> Path:
    """Writes a state into `folder/step-N`, and keeps the newest ones and the one to go back to.

    Writes files into a temporary folder, reads them again for their hashes, then writes a manifest with these, syncs
    all, and renames the folder.

    Args:
        folder: Folder of the states.
        staged: Of this process.
        processes: Those that write a part each, into one folder that all see; or one alone.
        last: How many of the newest states to keep, with this one.
        good: Step of one more state to keep; None for none.

    Returns:
        The new folder.

    Raises:
        WritingError: This process cannot write. Nothing of the state is left behind.
        FirstProcessError: Another process cannot.
    """
    target = state_folder(folder, staged.step)
    with contextlib.ExitStack() as place:

        def begin() -> Path:
            with writing(target):
                folder.mkdir(parents=True, exist_ok=True)
            return place.enter_context(replace_folder_content(target))

        temporary = processes.on_first(begin)
        own = processes.on_each(lambda: _write_tensors(temporary, target, staged, processes))
        hashes = {name: digest for each in processes.gather(own) for name, digest in each.items()}

        def end() -> None:
            (temporary / _META).write_text(staged.meta, encoding="utf-8")
            manifest = {**hashes, _META: _hash(temporary / _META)}
            (temporary / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)  # of that name only a damaged one can be left, perhaps of others
            place.close()
            spared = None if good is None else state_folder(folder, good)
            for old in _step_folders(folder)[:-last]:
                if old != spared:
                    shutil.rmtree(old, ignore_errors=True)

        processes.on_first(end)
    return target


def _write_tensors(temporary: Path, target: Path, staged: StagedState, processes: Processes) -> dict[str, str]:
    """Writes this process's file into the temporary folder of a state; returns its name and hash."""
    name, header = _TENSORS, None
    if staged.is_part:
        name = f"tensors-{processes.rank + 1:05d}-of-{processes.world_size:05d}.safetensors"
        header = header_of_parts(staged.offsets)
    with writing(target, "Nothing of it is left behind."):
        save_file(staged.tensors, temporary / name, metadata=header)
        sync_file(temporary / name)
        return {name: _hash(temporary / name)}


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


def load_state(folder: Path, layout: Layout | None = None) -> State | None:
    """Reads the newest complete state of a folder, or None when none was ever saved.

    Skips damaged states with a warning.

    Args:
        folder: Folder of the states.
        layout: Of tensors of which only this process's part is wanted; None for none.

    Raises:
        ValueError: There are states, and all of them are damaged.
    """
    paths = _step_folders(folder)
    for path in reversed(paths):
        state = read_state(path, layout)
        if state is not None:
            return state
    if paths:
        raise UserError(f"Every training state in {folder} is damaged. Begin a new run in another folder.")
    return None


def read_state(path: Path, layout: Layout | None = None) -> State | None:
    """Reads the state in a folder `step-N`; None, with a warning, if it is missing or damaged. See `load_state`."""
    try:
        manifest = read_json(path / _MANIFEST, "the manifest of a training state")
        parts = [*path.glob("*.safetensors")] or [path / _TENSORS]
        names = sorted({_META, *manifest, *(part.name for part in parts)})
        damaged = [name for name in names if manifest.get(name) != _hash(path / name)]
        if not damaged:
            return _read(path, layout or {})
    except (OSError, UserError) as error:
        logger.warning("Passed over the training state %s: %s", path, error)
        return None
    logger.warning("Passed over the training state %s: %s is damaged.", path, damaged[0])
    return None


def fields_of(folder: Path) -> FileFields:
    """Returns what checks the plain values (`meta`) of the state in a folder."""
    return FileFields(folder, advice="Begin a new run in another folder")


def _read(path: Path, layout: Layout) -> State:
    meta = read_json(path / _META, "the values of a training state")
    with parsing(path, "a training state"):
        if layout or not (path / _TENSORS).is_file():
            tensors = read_parts(path, layout)
        else:  # into memory: the kept weights stay as long as the run, and the file might be written into
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

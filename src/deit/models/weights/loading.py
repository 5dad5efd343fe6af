"""Filling a model with tensors, and writing its tensors: the part of `pretrained.py` that moves numbers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deit.core.errors import ShapeError, UserError
from deit.core.file_names import PICKLE_NAME, WEIGHTS_NAME
from deit.core.files import replace_folder_content
from deit.core.weights.files import is_weight_file_name, write_in_files
from deit.core.weights.names import (
    DEIT,
    HUGGINGFACE,
    ORIGINAL,
    TIMM,
    Part,
    detect_dialect,
    layout,
    name_in_trunk,
    places,
)
from deit.core.weights.plan import LoadingInfo, plan_loading, refuse_missing_trunk
from deit.models.trunk.construction import reserve_memory
from deit.models.weights.tensor_source import DictSource, TensorSource
from deit.runtime.devices import accelerator

logger = logging.getLogger(__name__)


def _piece(state: Mapping[str, Tensor], part: Part) -> Tensor:
    return state[part.name].chunk(part.count)[part.index] if part.count > 1 else state[part.name]


# --- filling a model ----------------------------------------------------------------------------------


def load_tensors(
    model: nn.Module,
    tensors: TensorSource,
    *,
    base_prefix: str,
    ignore_mismatched_sizes: bool = False,
    may_lack_trunk: bool = False,
    source: object = "the checkpoint",
    before_reading: Callable[[list[str]], None] | None = None,
    empty: Collection[str] = (),
    may_map: bool = True,
) -> LoadingInfo:
    """Copies tensors of any dialect into a model.

    Args:
        model: Receives the values.
        tensors: Where they come from.
        base_prefix: What stands in front of the trunk in a model with heads, such as `deit.`.
        ignore_mismatched_sizes: See `from_pretrained`.
        may_lack_trunk: Whether missing tensors of the trunk start anew, too, for a caller who reads the result.
        source: Named in messages.
        before_reading: Called with the names (the model's) of the tensors that will not be filled, in full or in part.
        empty: Names (the model's) of parameters without values, which may get other memory.
        may_map: Whether these may become views of the file in place of copies.

    Raises:
        ValueError: A tensor other than a head is missing.
        ShapeError: Shapes differ.
    """
    state = model.state_dict()
    dialect = detect_dialect(tensors.shapes, default=DEIT if may_lack_trunk else HUGGINGFACE)
    plan = plan_loading(tensors.shapes, state, base_prefix=base_prefix, dialect=dialect)
    mismatched = []
    for name, part in list(plan.found.items()):
        expected = tuple(_piece(state, part).shape)
        if tensors.shapes[name] != expected:
            mismatched.append((name, tensors.shapes[name], expected))
    if not may_lack_trunk:
        refuse_missing_trunk(plan.missing, type(model).__name__, source)
    if mismatched and not ignore_mismatched_sizes:
        raise _wrong_shapes(mismatched, source)
    unfilled = [part.name for part in plan.missing.values()] + [plan.found.pop(name).name for name, _, _ in mismatched]
    if before_reading is not None:
        before_reading(unfilled)
    parameters = dict(model.named_parameters())
    # A tensor that is filled in part keeps the memory in which its initial values were drawn.
    waiting = {part.name: parameters[part.name] for part in plan.found.values() if part.name in empty}
    waiting = {name: parameter for name, parameter in waiting.items() if name not in unfilled}
    mapped = _map(waiting, tensors, plan.found) if may_map else {}
    reserve_memory([p for name, p in sorted(waiting.items()) if name not in mapped.values() and p.device.type == "cpu"])
    for part in plan.found.values():
        if part.name in parameters:  # it may have other memory now
            state[part.name] = parameters[part.name].data
    tensors.read_into({name: _piece(state, part) for name, part in plan.found.items() if name not in mapped})
    missing = list(plan.missing)
    for text, keys in (("start anew", missing + [m[0] for m in mismatched]), ("are not used", plan.unexpected)):
        if keys:
            logger.warning("%s: of %s, these tensors %s: %s", type(model).__name__, source, text, ", ".join(keys))
    return LoadingInfo(missing_keys=missing, unexpected_keys=plan.unexpected, mismatched_keys=mismatched)


def _wrong_shapes(mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]], source: object) -> ShapeError:
    shown = "; ".join(f"{n}: {a} in the file, {b} in the model" for n, a, b in mismatched[:3])
    return ShapeError(
        f"{len(mismatched)} tensors of {source} have another shape than the model's ({shown}). "
        "Pass ignore_mismatched_sizes=True to start them anew."
    )


def _map(parameters: Mapping[str, nn.Parameter], tensors: TensorSource, found: Mapping[str, Part]) -> dict[str, str]:
    """Lets parameters be views of the file where nothing has to be joined or converted.

    Returns:
        Name in the file -> name in the model, of those that are.
    """
    wanted = [
        name
        for name, part in found.items()
        if part.count == 1
        and part.name in parameters
        and parameters[part.name].device.type == "cpu"
        and parameters[part.name].dtype == tensors.dtypes[name]
    ]
    mapped = tensors.mapped(wanted)
    for name, tensor in mapped.items():
        parameters[found[name].name].data = tensor
    return {name: found[name].name for name in mapped}


def read_network(tensors: TensorSource, *, source: object = "the checkpoint") -> dict[str, Tensor]:
    """Reads all tensors of a checkpoint in any dialect, under the names of the network.

    Args:
        tensors: Where they come from.
        source: Named in messages.

    Returns:
        Name -> tensor; names inside the trunk have nothing in front (`blocks.0.attn.qkv.weight`), so that those of a
        bare trunk and of any model with heads are the same.

    Raises:
        ValueError: One of query, key and value is missing.
    """
    network: dict[str, Tensor] = {}
    destinations: dict[str, Tensor] = {}
    for name, part in places(tensors.shapes).items():
        own = name_in_trunk(part.name)
        shape = tensors.shapes[name]
        if own not in network:
            whole = (shape[0] * part.count, *shape[1:]) if part.count > 1 else shape
            network[own] = torch.empty(whole, dtype=tensors.dtypes[name])
        destinations[name] = network[own].chunk(part.count)[part.index] if part.count > 1 else network[own]
    if sum(tensor.numel() for tensor in destinations.values()) != sum(tensor.numel() for tensor in network.values()):
        raise UserError(f"{source} lacks some of its query, key and value tensors, or has a tensor twice.")
    tensors.read_into(destinations)
    return network


def load_published_tensors(
    model: Any,
    tensors: Mapping[str, Tensor],
    *,
    ignore_mismatched_sizes: bool = False,
    source: object = "the checkpoint",
) -> LoadingInfo:
    """Copies a dict of tensors of any dialect into a model; see `load_tensors`."""
    return load_tensors(
        model,
        DictSource(tensors),
        base_prefix=f"{model.base_model_prefix}.",
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        source=source,
    )


# --- the state dict of torch --------------------------------------------------------------------------


@dataclass(kw_only=True)
class TranslatedState:
    """A state dict of another dialect under the names of a model.

    Attributes:
        tensors: Name in the model -> tensor.
        missing_keys: In the names of the dialect.
        unexpected_keys: Likewise.
    """

    tensors: dict[str, Tensor]
    missing_keys: list[str]
    unexpected_keys: list[str]


def translate_state(
    state_dict: Mapping[str, Tensor], current: Mapping[str, Tensor], base_prefix: str
) -> TranslatedState | None:
    """Translates a state dict to the names of a model; None when it has them already.

    Args:
        state_dict: In any dialect.
        current: The model's own; where one of query, key and value is missing, its part is taken from here.
        base_prefix: See `load_tensors`. It is only supplied where the dialect has none (timm, original).
    """
    dialect = detect_dialect(state_dict, default=DEIT)
    if dialect == DEIT:
        return None
    prefix = base_prefix if dialect in (TIMM, ORIGINAL) else "\0"
    plan = plan_loading(state_dict, current, base_prefix=prefix, dialect=dialect)
    pieces: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    for name, part in plan.found.items():
        pieces.setdefault(part.name, {})[part.index] = state_dict[name]
        counts[part.name] = part.count
    tensors = {}
    for own, found in pieces.items():
        if counts[own] == 1:
            tensors[own] = found[0]
        else:
            own_pieces = current[own].chunk(counts[own])
            device = next(iter(found.values())).device
            whole = [found.get(i, piece.to(device)) for i, piece in enumerate(own_pieces)]
            tensors[own] = torch.cat(whole)
    return TranslatedState(tensors=tensors, missing_keys=list(plan.missing), unexpected_keys=plan.unexpected)


def refuse_incompatible(model: nn.Module, state: TranslatedState, current: Mapping[str, Tensor], strict: bool) -> None:
    """Raises what torch raises for missing, unexpected and misshapen tensors, before anything is changed.

    Raises:
        RuntimeError: As `torch.nn.Module.load_state_dict`, in the names of the dialect.
    """
    problems = []
    if strict and state.unexpected_keys:
        problems.append(f"Unexpected key(s) in state_dict: {_quoted(state.unexpected_keys)}.")
    if strict and state.missing_keys:
        problems.append(f"Missing key(s) in state_dict: {_quoted(state.missing_keys)}.")
    for name, tensor in state.tensors.items():
        if tensor.shape != current[name].shape:
            problems.append(
                f"size mismatch for {name}: copying a param with shape {tuple(tensor.shape)} from checkpoint, the "
                f"shape in current model is {tuple(current[name].shape)}."
            )
    if problems:
        text = "\n\t".join(problems)
        raise ShapeError(f"Error(s) in loading state_dict for {type(model).__name__}:\n\t{text}")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# --- writing ------------------------------------------------------------------------------------------


def published_tensors(state_dict: Mapping[str, Tensor], dialect: str = HUGGINGFACE) -> dict[str, Tensor]:
    """Returns the weights of a model under their names in a dialect, by default the published ones.

    Args:
        state_dict: Under the names of the model.
        dialect: One of `deit.core.weights.names.DIALECTS`. In Hugging Face's, query, key and value are apart.
    """
    return {
        name: _piece(state_dict, part).detach().cpu().contiguous() for name, part in layout(state_dict, dialect).items()
    }


def write_tensors(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    most_bytes: int,
    safe_serialization: bool = True,
    variant: str | None = None,
) -> list[str]:
    """Writes weights as safetensors, or as pickles (`pytorch_model.bin`); see `write_in_files`."""
    name, write = (WEIGHTS_NAME, _write) if safe_serialization else (PICKLE_NAME, _write_pickle)
    return write_in_files(tensors, folder, write, name=name, most_bytes=most_bytes, variant=variant)


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def _write_pickle(tensors: dict[str, Tensor], file: Path) -> None:
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, file)  # views would be stored whole


def save_model(
    model: Any,
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    most_bytes: int,
    safe_serialization: bool,
    variant: str | None,
) -> None:
    """Writes configuration and weights of a model into a folder, whole or not at all.

    Args:
        model: Has the configuration.
        folder: Made if missing; weight files of the same variant that are not written anew are removed.
        tensors: See `write_in_files`.
        most_bytes: Likewise.
        safe_serialization: Likewise.
        variant: Likewise.

    Raises:
        NotADirectoryError: There is a file of that name.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file. Pass a folder to save into.")
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    with replace_folder_content(folder) as temporary:
        config.save_pretrained(temporary)
        files = write_tensors(
            tensors, temporary, most_bytes=most_bytes, safe_serialization=safe_serialization, variant=variant
        )
    for file in folder.iterdir():
        if is_weight_file_name(file.name, variant) and file.name not in files:
            file.unlink()


# --- arguments ----------------------------------------------------------------------------------------


def resolve_dtype(dtype: torch.dtype | str | None, tensors: TensorSource) -> torch.dtype:
    """Returns a torch type, given itself or its name; "auto" takes the floating type of most numbers in the file.

    Raises:
        ValueError: It is none.
    """
    if dtype == "auto":
        counts: Counter[torch.dtype] = Counter()
        for name, kind in tensors.dtypes.items():
            counts[kind] += math.prod(tensors.shapes[name]) if kind.is_floating_point else 0
        return max(counts, key=lambda kind: counts[kind]) if counts.total() else torch.float32
    if dtype is None:
        return torch.float32
    resolved = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype):
        raise UserError(f"dtype must be a torch type, its name or 'auto'. Received: {dtype!r}.")
    return resolved


def resolve_device(device_map: Any) -> torch.device:
    """Returns the one device that a device map names.

    Args:
        device_map: A device or its name; a number of a GPU; {"": device}; "auto" takes the accelerator when there is
            one; None the CPU.

    Raises:
        ValueError: It names several devices or none: a DeiT fits on one.
    """
    if isinstance(device_map, Mapping):
        places_named = {str(device) for device in device_map.values()}
        if len(places_named) != 1:
            raise UserError(f"device_map must name one device. Received: {dict(device_map)!r}.")
        device_map = next(iter(device_map.values()))
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return accelerator()
    try:
        if isinstance(device_map, int) and not isinstance(device_map, bool):
            kind = accelerator().type
            device_map = f"{'cuda' if kind == 'cpu' else kind}:{device_map}"
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device_map must name one device, such as 'cpu'. Received: {device_map!r}.") from error

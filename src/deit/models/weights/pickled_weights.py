"""Weight files of PyTorch read as data: code in them is refused and never run, and what a file asks for is bounded."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.core.errors import DamagedFileError, parsing, shown
from deit.core.weights.formats import pickled_names
from deit.core.weights.names import detect_dialect, network_names, wrapper_of

logger = logging.getLogger(__name__)

# What tensors and dicts are made of. Not bytearray, which takes 32 bytes of pickle to fill the memory.
_READ = {
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.set", "builtins.complex",
    "torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state", "torch._tensor._rebuild_from_type_v2",
}  # fmt: skip
# What training scripts put beside the weights: arguments, scores, paths, dates. An empty object takes the place of
# each, so nothing of these packages is imported or called.
_LEFT_OUT = ("argparse.", "numpy.", "pathlib.", "datetime.", "collections.defaultdict", "types.SimpleNamespace",
             "omegaconf.", "yacs.", "easydict.",
             "ml_collections.", "mmengine.", "mmcv.", "lightning.", "pytorch_lightning.", "lightning_fabric.",
             "lightning_utilities.")  # fmt: skip

# Where training scripts put the weights; the first of them that is there is taken. timm's own loader takes the running
# average first, the paper's code evaluates and fine-tunes `model` although it writes `model_ema` as well.
_KEYS = ("state_dict_ema", "model", "state_dict", "model_state_dict", "model_state", "network", "net", "module",
         "weights", "params", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema")  # fmt: skip
_UNREMARKABLE = ((), ("model",), ("state_dict",), ("model_state_dict",))
_NO_WEIGHTS = ("optim", "lr_sched", "sched", "scaler", "amp", "loss", "callback", "loop", "hyper", "rng")
_MOST_SHARING = 4  # tensors may share their numbers, as tied weights do
_MOST_LEVELS, _MOST_DICTS = 5, 2_000
_INERT_BUILTINS = {f"builtins.{name}" for name in ("list", "dict", "frozenset", "tuple", "int", "float", "bool", "str",
                                                   "bytes", "slice", "range", "xrange", "object")}  # fmt: skip


class _Inert:
    """Stands for an object that is not needed; takes every construction and keeps nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _InertDict:
    """Stands for a kind of dict: PyTorch's reader fills nothing else than the dicts of Python."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return OrderedDict()


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A dict in the file that holds tensors."""

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    others: list[str]

    @property
    def is_network(self) -> bool:
        return bool(detect_dialect(self.tensors, default=""))

    @property
    def rank(self) -> tuple[bool, int, int]:
        last = self.path[-1] if self.path else ""
        known = _KEYS.index(last) if last in _KEYS else len(_KEYS)
        return not self.is_network, -1 if self.is_network and not self.path else known, len(self.path)


def read_pickle(file: Path) -> dict[str, Tensor]:
    """Reads a weight file of PyTorch (`.bin`, `.pth`, `.ckpt`, `.pth.tar`, any name) as data.

    What training scripts wrap around the weights ({"model": ...}, {"state_dict": ...}, dicts in dicts) is taken off,
    and what lies beside them (optimizers, counters, arguments) left out. Of plain weights and a running average (EMA),
    those are taken that the script's own code takes: `state_dict_ema` of timm, `model` of the paper's. One line of the
    log says so.

    Raises:
        DamagedFileError: The file is truncated or damaged, holds code, or something else than tensors.
    """
    names = {name.replace("__builtin__.", "builtins.") for name in pickled_names(file)}
    unknown = {name for name in names if not _is_known(name)}
    if unknown:
        raise DamagedFileError(
            f"{file} holds more than tensors: reading it would run code from it ({shown(min(unknown))}), which is "
            "refused. Get the weights as safetensors, or save the state dict alone on a machine that may run that code."
        )
    stubs: list[Any] = [(_InertDict if _is_a_dict(name) else _Inert, name) for name in names if _is_left_out(name)]
    with (
        parsing(file, "a weight file of PyTorch"),
        torch.serialization.safe_globals(stubs),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about old formats; what matters is whether it can be read
        value = _load(file)
    found = [candidate for candidate in _candidates(file, value) if _is_weights(candidate)]
    if not found:
        raise DamagedFileError(f"{file} must hold a dict of tensors. It holds: {_described(value)}.")
    chosen = _choose(file, found)
    _say(file, chosen, found)
    most = file.stat().st_size
    for name, tensor in chosen.tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.nbytes > most:
            raise DamagedFileError(
                f"{file} holds {shown(name)} without its numbers: its shape needs more than the file."
            )
    if sum(tensor.nbytes for tensor in chosen.tensors.values()) > _MOST_SHARING * most:
        raise DamagedFileError(f"{file} holds more numbers than the file has room for. It is refused.")
    return chosen.tensors


def _load(file: Path) -> Any:
    if file.suffix == ".safetensors":  # torch goes by the name, where it gets one
        with file.open("rb") as handle:
            return torch.load(handle, map_location="cpu", weights_only=True)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _is_a_dict(name: str) -> bool:
    return name.lower().endswith(("dict", "cfgnode"))


def _is_left_out(name: str) -> bool:
    return name.startswith(_LEFT_OUT) or name in _INERT_BUILTINS


def _is_known(name: str) -> bool:
    if name in _READ or _is_left_out(name):
        return True
    library, _, kind = name.partition(".")
    own = getattr(torch, kind, None) if library == "torch" and kind.isidentifier() else None
    return isinstance(own, torch.dtype) or (library == "torch" and kind.isidentifier() and kind.endswith("Storage"))


def _candidates(file: Path, value: Any) -> Iterator[_Candidate]:
    """Yields every dict with tensors, at most a few levels deep; each dict once, however often it is referred to."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen: set[int] = set()
    while waiting:
        path, current = waiting.pop(0)
        if not isinstance(current, Mapping) or id(current) in seen:
            continue
        seen.add(id(current))
        if len(seen) > _MOST_DICTS:
            raise DamagedFileError(f"{file} holds more than {_MOST_DICTS} dicts. Save the weights alone.")
        tensors = {str(name): item for name, item in current.items() if isinstance(item, Tensor)}
        if tensors and all(isinstance(name, str) for name, item in current.items() if isinstance(item, Tensor)):
            others = [shown(name) for name, item in current.items() if not isinstance(item, Tensor)]
            yield _Candidate(path=path, tensors=tensors, others=others)
        if len(path) < _MOST_LEVELS:
            waiting += [
                ((*path, name), item)
                for name, item in current.items()
                if isinstance(name, str) and not name.lower().startswith(_NO_WEIGHTS)
            ]


def _is_weights(candidate: _Candidate) -> bool:
    return any(tensor.ndim for tensor in candidate.tensors.values())


def _choose(file: Path, found: list[_Candidate]) -> _Candidate:
    best = min(found, key=lambda candidate: candidate.rank)
    if best.is_network:
        found = [candidate for candidate in found if candidate.is_network]
    equals = [candidate for candidate in found if candidate.rank == best.rank]
    if len(equals) > 1:
        names = ", ".join(shown(".".join(candidate.path)) for candidate in equals[:4])
        raise DamagedFileError(
            f"{file} holds several networks: {names}. Save the one that is meant in a file of its own."
        )
    return best


def _say(file: Path, chosen: _Candidate, found: list[_Candidate]) -> None:
    """Logs what was taken where that is not plain."""
    others = [".".join(c.path) for c in found if c.is_network and c is not chosen and c.path]
    text = []
    if chosen.path not in _UNREMARKABLE or others:
        kind = "the EMA weights" if any("ema" in key.lower() for key in chosen.path) else "the weights"
        text.append(f"Reads {kind} of {file}, under {shown('.'.join(chosen.path))}.")
    if others:
        text.append(f"Not used: {', '.join(map(shown, others[:3]))}.")
    wrapper = wrapper_of(chosen.tensors)
    if wrapper.replace("module.", ""):
        text.append(f"Reads the tensors of {file} whose names begin with {shown(wrapper)}.")
    inside = network_names(chosen.tensors)
    left = [*chosen.others, *(shown(name) for name in chosen.tensors if name not in inside)]
    if left:
        text.append(f"Beside the weights and not used: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}.")
    if text:
        logger.warning("%s", " ".join(text))


def _described(value: Any) -> str:
    if isinstance(value, torch.nn.Module):
        return "a whole module"
    if not isinstance(value, Mapping):
        return f"{type(value).__name__}"
    names = ", ".join(shown(name) for name in list(value)[:5])
    return f"a dict of {names}" if names else "an empty dict"

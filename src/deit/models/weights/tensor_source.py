"""Where tensors come from when a model is filled: safetensors files, pickles read as data, or a dict."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from deit.core.errors import UserError
from deit.core.weights.files import TensorEntry, WeightFiles, read_header
from deit.models.weights.pickled_weights import read_pickle

_TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip

_READERS = 2  # more do not help: memory is the limit


class TensorSource(Protocol):
    """Tensors by name, read one at a time."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def read_into(self, destinations: Mapping[str, Tensor]) -> None:
        """Fills tensors, on any device and of any type, with those of the given names."""

    def mapped(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Returns those of the named tensors that can be had without reading them, as views of their file."""


class DictSource:
    """Tensors that are already there.

    Args:
        tensors: Name -> tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()}

    @torch.no_grad()
    def read_into(self, destinations: Mapping[str, Tensor]) -> None:
        """Copies."""
        for name, destination in destinations.items():
            destination.copy_(self._tensors[name])

    def mapped(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Returns none: the tensors belong to somebody else."""
        return {}


class SafetensorsSource:
    """Tensors of safetensors files, mapped, or read straight into their place; never is there a second copy.

    A mapped tensor is a private view of the file: writing to it changes the memory alone. It survives that the file is
    replaced or removed, but not that its bytes are changed in place.

    Args:
        weights: The files.

    Raises:
        ValueError: A file is truncated or damaged, or has not what the index says.
    """

    def __init__(self, weights: WeightFiles) -> None:
        self._entries: dict[str, TensorEntry] = {}
        headers = {file: read_header(file) for file in weights.files}
        if weights.index is None:
            for header in headers.values():
                self._entries.update(header)
        else:
            for name, file in weights.index.items():
                if name not in headers[file]:
                    raise UserError(f"{weights.main} says that {name!r} is in {file.name}, which does not hold it.")
                self._entries[name] = headers[file][name]
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: _TORCH_TYPES[entry.dtype] for name, entry in self._entries.items()}

    def read_into(self, destinations: Mapping[str, Tensor]) -> None:
        """Reads in the order of the files, so that disks need not jump; two threads share the work of copying."""
        names = sorted(destinations, key=lambda n: (self._entries[n].file, self._entries[n].offset))
        if not names:
            return
        middle = (len(names) + 1) // 2
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(lambda part: self._read(part, destinations), (names[:middle], names[middle:])))

    @torch.no_grad()
    def _read(self, names: list[str], destinations: Mapping[str, Tensor]) -> None:
        with ExitStack() as stack:
            handles: dict[Path, BinaryIO] = {}
            for name in names:
                entry, destination = self._entries[name], destinations[name]
                if entry.file not in handles:
                    handles[entry.file] = stack.enter_context(entry.file.open("rb", buffering=0))
                direct = (
                    destination.device.type == "cpu"
                    and destination.is_contiguous()
                    and destination.dtype == self.dtypes[name]
                )
                target = destination if direct else torch.empty(entry.shape, dtype=self.dtypes[name])
                _fill(handles[entry.file], entry, target)
                if not direct:
                    destination.copy_(target)

    def mapped(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Maps the files; tensors at odd addresses are left out."""
        files: dict[Path, mmap.mmap] = {}
        tensors = {}
        for name in names:
            entry, dtype = self._entries[name], self.dtypes[name]
            if not entry.size or entry.offset % dtype.itemsize:
                continue
            if entry.file not in files:
                with entry.file.open("rb") as handle:
                    files[entry.file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
            count = entry.size // dtype.itemsize
            flat = torch.frombuffer(files[entry.file], dtype=dtype, count=count, offset=entry.offset)
            tensors[name] = flat.view(entry.shape)
        return tensors


def _fill(handle: BinaryIO, entry: TensorEntry, target: Tensor) -> None:
    if not entry.size:
        return
    numbers: Any = target.detach().view(-1).view(torch.uint8).numpy()
    memory = memoryview(numbers)
    handle.seek(entry.offset)
    done = 0
    while done < entry.size:
        count = handle.readinto(memory[done:])  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{entry.file} became shorter while it was read.")
        done += count


def open_source(weights: WeightFiles) -> TensorSource:
    """Opens weight files and checks them whole, before a model is built or changed.

    Raises:
        ValueError: A file is truncated or damaged, holds code, or has not what the index says.
    """
    if not weights.pickled:
        return SafetensorsSource(weights)
    tensors: dict[str, Tensor] = {}
    for file in weights.files:
        tensors.update(read_pickle(file))
    if weights.index is not None:
        lost = [name for name in weights.index if name not in tensors]
        if lost:
            raise UserError(f"{weights.main} says that {lost[0]!r} is in a file that does not hold it.")
    return DictSource(tensors)


def read_tensors(source: TensorSource) -> dict[str, Tensor]:
    """Reads all tensors into new memory."""
    tensors = {name: torch.empty(shape, dtype=source.dtypes[name]) for name, shape in source.shapes.items()}
    source.read_into(tensors)
    return tensors

"""Finds the weight files of a folder, checks their headers, and writes weights into several files.

Runs no code from a file. Checks headers against the size of the file. Accepts only indexes that name files of their
own folder.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit.core.errors import DamagedFileError, UserError, parsing, read_json, shown
from deit.core.file_names import PICKLE_NAME, WEIGHTS_NAME
from deit.core.weights.formats import PICKLE, weight_format

_OTHER_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".tar", ".pkl")  # of weight files, to name in messages

# Bytes of one number of each type that safetensors files hold.
_ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
# DeiT-base needs 16 KB. The reference implementation allows 100 MB, which take more than a gigabyte when parsed.
_MOST_HEADER_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The files that hold the weights of one model.

    Attributes:
        main: File to name in messages: the only file, or the index.
        files: Files with tensors.
        pickled: True for pickles, False for safetensors, detected by content.
        index: Tensor -> file, if there is an index.
    """

    main: Path
    files: tuple[Path, ...]
    pickled: bool
    index: Mapping[str, Path] | None = None


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Position of a tensor in a safetensors file.

    Attributes:
        file: The file.
        dtype: safetensors' name of the type, such as "F32".
        shape: Shape of the tensor.
        offset: First byte, counted from the start of the file.
        size: Number of bytes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def with_variant(name: str, variant: str | None) -> str:
    """Returns a file name with the variant in front of its last suffix: `model.fp16.safetensors`."""
    if not variant:
        return name
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"


def find_weights(path: Path, *, variant: str | None = None, use_safetensors: bool | None = None) -> WeightFiles:
    """Returns the weight files of a model directory, or the given file itself.

    Args:
        path: Model directory, or one weight file.
        variant: VARIANT in `model.VARIANT.safetensors`.
        use_safetensors: True refuses pickles, False refuses safetensors, None prefers safetensors.

    Raises:
        FileNotFoundError: The folder or the file is missing.
        ValueError: An index is damaged, or names a file that is missing or outside the folder; or a file has an
            unsupported format, or one that `use_safetensors` refuses.
    """
    if path.is_file():
        return _of_one_kind(path, (path,), use_safetensors)
    if path.exists() and not path.is_dir():
        raise DamagedFileError(f"{path} is a pipe or a device, not a file or folder. Pass a weight file.")
    if not path.is_dir():
        raise FileNotFoundError(f"No model directory at {path}.")
    kinds = {None: (False, True), True: (False,), False: (True,)}[use_safetensors]
    for pickled in kinds:
        name = PICKLE_NAME if pickled else WEIGHTS_NAME
        single = path / with_variant(name, variant)
        if single.is_file():
            return _of_one_kind(single, (single,), use_safetensors)
        index = path / with_variant(f"{name}.index.json", variant)
        if index.is_file():
            shards = read_index(index)
            return _of_one_kind(index, tuple(sorted(set(shards.values()))), use_safetensors, shards)
    wanted = with_variant(PICKLE_NAME if kinds[0] else WEIGHTS_NAME, variant)
    raise FileNotFoundError(f"No {wanted} in {path}.{_what_is_there(path)}")


def _of_one_kind(
    main: Path, files: tuple[Path, ...], use_safetensors: bool | None, index: Mapping[str, Path] | None = None
) -> WeightFiles:
    kinds = {file: weight_format(file) == PICKLE for file in files}
    if len(set(kinds.values())) > 1:
        raise DamagedFileError(f"{main} names both safetensors files and pickles. Save the model again.")
    pickled = any(kinds.values())
    if pickled and use_safetensors:
        raise DamagedFileError(
            f"{main} is a pickle, which use_safetensors=True refuses. Get the weights as safetensors."
        )
    return WeightFiles(main=main, files=files, pickled=pickled, index=index)


def _what_is_there(folder: Path) -> str:
    there = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in (".safetensors", *_OTHER_SUFFIXES))
    if there:
        return f" It holds {', '.join(there[:5])}. Set variant or use_safetensors, or pass the file."
    return " Is it a model directory, as save_pretrained writes it?"


def read_index(index: Path) -> dict[str, Path]:
    """Reads the index of a model that is stored in several files.

    Returns:
        Tensor -> file.

    Raises:
        ValueError: The index is damaged, or names a file that is missing or outside its folder.
    """
    what = "an index of weight files"
    values = read_json(index, what)
    with parsing(index, what):
        pairs = [(str(tensor), file) for tensor, file in values["weight_map"].items()]
    if not pairs:
        raise DamagedFileError(f"{index} names no tensor.")
    checked = {file: _shard(index, file) for file in {str(f) if isinstance(f, str) else repr(f) for _, f in pairs}}
    return {tensor: checked[str(file)] for tensor, file in pairs}


def _shard(index: Path, name: str) -> Path:
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise DamagedFileError(
            f"{index} names the file {shown(name)}. Only names of files beside the index are accepted."
        )
    file = index.parent / name
    if not file.is_file():
        raise DamagedFileError(
            f"{index} names the file {shown(name)}, which is missing. Copy it there, or download the model again."
        )
    target = file.resolve()
    if not any(target.is_relative_to(folder) for folder in _allowed_folders(index.parent)):
        raise DamagedFileError(f"{index} names the file {shown(name)}, a link to {target}, outside the folder.")
    return file


def _allowed_folders(folder: Path) -> list[Path]:
    """Returns the folder and, in the cache of huggingface_hub, the folder of the link targets."""
    allowed = [folder.resolve()]
    absolute = Path(os.path.abspath(folder))
    for parent in absolute.parents:
        if parent.name == "snapshots":
            allowed.append((parent.parent / "blobs").resolve())
    return allowed


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Reads and checks the header of a safetensors file: every byte of the file must belong to one tensor.

    Raises:
        ValueError: The file is truncated, damaged or of another format.
    """
    try:
        with file.open("rb") as handle:
            total = os.fstat(handle.fileno()).st_size
            length = int.from_bytes(handle.read(8), "little")
            if total < 8 or length > total - 8:
                raise UserError("the header is longer than the file")
            if length > _MOST_HEADER_BYTES:
                raise UserError(f"its header of {length} bytes is longer than {_MOST_HEADER_BYTES}")
            values = json.loads(handle.read(length))
        values.pop("__metadata__", None)
        entries = {name: _entry(file, fields, 8 + length) for name, fields in values.items()}
        end = 8 + length
        for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.size)):
            if entry.offset != end:
                raise UserError("tensors overlap or leave a gap")
            end += entry.size
        if end != total:
            raise UserError(f"it should have {end} bytes and has {total}")
    except Exception as error:  # as in `parsing`: hostile headers raise nearly any exception
        reason = str(error)[:200] or type(error).__name__
        raise DamagedFileError(f"{file} cannot be read as safetensors ({reason}). It may be truncated.") from error
    return entries


def _entry(file: Path, fields: Mapping[str, Any], start: int) -> TensorEntry:
    begin, end = fields["data_offsets"]
    shape = tuple(fields["shape"])
    numbers = (begin, end, *shape)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise UserError("shapes and offsets must be whole numbers")
    if fields["dtype"] not in _ITEM_SIZES:
        raise UserError(f"unknown type {shown(fields['dtype'])}")
    if end - begin != math.prod(shape) * _ITEM_SIZES[fields["dtype"]]:
        raise UserError("the size of a tensor does not match its shape")
    return TensorEntry(file=file, dtype=fields["dtype"], shape=shape, offset=start + begin, size=end - begin)


def is_weight_file_name(name: str, variant: str | None) -> bool:
    """Returns True for the names of weight files and indexes that `save_pretrained` writes."""
    for whole in (WEIGHTS_NAME, PICKLE_NAME):
        if name in (with_variant(whole, variant), with_variant(f"{whole}.index.json", variant)):
            return True
        stem, _, suffix = with_variant(whole, variant).rpartition(".")
        rest = name.removeprefix(f"{stem}-").removesuffix(f".{suffix}")
        numbers = rest.split("-of-")
        if f"{stem}-{rest}.{suffix}" == name and len(numbers) == 2 and all(n.isdigit() for n in numbers):
            return True
    return False


def shard_name(whole: str, number: int, count: int) -> str:
    """Returns the name of one of several weight files: `model-00001-of-00002.safetensors`."""
    stem, _, suffix = whole.rpartition(".")
    return f"{stem}-{number:05d}-of-{count:05d}.{suffix}"


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def number_of_bytes(size: int | str) -> int:
    """Returns a size such as "5GB", "200MiB" or 1000 in bytes.

    Raises:
        ValueError: The size is malformed or not positive.
    """
    if isinstance(size, str):
        text = size.strip().upper()
        unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
        number = text.removesuffix(unit).strip()
        if unit and number.isdigit():
            size = int(number) * _UNITS[unit]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"max_shard_size must be a number of bytes or a text such as '5GB'. Received: {size!r}.")
    return size


def distribute(sizes: Mapping[str, int], most_bytes: int) -> list[list[str]]:
    """Distributes tensors over files in order. A tensor larger than the limit gets its own file.

    Args:
        sizes: Name -> bytes.
        most_bytes: Maximum size of one file.
    """
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > most_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def write_in_files(
    tensors: Mapping[str, Any],
    folder: Path,
    write: Callable[[dict[str, Any], Path], None],
    *,
    name: str,
    most_bytes: int,
    variant: str | None = None,
) -> list[str]:
    """Writes weights into a folder, as one file or, above the maximum size, as several files with an index.

    Args:
        tensors: Name in the file -> tensor, with its size as `nbytes`.
        folder: Output folder.
        write: Function that writes tensors into a file.
        name: Name of a file that holds all weights, such as `WEIGHTS_NAME`.
        most_bytes: Maximum size of one file.
        variant: VARIANT in `model.VARIANT.safetensors`.

    Returns:
        Names of the files written.
    """
    named = with_variant(name, variant)
    groups = distribute({key: tensor.nbytes for key, tensor in tensors.items()}, most_bytes)
    if len(groups) == 1:
        write(dict(tensors), folder / named)
        return [named]
    files, weight_map = [], {}
    for number, group in enumerate(groups, start=1):
        file = shard_name(named, number, len(groups))
        write({key: tensors[key] for key in group}, folder / file)
        files.append(file)
        weight_map.update(dict.fromkeys(group, file))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    index_name = with_variant(f"{name}.index.json", variant)
    (folder / index_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [*files, index_name]

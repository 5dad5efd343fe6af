"""Detects the format of a weight file by its content and checks limits before the file is opened."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from deit.core.errors import DamagedFileError, parsing

SAFETENSORS: Final = "safetensors"
PICKLE: Final = "pickle"

# A checkpoint of 1,000 tensors with its optimizer has 150 KB of pickle, 60,000 instructions and 3,000 members.
MOST_PICKLE_BYTES = 32 * 2**20
MOST_PICKLE_STEPS = 1_000_000
MOST_MEMBERS = 100_000
_MOST_DIRECTORY_BYTES = 16 * 2**20  # the list of an archive's members

_A_PYTORCH_FILE = "a weight file of PyTorch"

# First bytes of other formats that are found under names of weight files, and what to do about them.
_OTHERS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it. Save the weights as safetensors: model.save_pretrained."),
    (b"\x93NUMPY", "a NumPy array. Save the weights as a dict of tensors in a safetensors file."),
    (b"\x1f\x8b", "a gzip archive. Unpack it first."),
    (b"BZh", "a bzip2 archive. Unpack it first."),
    (b"\xfd7zXZ\x00", "an xz archive. Unpack it first."),
    (b"GGUF", "a GGUF file, which is not supported. Use the model's safetensors file."),
    (b"version https://git-lfs", "a pointer of Git LFS and not the weights. Fetch them with: git lfs pull."),
    (b"<", "a page of HTML or XML and not the weights. Download the file again."),
)

_END, _END64_LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"


def weight_format(file: Path) -> str:
    """Returns `SAFETENSORS` or `PICKLE`, by the first bytes, or by the file name if these are ambiguous.

    Raises:
        DamagedFileError: The file has a known but unsupported format, such as HDF5.
    """
    with file.open("rb") as handle:
        start = handle.read(300)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length <= file.stat().st_size - 8:
        return SAFETENSORS
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        return PICKLE
    for magic, what in _OTHERS:
        if start.lstrip()[: len(magic)] == magic or start[: len(magic)] == magic:
            raise DamagedFileError(f"{file} is {what}")
    if start[257:262] == b"ustar":
        raise DamagedFileError(f"{file} is a tar archive. Unpack it first.")
    return SAFETENSORS if file.suffix.lower() == ".safetensors" else PICKLE


def pickled_names(file: Path) -> set[str]:
    """Checks a PyTorch file against the limits without loading it, and returns the classes and functions it names.

    Returns:
        Full names of all classes and functions, such as "torch._utils._rebuild_tensor_v2".

    Raises:
        DamagedFileError: The file is damaged, has another format or exceeds a limit: compressed members, members
            larger than the file, more than `MOST_PICKLE_STEPS` instructions.
    """
    with parsing(file, _A_PYTORCH_FILE), file.open("rb") as handle:
        if handle.read(2) == b"PK":
            return _names_in_archive(file, handle)
        handle.seek(0)
        names: set[str] = set()
        budget = MOST_PICKLE_STEPS
        for _ in range(5):  # before 1.6: magic number, version, system, content, names of the storages
            steps = list(_checked_steps(file, handle, budget))
            budget -= len(steps)
            names |= _referred(steps)
        return names


def _names_in_archive(file: Path, handle: BinaryIO) -> set[str]:
    total = file.stat().st_size
    _check_directory(file, handle, total)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.filename.endswith(".npy") for member in members):
            raise DamagedFileError(f"{file} is a NumPy archive (npz). Save its arrays as a safetensors file.")
        if any(member.filename.endswith(".weights.h5") for member in members):
            raise DamagedFileError(f"{file} is a Keras archive. Open it with keras, and use model.save_pretrained.")
        if any(member.filename.endswith("constants.pkl") for member in members):
            raise DamagedFileError(
                f"{file} is a TorchScript archive, which holds code and is refused. Get its state dict as safetensors."
            )
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise DamagedFileError(f"{file} holds compressed members, which PyTorch never writes. It is refused.")
        if sum(member.file_size for member in members) > total:
            raise DamagedFileError(f"{file} claims members larger than the file. It is damaged.")
        contents = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        if not contents:
            raise DamagedFileError(f"{file} is an archive without a data.pkl, so not a weight file of PyTorch.")
        names: set[str] = set()
        for member in contents:
            if member.file_size > MOST_PICKLE_BYTES:
                raise DamagedFileError(f"{file} has more than {MOST_PICKLE_BYTES} bytes of structure. It is refused.")
            with archive.open(member) as content:
                names |= _referred(_checked_steps(file, content, MOST_PICKLE_STEPS))  # type: ignore[arg-type]
        return names


def _check_directory(file: Path, handle: BinaryIO, total: int) -> None:
    """Checks the size of the member list before reading it, because entries take ten times their size in memory."""
    tail_size = min(total, 2**16 + 22)
    handle.seek(total - tail_size)
    tail = handle.read(tail_size)
    at = tail.rfind(_END)
    if at < 0:
        raise DamagedFileError(f"{file} cannot be read as a PyTorch file (no end of the archive). It may be truncated.")
    members, size = int.from_bytes(tail[at + 10 : at + 12], "little"), int.from_bytes(tail[at + 12 : at + 16], "little")
    locator = tail[at - 20 : at] if at >= 20 else b""
    if locator[:4] == _END64_LOCATOR:
        handle.seek(min(int.from_bytes(locator[8:16], "little"), total))
        record = handle.read(56)
        if record[:4] == _END64:
            members = int.from_bytes(record[32:40], "little")
            size = int.from_bytes(record[40:48], "little")
    if members > MOST_MEMBERS or size > _MOST_DIRECTORY_BYTES:
        raise DamagedFileError(f"{file} is an archive of more than {MOST_MEMBERS} members. It is refused.")


_Step = tuple[str, object]


def _checked_steps(file: Path, handle: BinaryIO, budget: int) -> Iterator[_Step]:
    """Yields the instructions of a pickle without executing them."""
    start = handle.tell()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(handle)):
        if count >= budget or (position or 0) - start > MOST_PICKLE_BYTES:
            raise DamagedFileError(f"{file} has more than {MOST_PICKLE_STEPS} instructions. It is refused.")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > budget:
            raise DamagedFileError(f"{file} is damaged: a memo index is too large.")
        yield opcode.name, argument


def _referred(steps: Iterator[_Step] | list[_Step]) -> set[str]:
    """Returns the classes and functions that a pickle names. Protocol 4 puts module and name on the stack."""
    names: set[str] = set()
    texts: list[str] = []
    for name, argument in steps:
        if name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", ".", 1))
        elif name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif isinstance(argument, str) and "UNICODE" in name:
            texts = [*texts[-1:], argument]
    return names

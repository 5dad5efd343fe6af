"""Records which images a model was trained on, as hashes of their bytes, and counts those that it meets again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import DamagedFileError, parsing
from deit.core.file_names import IMAGES_NAME
from deit.core.files import replaced_file
from deit.core.printable import counted

# Roles of an image for a model; one may have several.
LEARNT, INITIAL, MEASURED, TAUGHT, CALIBRATED = 1, 2, 4, 8, 16

_ENTRY = np.dtype([("hash", "<u8"), ("role", "u1")])  # 9 bytes; ImageNet's images need 12 MB
_KIND = "a list of image hashes"


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Numbers of images that a model has met before. An image is counted once, under the first kind that applies.

    Attributes:
        images: Number of images looked at.
        learnt: Of them, those that the model was trained on.
        initial: Those that the weights were trained on that it began with.
        taught: Those that its teacher was trained on.
        measured: Those, of all, that training scored the model on, and may have been chosen by.
        unrecorded: Models that it descends from, or learned from, whose own images are not recorded.
        calibrated: Those, of all, that its calibration was made from.
    """

    images: int
    learnt: int
    initial: int
    taught: int
    measured: int
    unrecorded: tuple[str, ...] = ()
    calibrated: int = 0

    def notes(self) -> list[str]:
        """Returns sentences that describe the overlap; none without one."""
        notes = []
        if self.learnt:
            notes.append(f"The model was trained on {self._of(self.learnt)}, so the scores are too good.")
        if self.initial:
            notes.append(
                f"The weights that the model began with were trained on {self._of(self.initial)}"
                f"{' that it was not itself' if self.learnt else ''}: the scores may be too good."
            )
        if self.taught:
            other = " others" if self.learnt or self.initial else ""
            notes.append(f"Its teacher was trained on {self._of(self.taught, other)}: the scores may be too good.")
        if self.calibrated:
            notes.append(
                f"The calibration was made from {self._of(self.calibrated)}: its results here may be too good."
            )
        if self.unrecorded:
            notes.append(f"Not recorded, so not counted: the training images of {', '.join(self.unrecorded)}.")
        return notes

    def _of(self, count: int, other: str = "") -> str:
        return f"{count}{other} of {'these ' if self.images != 1 else ''}{counted(self.images, 'image')}"


class KnownImages:
    """Hashes of images, with the role of each for a model.

    Args:
        hashes: (N,) uint64, sorted and different.
        roles: (N,) uint8, sums of `LEARNT`, `INITIAL`, `MEASURED`, `TAUGHT` and `CALIBRATED`.
        unrecorded: See `Overlap`.
    """

    def __init__(
        self, hashes: npt.NDArray[np.uint64], roles: npt.NDArray[np.uint8], unrecorded: Iterable[str] = ()
    ) -> None:
        self.hashes = hashes
        self.roles = roles
        self.unrecorded = tuple(dict.fromkeys(unrecorded))

    @classmethod
    def merge(
        cls, parts: Iterable[tuple[npt.NDArray[np.uint64], int | npt.NDArray[np.uint8]]], unrecorded: Iterable[str] = ()
    ) -> KnownImages:
        """Merges lists of hashes. A hash that occurs several times gets all its roles."""
        pairs = [(hashes, np.broadcast_to(np.asarray(role, np.uint8), hashes.shape)) for hashes, role in parts]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(each for each, _ in pairs)])
        roles = np.concatenate([np.zeros(0, np.uint8), *(each for _, each in pairs)])
        unique, where = np.unique(hashes, return_inverse=True)
        merged = np.zeros(len(unique), np.uint8)
        np.bitwise_or.at(merged, where.reshape(-1), roles)
        return cls(unique, merged, unrecorded)

    @classmethod
    def read(cls, folder: Path) -> KnownImages | None:
        """Reads the record of a folder. Returns None if there is none.

        Raises:
            DamagedFileError: The file is damaged or something else.
        """
        path = folder / IMAGES_NAME
        if not path.is_file():
            return None
        with parsing(path, _KIND), path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise DamagedFileError(f"{path} is not {_KIND}: it is of another version of the format.")
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            if kind != _ENTRY or len(shape) != 1 or file.tell() + shape[0] * _ENTRY.itemsize != path.stat().st_size:
                raise DamagedFileError(f"{path} is not {_KIND}: it holds {kind} of the shape {shape}.")
            entries: npt.NDArray[Any] = np.frombuffer(file.read(), _ENTRY)
        hashes = entries["hash"].astype(np.uint64)
        if (hashes[1:] <= hashes[:-1]).any():
            raise DamagedFileError(f"{path} is not {_KIND}: it is not sorted.")
        return cls(hashes, entries["role"].copy())

    def write(self, folder: Path) -> None:
        """Writes the record into a folder, atomically."""
        entries = np.zeros(len(self.hashes), _ENTRY)
        entries["hash"], entries["role"] = self.hashes, self.roles
        with replaced_file(folder / IMAGES_NAME) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array(file, entries, version=(1, 0), allow_pickle=False)

    def roles_of(self, contents: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """Returns the roles of (N,) images: (N,) uint8, 0 for an unknown one."""
        if not len(self.hashes):
            return np.zeros(len(contents), np.uint8)
        places = np.minimum(np.searchsorted(self.hashes, contents), len(self.hashes) - 1)
        roles: npt.NDArray[np.uint8] = np.where(self.hashes[places] == contents, self.roles[places], 0).astype(np.uint8)
        return roles

    def with_role(self, *wanted: int) -> npt.NDArray[np.uint64]:
        """Returns the hashes of images that have one of some roles."""
        return self.hashes[(self.roles & sum(wanted)) != 0]

    def overlap(self, contents: npt.NDArray[np.uint64]) -> Overlap:
        """Counts how many of (N,) images the model has met before."""
        roles = self.roles_of(contents)
        learnt = (roles & LEARNT) != 0
        initial = ((roles & INITIAL) != 0) & ~learnt
        taught = ((roles & TAUGHT) != 0) & ~learnt & ~initial
        return Overlap(
            images=len(contents),
            learnt=int(learnt.sum()),
            initial=int(initial.sum()),
            taught=int(taught.sum()),
            measured=int(((roles & MEASURED) != 0).sum()),
            unrecorded=self.unrecorded,
            calibrated=int(((roles & CALIBRATED) != 0).sum()),
        )

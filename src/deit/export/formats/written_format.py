"""Defines what a format of an export must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deit.export.original import Original

Array = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a format.

    Attributes:
        precision: One of the `precisions` of the format.
        opset: Version of ONNX's operators.
    """

    precision: str
    opset: int


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Files of a format, opened to be checked.

    Attributes:
        name: Name and version of what runs them.
        logits: Pixels (B, C, H, W) -> logits (B, K) of each head.
        pixels: Images (B, H, W, 3) -> pixels; None without the preprocessing.
        scores: Images (B, H, W, 3) -> scores (B, K); None without the preprocessing.
    """

    name: str
    logits: Callable[[Array], Mapping[str, Array]]
    pixels: Callable[[Images], Array] | None
    scores: Callable[[Images], Array] | None


class Format(Protocol):
    """A module that writes a format.

    Attributes:
        PRECISIONS: Those that it has.
        MODEL: Name of the file from pixels to logits.
        CLASSIFIER: Name of the file from images to scores.
        PACKAGES: What wrote it, for the record.
    """

    PRECISIONS: tuple[str, ...]
    MODEL: str
    CLASSIFIER: str
    PACKAGES: tuple[str, ...]

    def require(self, wanted: Wanted) -> None:
        """Checks that the format can be written here, before anything is computed.

        Raises:
            MissingPackageError: A package is missing.
            UserError: A setting is out of range.
        """

    def write(self, original: Original, wanted: Wanted, folder: Path) -> None:
        """Writes the files of the format into a folder."""

    def opened(self, original: Original, wanted: Wanted, folder: Path) -> Opened:
        """Opens the files that were written, and reads back what they say about themselves.

        Raises:
            UserError: The metadata was lost.
        """


def refuse_precision(given: str, known: tuple[str, ...], name: str) -> None:
    """Raises an error for a precision that a format does not have.

    Raises:
        UserError: It has not.
    """
    from deit.core.errors import UserError, shown

    if given not in known:
        raise UserError(f"The precision of {name} must be {' or '.join(known)}. Received: {shown(given)}.")


def same_metadata(found: Mapping[str, Any], wanted: Mapping[str, str], path: Path) -> None:
    """Checks that a file still says what was written into it.

    Raises:
        UserError: Something is missing or another.
    """
    from deit.core.errors import UserError

    lost = [name for name, value in wanted.items() if found.get(name) != value]
    if lost:
        raise UserError(f"{path.name} has lost its metadata in writing: {', '.join(lost)}.")

"""Describes what an engine takes and what its answers mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deit.core.images.known_images import KnownImages
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import SINGLE_LABEL

Array = npt.NDArray[np.float32]
FEATURES = "features"  # beside the names of heads in the answers of `with_features`


@dataclass(frozen=True, kw_only=True, eq=False)
class Contract:
    """Everything that a caller of an engine has to know about its model.

    Attributes:
        processor: The preprocessing that the weights were scored with.
        label_names: Class names in the order of the logits; several classes may share a name.
        head_names: The heads in the order of the answers; the first one is the answer of the model.
        problem_type: Meaning of the logits, one of `PROBLEM_TYPES`.
        image_size: (height, width) of the pixels; None for any.
        num_channels: Channels of the pixels.
        folder: The model directory on this machine, if there is one.
        head_average: What two heads answer with together, "logits" or "probabilities"; None for one head.
        known_images: The images that the model has learned from; None if that is not recorded.
    """

    processor: DeiTImageProcessor
    label_names: list[str]
    head_names: tuple[str, ...] = ("class",)
    problem_type: str = SINGLE_LABEL
    image_size: tuple[int, int] | None = None
    num_channels: int = 3
    folder: Path | None = None
    head_average: str | None = None
    known_images: KnownImages | None = None

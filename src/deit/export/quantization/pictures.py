"""Reads the images that a quantized model is calibrated with and compared on, each of them once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.image_inputs import name_of
from deit.core.printable import counted, some_of
from deit.core.scores.metrics import MULTI_LABEL
from deit.inference.predictor import Predictor

Array = npt.NDArray[np.float32]

LEAST_IMAGES = 100  # one answer of 100 is 1 %, which is what the default agreement allows to differ
LEAST_CALIBRATED, _MOST_CALIBRATED = 32, 300  # ranges of activations hardly change after 300, which is NNCF's default
_MOST_COMPARED = 1000

_BATCH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Images that were read once, as pixels, with the answers of the original.

    Attributes:
        names: Of the readable images.
        pixels: (N, C, H, W), in a temporary file.
        logits: (N, K) of the original.
        calibrated: Images to calibrate with, the first ones.
        compared_from: First image to compare on; 0 where there are too few to divide them.
        unreadable: Why images were left out.
    """

    names: Sequence[str]
    pixels: Array
    logits: Array
    calibrated: int
    compared_from: int
    unreadable: tuple[str, ...]

    @property
    def compared(self) -> int:
        """Images to compare on."""
        return len(self.names) - self.compared_from

    @property
    def disjoint(self) -> bool:
        """Whether no image is calibrated with and compared on."""
        return self.compared_from >= self.calibrated

    def batches(self) -> Iterator[Array]:
        """Yields the pixels of the images to compare on, batch after batch."""
        for start in range(self.compared_from, len(self.names), _BATCH):
            yield np.array(self.pixels[start : start + _BATCH])


def least_compared(agreement: float) -> int:
    """Returns how many images can show an agreement in percent: with fewer, one differing answer is too many.

    Examples:
        >>> least_compared(99.0), least_compared(99.5), least_compared(100.0)
        (100, 200, 100)
    """
    return LEAST_IMAGES if agreement >= 100 else max(math.ceil(100 / (100 - agreement) - 1e-9), LEAST_IMAGES)


@contextmanager
def read_pictures(
    predictor: Predictor, images: Sequence[Any], agreement: float, progress: Callable[[int, int], None]
) -> Iterator[Pictures]:
    """Reads images, and yields them while their temporary file is there.

    Each file is read once, so that a folder that changes meanwhile cannot give two models different pixels. More than
    1,300 images are drawn from, always in the same way.

    Args:
        predictor: The original.
        images: Paths or images.
        agreement: That must be shown, in percent.
        progress: Called with the number of images that were read, and of all.

    Raises:
        UserError: There are too few readable images, or all have the same answer.
    """
    needed = least_compared(agreement)
    if len(images) < needed:
        raise UserError(_too_few(len(images), needed, agreement, ()))
    order = np.random.default_rng(0).permutation(len(images))[: _MOST_CALIBRATED + max(_MOST_COMPARED, needed)]
    contract = predictor.engine.contract
    assert contract.image_size is not None
    shape = (len(order), contract.num_channels, *contract.image_size)
    with TemporaryDirectory(prefix="deit-quantize-") as folder:
        pixels = np.lib.format.open_memmap(Path(folder) / "pixels.npy", mode="w+", dtype=np.float32, shape=shape)
        names, logits, unreadable = _read(predictor, [images[i] for i in order], pixels, progress)
        if len(names) < needed:
            raise UserError(_too_few(len(names), needed, agreement, unreadable))
        refuse_one_answer(logits, contract.problem_type, predictor.label_names)
        spare = len(names) - needed
        calibrated = min(max(spare, LEAST_CALIBRATED), _MOST_CALIBRATED)
        yield Pictures(
            names=names,
            pixels=pixels,
            logits=logits,
            calibrated=calibrated,
            compared_from=calibrated if spare >= LEAST_CALIBRATED else 0,
            unreadable=tuple(unreadable),
        )
        del pixels


def _read(
    predictor: Predictor, images: Sequence[Any], pixels: Array, progress: Callable[[int, int], None]
) -> tuple[list[str], Array, list[str]]:
    names: list[str] = []
    logits: list[Array] = []
    unreadable: list[str] = []
    head = predictor.engine.contract.head_names[0]
    done = 0
    for told in predictor.answers(images, _BATCH):
        for item, error in zip(told.batch.items, told.batch.errors, strict=True):
            if error:
                unreadable.append(error)
                continue
            names.append(name_of(item))
        if told.batch.pixels is not None:
            pixels[len(names) - len(told.batch.pixels) : len(names)] = told.batch.pixels
            logits.append(np.asarray(told.outputs[head]))
        done += len(told.batch.items)
        progress(done, len(images))
    if logits and not np.isfinite(np.concatenate(logits)).all():
        raise UserError("The model answers with NaN or infinity, so there is nothing to compare with.")
    return names, np.concatenate(logits) if logits else np.zeros((0, 1), np.float32), unreadable


def _too_few(found: int, needed: int, agreement: float, unreadable: Sequence[str]) -> str:
    left = f" {counted(len(unreadable), 'image was', 'images were')} unreadable: {some_of(unreadable, 3)}"
    return (
        f"Too few images to quantize with: {found} readable, and an agreement of {agreement:g} % needs {needed} "
        f"(better {needed + _MOST_CALIBRATED}), like those that the model will see.{left if unreadable else ''}"
    )


def answers_of(logits: Array, problem_type: str) -> npt.NDArray[Any]:
    """Returns what a model answers: the best class of each image (N,), or the classes above one half (N, K)."""
    if problem_type == MULTI_LABEL or logits.shape[1] == 1:
        result: npt.NDArray[Any] = logits > 0
        return result
    return logits.argmax(1)


def refuse_one_answer(logits: Array, problem_type: str, label_names: Sequence[str]) -> None:
    """Rejects images that all have the same answer: they show neither the ranges of activations nor an agreement.

    Args:
        logits: (N, K) of the original.
        problem_type: One of `PROBLEM_TYPES`.
        label_names: Class names.

    Raises:
        UserError: They have.
    """
    answers = answers_of(logits, problem_type)
    if len(np.unique(answers, axis=0)) > 1:
        return
    named = f", {label_names[int(answers[0])]!r}" if answers.ndim == 1 else ""
    raise UserError(
        f"The model has the same answer for all {len(answers)} images{named}. Quantizing needs images of several "
        "classes: with one, an agreement shows nothing. Pass images like those that the model will see."
    )

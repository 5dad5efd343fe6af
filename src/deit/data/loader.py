"""Batches of pixels: for training in an order that is a function of seed, epoch and step, for evaluation in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deit.core.image_processor import DeiTImageProcessor
from deit.data.random_state import seeded
from deit.data.sources import Source

# First number of every random key, so that views, mixing and the model never share a stream.
_VIEW_KEY = 0

View = tuple[int, int, int]  # seed, epoch, index of the image


class _AugmentedImages(Dataset[tuple[Tensor, int]]):
    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        self._source = source
        self._transform = transform

    def __getitem__(self, view: View) -> tuple[Tensor, int]:
        seed, epoch, index = view
        with seeded(seed, _VIEW_KEY, epoch, index):
            return self._transform(self._source.image(index)), int(self._source.labels[index])


class StepOrder(Sampler[list[View]]):
    """Says which images make up each step: a new permutation every epoch, what does not fill a batch is left out.

    Args:
        num_images: Size of the data set.
        batch_size: Images in a step.
        seed: Of the run.
        first_step: Where to begin.
        last_step: Where to stop, exclusive.

    Raises:
        ValueError: There are fewer images than a batch needs.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, first_step: int, last_step: int) -> None:
        if num_images < batch_size:
            raise ValueError(
                f"There are {num_images} training images and the batch size is {batch_size}. "
                f"Pass a batch size of at most {num_images}."
            )
        self.steps_per_epoch = num_images // batch_size
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._steps = range(first_step, last_step)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[View]]:
        epoch = -1
        for step in self._steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng((self._seed, epoch)).permutation(self._num_images)
            start = step % self.steps_per_epoch * self._batch_size
            yield [(self._seed, epoch, int(i)) for i in order[start : start + self._batch_size]]


def training_batches(
    source: Source,
    transform: Callable[[Image.Image], Tensor],
    order: StepOrder,
    *,
    num_workers: int = -1,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Returns batches of augmented pixels (B, 3, H, W) and true classes (B,), one for each step of `order`.

    Args:
        source: Labelled images.
        transform: Of one image, see `build_transform`.
        order: Which images come when.
        num_workers: Processes that prepare images; -1 chooses: none on machines with up to 2 cores, else one for
            each core that is left, at most 16.
        pin_memory: Whether batches lie in page-locked memory, for a faster copy to a GPU.
    """
    workers = default_workers() if num_workers < 0 else num_workers
    return DataLoader(
        _AugmentedImages(source, transform),
        batch_sampler=order,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


def default_workers() -> int:
    """Returns how many processes prepare images unless told otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return 0 if cores <= 2 else min(cores - 1, 16)


class EvaluationBatches:
    """Batches of pixels (B, 3, H, W) and true classes (B,) as numpy arrays, in order, the last one smaller.

    Args:
        source: Labelled images.
        processor: The preprocessing of the model.
        batch_size: Images in a batch.

    Raises:
        ValueError: `batch_size` is smaller than 1.
    """

    def __init__(self, source: Source, processor: DeiTImageProcessor, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: {batch_size}.")
        self._source = source
        self._processor = processor
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._source.labels) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        labels = self._source.labels
        for start in range(0, len(labels), self._batch_size):
            chunk = range(start, min(start + self._batch_size, len(labels)))
            images = [self._source.image(i) for i in chunk]
            pixels = self._processor(images, return_tensors="np").pixel_values
            yield pixels, labels[start : chunk.stop]

"""Loads batches: for training in an order that depends only on seed, epoch and step, for evaluation in order."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deit.core.errors import UnreachableError, UserError
from deit.core.images.reading import ImageError
from deit.core.processing.batches import pixel_batches, usable_cores
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.data.shard_order import fetch_ahead, nearby_order
from deit.data.sources import Source, place_of
from deit.runtime.random_state import forget_other_threads, random_state_kept, set_random_state
from deit.runtime.signals import STOP_SIGNALS

if TYPE_CHECKING:  # imports timm, which evaluation does not need
    from deit.data.augment import ViewTransform

# First number of every random key, so that views, mixing and the model never share a stream.
_VIEW_KEY = 0
_WEAK_KEY = 6  # mixing takes 1, the model 2, masks 3 and 4, `limited` 5

# Offset of repeat numbers of replacement views; larger than any number of repeats.
_STAND_IN = 1 << 20

View = tuple[int, int, int, int]  # seed, epoch, number of the image, number of its repeat


class Batch(NamedTuple):
    """The images of one step for one process.

    Attributes:
        pixels: (b, 3, H, W) float32, augmented but not mixed.
        targets: (b,) int64 classes, (b, K) float32 of several labels, or (b,) float32 values.
        checksums: CRC-32 of a sample of the pixels, of the numbers of the views and of the targets, for each unit of
            the batch, see `training_batches`. It differs if two runs see different images.
        left_out: Number and reason of each unreadable image; another image of the step replaces it.
        weak: (b, 3, H, W), second views of the same images; None unless the transform has a second one.
    """

    pixels: Tensor
    targets: Tensor
    checksums: tuple[int, ...]
    left_out: Sequence[tuple[int, str]] = ()
    weak: Tensor | None = None


class StepOrder(Sampler[list[View]]):
    """Yields the views of each step. Draws a new permutation every epoch and drops an incomplete last batch.

    With repeated augmentation, each image of the permutation occurs `num_repeats` times in a row, each time as another
    view. An epoch still has num_images // batch_size steps, as in the paper's code, so it shows about
    num_images / num_repeats different images. (That code also cuts an epoch to a multiple of 256 images, which leaves
    nothing of a small data set. This class cuts to whole batches.)

    Several processes share the views of a step: the process `rank` takes every world_size-th view, so the repeats of
    an image are on different processes.

    Args:
        num_images: Size of the data set.
        batch_size: Views in a step, over all processes.
        seed: Random seed of the run.
        first_step: First step.
        last_step: End of the steps, exclusive.
        num_repeats: Consecutive views of each image; 3 in the paper.
        multiple: Number that must divide the batch size; used in the message for batches that are too large.
        again: Numbers of images that each add one occurrence to the permutation, as another view. The epoch keeps its
            length, so it shows fewer of the other images.
        pieces: (N,) number of the piece of a shard that each image is in, with `buffer`.
        buffer: Shuffles the images as `nearby_order` does, with a buffer of so many; 0 draws a permutation of all.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        steps_per_epoch: Length of an epoch.
        steps: Numbers of the steps.

    Raises:
        ValueError: There are fewer images than a batch needs, the processes cannot share a batch evenly, or a number
            is out of range.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        *,
        num_repeats: int = 1,
        multiple: int = 1,
        again: Sequence[int] | npt.NDArray[np.int64] = (),
        pieces: npt.NDArray[np.int64] | None = None,
        buffer: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1. Received: {batch_size}.")
        if num_images < batch_size:
            raise UserError(_too_few(num_images, batch_size, math.lcm(multiple, world_size)))
        if num_repeats < 1:
            raise UserError(f"num_repeats must be at least 1. Received: {num_repeats}.")
        _check_rank(rank, world_size)
        if batch_size % world_size:
            raise UserError(
                f"{world_size} processes cannot share a batch of {batch_size} evenly. "
                f"Pass a batch size that is a multiple of {world_size}, or start another number of processes."
            )
        self._images = np.concatenate([np.arange(num_images), np.asarray(again, dtype=np.int64)])
        self._num_images = num_images
        self._pieces = pieces[self._images] if buffer and pieces is not None else None
        self._buffer = buffer
        self.steps_per_epoch = num_images // batch_size
        self._batch_size = batch_size
        self._seed = seed
        self.steps = range(first_step, last_step)
        self._num_repeats = num_repeats
        self._rank = rank
        self._world_size = world_size
        self._order: tuple[int, npt.NDArray[np.int64]] = -1, self._images  # an epoch and its permutation

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[View]]:
        return map(self.views, self.steps)

    def views(self, step: int) -> list[View]:
        """Returns the views that this process shows in a step."""
        return [self._view(step, place) for place in range(self._rank, self._batch_size, self._world_size)]

    def stand_ins(self, step: int, number: int) -> Iterator[View]:
        """Yields views that may replace one of this process: others of the step, with an unused repeat number.

        They are those after it in the whole step, cyclically, so they do not depend on the number of processes.

        Args:
            step: Number of the step.
            number: Of the view in `views(step)`.
        """
        place = self._rank + number * self._world_size
        for other in range(place + 1, place + self._batch_size):
            seed, epoch, index, repeat = self._view(step, other % self._batch_size)
            yield seed, epoch, index, repeat + _STAND_IN * (place + 1)

    def _permutation(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        if self._pieces is None:
            return random.permutation(len(self._images))
        return nearby_order(self._pieces, self._buffer, random)

    def _view(self, step: int, place: int) -> View:
        epoch = step // self.steps_per_epoch
        if self._order[0] != epoch:
            self._order = epoch, self._permutation(np.random.default_rng((self._seed, epoch)))
        entry = step % self.steps_per_epoch * self._batch_size + place
        occurrence, repeat = divmod(entry, self._num_repeats)
        number = int(self._order[1][occurrence])
        if number >= self._num_images:  # an added occurrence
            repeat += (number - self._num_images + 1) * self._num_repeats
        return self._seed, epoch, int(self._images[number]), repeat


def _too_few(num_images: int, batch_size: int, multiple: int) -> str:
    """Returns the message for a batch that is too large, with a size that is not refused."""
    largest = num_images - num_images % multiple
    found = f"There are {num_images} training images and the batch size is {batch_size}. "
    if not largest:
        return f"{found}A step needs {multiple} or more: processes, parts and pairs of Mixup share it."
    return f"{found}Pass a batch size of at most {largest}{f', a multiple of {multiple}' if multiple > 1 else ''}."


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise UserError(f"rank must lie in [0, world_size). Received: {rank} of {world_size}.")


class _Broken(NamedTuple):
    """Marks a batch without any readable image. Exceptions of worker processes would arrive as tracebacks."""

    message: str


class _AugmentedImages(Dataset[Any]):
    """Data set that returns the batch of a step from `__getitems__`."""

    def __init__(self, source: Source, transform: ViewTransform, order: StepOrder, units: int) -> None:
        self._source, self._transform, self._order, self._units = source, transform, order, units

    def __getitems__(self, step: int) -> Batch | _Broken:
        """Draws views. Replaces an unreadable image by another view of the next image of the step."""
        views = self._order.views(step)
        fetch_ahead(self._source, np.array([index for _, _, index, _ in views]))
        shown: list[View] = []
        left_out: dict[int, str] = {}  # number of an image -> why it cannot be read
        pixels: Tensor | None = None
        weak: dict[int, Tensor] = {}
        with random_state_kept():
            for place, wanted in enumerate(views):
                for view in itertools.chain([wanted], self._order.stand_ins(step, place)):
                    if view[2] in left_out:
                        continue
                    try:
                        drawn = self._draw(view, None if pixels is None else pixels[place], place, weak)
                    except UnreachableError as error:
                        return _Broken(str(error))
                    except (ImageError, OSError) as error:
                        left_out[view[2]] = _reason(error)
                        continue
                    if pixels is None:
                        pixels = drawn.new_empty(len(views), *drawn.shape)
                        pixels[place] = drawn
                    shown.append(view)
                    break
                else:
                    return _Broken(left_out[wanted[2]])
        assert pixels is not None
        targets = torch.from_numpy(self._source.labels[[index for _, _, index, _ in shown]])
        second = torch.stack([weak[place] for place in range(len(views))]) if weak else None
        units = [slice(number, None, self._units) for number in range(self._units)]
        checksums = tuple(_checksum(pixels[unit], targets[unit], shown[unit]) for unit in units)
        return Batch(pixels, targets, checksums, tuple(left_out.items()), second)

    def _draw(self, view: View, out: Tensor | None, place: int, weak: dict[int, Tensor]) -> Tensor:
        """Draws one view, and puts a second one into `weak` if the transform has one."""
        seed, epoch, index, repeat = view
        image = self._source.image(index)
        if self._transform.weak is not None:
            set_random_state(seed, _WEAK_KEY, epoch, index, repeat)
            weak[place] = self._transform.weak(image)
        set_random_state(*view_key(seed, epoch, index, repeat))
        return self._transform(image, out)


def _reason(error: ImageError | OSError) -> str:
    if isinstance(error, ImageError):
        return str(error)
    return f"A training image can no longer be read ({error}). Restore it, or leave it out."


def view_key(seed: int, epoch: int, index: int, repeat: int = 0) -> tuple[int, ...]:
    """Returns the random key (see `seeded`) of a view."""
    return (seed, _VIEW_KEY, epoch, index, repeat) if repeat else (seed, _VIEW_KEY, epoch, index)


def _checksum(pixels: Tensor, targets: Tensor, views: Sequence[View]) -> int:
    stride = max(min(pixels.shape[-2:]) // 14, 1)  # every 16th row and column of 224
    crc = zlib.crc32(pixels[:, :, ::stride, ::stride].numpy().tobytes())
    crc = zlib.crc32(targets.numpy().tobytes(), crc)
    return zlib.crc32(np.array(views, np.int64).tobytes(), crc)


def _whole(batch: Any) -> Any:
    """Replaces collating, because the data set returns whole batches."""
    return batch


class _TrainingBatches:
    """Batches of a `DataLoader`. Turns `_Broken` markers into errors."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, _Broken):
                raise ImageError(batch.message)
            yield batch


def training_batches(
    source: Source,
    transform: ViewTransform,
    order: StepOrder,
    *,
    num_workers: int = -1,
    pin_memory: bool = False,
    units: int = 1,
) -> Iterable[Batch]:
    """Returns one `Batch` for each step of `order`. Lists unreadable images in `Batch.left_out`.

    The replacement of an unreadable image depends only on the step, so resumed runs, teacher caches and any number of
    processes and workers see the same views. A step without any readable image raises ImageError.

    Args:
        source: Labeled images.
        transform: Transform of one image, see `build_transform`.
        order: Order of the views.
        num_workers: Processes that prepare images; -1 chooses, see `default_workers`.
        pin_memory: True puts batches in page-locked memory, for a faster copy to a GPU.
        units: Number of parts of each batch that get a checksum; the images i, i + units, ... are one. See
            `TeacherCache`.
    """
    workers = default_workers(gpu=pin_memory) if num_workers < 0 else num_workers
    loader = DataLoader(
        _AugmentedImages(source, transform, order, units),
        batch_sampler=order.steps,  # type: ignore[arg-type]  # the data set knows the views of a step
        num_workers=workers,
        collate_fn=_whole,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # its own, because other threads may use the default generator
    )
    return _TrainingBatches(loader)


def _begin_worker(number: int) -> None:
    forget_other_threads()
    for number in STOP_SIGNALS:  # terminals and job schedulers send them to all processes
        signal.signal(number, signal.SIG_IGN)  # the run stops and ends its workers


def refuse_import_by_worker() -> None:
    """Refuses to train in a worker process that imports the main script.

    Spawned processes (macOS, Windows, Python 3.14) import the main script, and would train as well.

    Raises:
        UserError: This is such a worker process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "A worker process imports this script and started the training again. Put the code of the script into "
            '`def main():`, and `if __name__ == "__main__": main()` at its end; or pass num_workers=0.'
        )


def default_workers(*, gpu: bool = False) -> int:
    """Returns the default number of processes that prepare images.

    Args:
        gpu: True if the model computes on a GPU, which leaves the CPU cores free for images. Otherwise a machine with
            up to 2 cores has none to spare.
    """
    cores = usable_cores()
    if cores <= 2:
        return cores if gpu else 0
    return min(cores - 1, 16)


class EvaluationBatches:
    """Yields pixels (B, 3, H, W) and targets (B, ...) as NumPy arrays, in order; the last batch may be smaller.

    Args:
        source: Labeled images; its `image` is called from several threads.
        processor: The preprocessing of the model.
        batch_size: Images in a batch.
        rank: Number of this process, which takes every world_size-th image.
        world_size: Number of processes. Together they yield every image once, without padding; a process may get one
            image less than another, or none.

    Attributes:
        left_out: Number of each unreadable image of the last pass -> reason. Batches lack these images.
        numbers: Numbers of the images of the last batch.

    Raises:
        ValueError: `batch_size` is smaller than 1, or `rank` is not below `world_size`.
    """

    def __init__(
        self, source: Source, processor: DeiTImageProcessor, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1. Received: {batch_size}.")
        _check_rank(rank, world_size)
        self._source = source
        self._processor = processor
        self._batch_size = batch_size
        self._numbers = range(rank, len(source.labels), world_size)
        self.left_out: dict[int, str] = {}
        self.numbers: list[int] = []

    def __len__(self) -> int:
        return -(-len(self._numbers) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[Any]]]:
        self.left_out.clear()
        batches = pixel_batches(
            self._numbers,
            self._processor,
            self._batch_size,
            read=self._source.image,
            name=lambda number: place_of(self._source, number),
        )
        for batch in batches:
            self.left_out |= {i: error for i, error in zip(batch.items, batch.errors, strict=True) if error}
            self.numbers = batch.readable
            if batch.pixels is not None:
                yield batch.pixels, self._source.labels[self.numbers]

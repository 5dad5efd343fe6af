"""Opens the images of a training as the `data` section of its recipe says, and puts them in order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from deit.data.exclusions import ExclusionList
from deit.data.few_labels import labelled_again, limited, with_fewer_labels, with_fewer_unlabelled
from deit.data.loader import Batch, StepOrder, training_batches
from deit.data.open_data import open_data, open_unlabelled
from deit.data.shard_order import buffer_of, pieces_of
from deit.data.sources import Data, Progress, Source
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe
from deit.train.tasks.pseudo_labels import training_transform
from deit.train.tasks.task import Task


def open_images(
    path: str, recipe: Recipe, *, labelled: bool = True, taught: bool = False, progress: Progress | None = None
) -> Data:
    """Opens images for a training.

    Args:
        path: See `open_data`, or `open_unlabelled` if `labelled` is off.
        recipe: Its `data` section is used.
        labelled: False ignores labels, for masked images.
        taught: True keeps images without labels, for a teacher; pseudo-labels keep them, too.
        progress: See `open_data`.

    Raises:
        OSError: See `open_data`.
        ValueError: See `open_data` and `with_fewer_labels`.
    """
    options = recipe.data
    taught = taught or recipe.pseudo_labels.weight > 0
    listed = ExclusionList(options.exclude, path, expected_hash=options.exclude_hash) if options.exclude else None
    read: dict[str, Any] = {
        "val_fraction": options.val_fraction,
        "seed": options.split_seed,
        "strict": options.strict,
        "image_column": options.image_column,
        "label_column": options.label_column,
        "problem_type": options.problem_type,
        "label_separator": options.label_separator,
        "value_range": options.range,
        "check": options.check_images,
        "exclude": listed,
        "progress": progress,
    }
    opened = open_data(path, keep_unlabelled=taught, **read) if labelled else open_unlabelled(path, **read)
    images = limited(opened, train=options.max_train_images, val=options.max_val_images)
    if not labelled:
        return images
    fewer = with_fewer_labels(
        images,
        labels_per_class=options.labels_per_class,
        label_fraction=options.label_fraction,
        seed=options.label_seed,
        keep_others=taught,
    )
    return with_fewer_unlabelled(fewer, options.max_unlabelled_images)


def step_order(images: Source, recipe: Recipe, processes: Processes, first_step: int, last_step: int) -> StepOrder:
    """Returns which images this process shows in which step of a training.

    Args:
        images: Training images.
        recipe: Of the training.
        processes: Those that share each step.
        first_step: To begin with, from 0.
        last_step: To end before.
    """
    buffer = buffer_of(images, recipe.data.shuffle_buffer)
    return StepOrder(
        len(images.labels),
        recipe.batch_size,
        recipe.seed,
        first_step,
        last_step,
        num_repeats=recipe.augment.num_repeats,
        multiple=recipe.batch_multiple(processes.world_size),
        again=labelled_again(images, recipe.data.labelled_share),
        pieces=pieces_of(images) if buffer else None,
        buffer=buffer,
        rank=processes.rank,
        world_size=processes.world_size,
    )


def open_batches(
    task: Task, images: Source, recipe: Recipe, order: StepOrder, device: torch.device, processes: Processes
) -> Iterable[Batch]:
    """Returns the batches of this process for a training, with the checksums that the task's teacher cache needs.

    Args:
        task: Of the training.
        images: Training images.
        recipe: Of the training.
        order: From `step_order`.
        device: That computes.
        processes: Those that share each step.
    """
    return training_batches(
        images,
        training_transform(recipe, task.processor),
        order,
        num_workers=recipe.num_workers,
        pin_memory=device.type == "cuda",
        units=1 if task.cache is None else task.cache.units // processes.world_size,
    )

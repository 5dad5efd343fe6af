"""Looks at what a plan is made from: the images, the machine, and the weights that lie on it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from deit.core.config.config import DeiTConfig
from deit.core.errors import UserError
from deit.core.hub import HubOptions, local_path
from deit.core.images.reading import ImageError
from deit.core.processing.batches import usable_cores
from deit.core.published import VARIANTS
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.divisions import labelled_numbers
from deit.data.few_labels import with_fewer_unlabelled
from deit.data.loader import default_workers
from deit.data.sources import Data, Source, Subset, contents_of
from deit.models.weights.from_pretrained import FileOptions, open_checkpoint
from deit.models.weights.model_names import published_place
from deit.planning.facts import DataFacts, MachineFacts, Reachable
from deit.runtime.auto_precision import TRAINING, choose_precision
from deit.runtime.devices import resolve
from deit.runtime.memory import free_memory
from deit.train.recipes.recipe import Recipe
from deit.train.students.start import config_of
from deit.train.students.timm import timm_architecture

logger = logging.getLogger(__name__)

_SAMPLE = 32  # images whose sizes are looked at
_MIRRORED_SAMPLE, _LEAST_MIRRORED, _MIRRORED_SIDE = 200, 40, 16
_MOST_PIXELS_READ = 500_000_000  # in search of mirror images: 41 photos of 12 megapixels, some seconds
_COPY = 0.98  # correlation of two images from which they count as one: frames of a burst tell nothing of mirrors
_CONVNETS = ("timm/resnet10t", "timm/resnet18", "timm/resnet26t", "timm/resnet50")


def look_at_data(data: Data) -> DataFacts:
    """Returns what a plan needs to know about the images. Reads a sample of them.

    Raises:
        UserError: Nothing can be learnt from the images: all are the same, or a class has no image to learn from.
    """
    train = data.train
    labelled = labelled_numbers(train.labels)
    _refuse_copies_of_one(train)
    facts: dict[str, Any] = {}
    if train.problem_type == SINGLE_LABEL:
        counts = np.bincount(train.labels[labelled], minlength=len(train.classes))
        facts = {"smallest_class": int(counts.min()), "largest_class": int(counts.max())}
    rest = np.setdiff1d(np.arange(len(train.labels)), labelled)
    return DataFacts(
        labelled=len(labelled),
        unlabelled=len(rest),
        val_images=len(data.val.labels),
        classes=len(train.classes),
        side=typical_side(train, labelled),
        mirrored=mirrored_share(train, labelled),
        unlabelled_side=typical_side(train, rest) if len(rest) else 0,
        problem_type=train.problem_type,
        **facts,
    )


def labelled_part(data: Data) -> Data:
    """Returns the data without the training images that have no label; the same where all have one."""
    labelled = labelled_numbers(data.train.labels)
    if len(labelled) == len(data.train.labels):
        return data
    return Data(train=Subset(data.train, labelled), val=data.val, held_out=data.held_out)


def student_part(data: Data, recipe: Recipe, *, taught: bool) -> Data:
    """Returns the data that a student learns from: with a teacher as many images without a label as its recipe says."""
    return with_fewer_unlabelled(data, recipe.data.max_unlabelled_images) if taught else labelled_part(data)


def _refuse_copies_of_one(source: Source) -> None:
    contents = contents_of(source)
    if contents is not None and len(contents) > 1 and len(np.unique(contents)) == 1:
        raise UserError(
            f"All {len(contents)} training images are copies of one image: there is nothing to learn from. "
            "Pass different images."
        )


def typical_side(source: Source, numbers: Any) -> int:
    """Returns the median of the shorter sides of a sample of images, in pixels.

    Args:
        source: The images.
        numbers: Of those that are meant; at least one.
    """
    sides = [min(image.size) for image in _sample(source, numbers, _SAMPLE)]
    return int(np.median(sides)) if sides else 0


def _sample(source: Source, numbers: Any, count: int) -> Iterator[Image.Image]:
    """Yields evenly spaced images out of `numbers` in mixed order, without those that cannot be read."""
    places = np.unique(np.linspace(0, len(numbers) - 1, count).round().astype(int))
    for number in numbers[np.random.default_rng(0).permutation(places)]:
        try:
            yield source.image(int(number))
        except (ImageError, OSError) as error:
            logger.debug("%s", error)


def mirrored_share(source: Source, numbers: Any) -> float:
    """Returns the share of a sample of images whose nearest other image is a mirror image.

    Compares each image with the others of the sample and with their mirror images: by the correlation of 16 x 16 gray
    pixels, copies left out. Photos of CIFAR-10 and ImageNet have 0.48, since left and right mean nothing there.
    Scikit-learn's digits have 0.03, because a mirrored digit resembles none. The sample has up to 200 images, fewer
    where they are large.

    Args:
        source: The images.
        numbers: Of those that are meant.

    Returns:
        The share; 0.5 where there are too few images to tell.
    """
    found, pixels_read = [], 0
    for image in _sample(source, numbers, _MIRRORED_SAMPLE):
        pixels_read += image.width * image.height
        if pixels_read > _MOST_PIXELS_READ:
            break
        pixels = np.asarray(image.convert("L").resize((_MIRRORED_SIDE, _MIRRORED_SIDE)), np.float32)
        if pixels.std() > 0:
            found.append((pixels - pixels.mean()) / (pixels.std() * _MIRRORED_SIDE))
    if len(found) < _LEAST_MIRRORED:
        return 0.5
    images = np.stack(found)
    plain = images.reshape(len(images), -1)
    likeness = plain @ plain.T
    with_mirrors = plain @ images[:, :, ::-1].reshape(len(images), -1).T
    copies = (likeness > _COPY) | (with_mirrors > _COPY)
    np.fill_diagonal(copies, True)
    nearest, mirror = (np.where(copies, -2.0, each).max(axis=1) for each in (likeness, with_mirrors))
    return float((mirror > nearest).mean())


def look_at_machine(
    device: str | torch.device | None = None, precision: str = "auto", processes: int = 1
) -> MachineFacts:
    """Returns what a plan needs to know about the machine.

    Args:
        device: Where the training will run; None and "auto" take the GPU if there is one.
        precision: Of the recipe.
        processes: Processes that share each step.
    """
    found = resolve(device).device
    on_gpu = found.type == "cuda"
    if on_gpu:
        name, memory = torch.cuda.get_device_name(found), torch.cuda.mem_get_info(found)[0]
    else:
        name, memory = platform.processor() or platform.machine(), free_memory()
    return MachineFacts(
        device=found.type,
        name=name,
        cores=usable_cores(),
        workers=default_workers(gpu=on_gpu),
        memory=memory,
        precision=choose_precision(precision, found, TRAINING).precision,
        processes=processes,
    )


def look_for_weights(init: str = "") -> Reachable:
    """Returns the published weights that lie in the cache of the model hub, asking nobody, and a fact of given ones.

    Args:
        init: Weights to start from; empty for none.

    Raises:
        OSError: The given weights cannot be found.
        UserError: They hold no model that is known.
    """
    students = [name for name, variant in VARIANTS.items() if variant.source and _is_cached(variant.source)]
    students.sort(key=lambda name: VARIANTS[name].parameters or 0)
    convnets = []
    for name in _CONVNETS:
        try:
            place = str(published_place(name))
        except (UserError, ModuleNotFoundError):
            continue
        if _is_cached(place):
            convnets.append(name)
    return Reachable(students=tuple(students), convnets=tuple(convnets), taught_side=_taught_side(init) if init else 0)


def _taught_side(init: str) -> int:
    checkpoint = open_checkpoint(init, FileOptions())
    if timm_architecture(checkpoint) is not None:
        return 0
    config = config_of(checkpoint)
    sides = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size]
    can_be_taught = isinstance(config, DeiTConfig) and not config.token_merging and len(set(sides)) == 1
    return int(sides[0]) if can_be_taught else 0


def _is_cached(name: str) -> bool:
    try:
        folder = local_path(name, options=HubOptions(local_files_only=True))
    except (OSError, ModuleNotFoundError):
        return False
    return any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())

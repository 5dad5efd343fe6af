"""Fits settings: batch size and hidden blocks to small data sets, the warm-up to the number of epochs."""

from __future__ import annotations

import math
from typing import Any

from deit.core.errors import UserError
from deit.data.masks import BlockMasks
from deit.train.recipes.recipe import Recipe

_STEPS_PER_EPOCH = 10  # at least; one step per epoch hardly trains
_LEAST_BATCH = 8
_LARGEST_WARMUP = 0.1  # share of the epochs
_BLOCKS_PER_SIDE = 7  # of SimMIM: 224 pixels in blocks of 32

# For a recipe that a plan completes: the plan chooses the warm-up, and the default's five epochs may be too many.
NO_WARMUP: dict[str, Any] = {"schedule.warmup_epochs": 0.0}


def other_length(recipe: Recipe, epochs: int) -> dict[str, Any]:
    """Returns the settings that give a recipe another number of epochs, and another warm-up where it must change.

    Fewer epochs have no more of them as warm-up than a tenth, or the recipe's share where that is larger: five of ten
    would leave the learning rate no time at its height.
    """
    warmup = recipe.schedule.warmup_epochs
    share = max(warmup / recipe.schedule.epochs, _LARGEST_WARMUP)
    shorter = round(share * epochs, 3)
    return {"schedule.epochs": epochs, **({"schedule.warmup_epochs": shorter} if shorter < warmup else {})}


def fitting_batch(images: int, batch_size: int, multiple: int = 1) -> int:
    """Returns the given batch size if an epoch then has at least ten steps, else a smaller one.

    Args:
        images: Number of training images.
        batch_size: Preferred batch size.
        multiple: Number that must divide the result; see `Recipe.batch_multiple`.

    Returns:
        `batch_size`, or a power of two of at least 8, at most `images`, rounded down to a multiple of `multiple`.
    """
    if images >= _STEPS_PER_EPOCH * batch_size:
        return batch_size
    size = max(2 ** int(math.log2(max(images / _STEPS_PER_EPOCH, 1))), _LEAST_BATCH)
    size = min(size, images, batch_size)
    return max(size // multiple, 1) * multiple


def fitting_mask_patch(image_size: tuple[int, int], patch_size: tuple[int, int], mask_patch: int, ratio: float) -> int:
    """Returns the given side of hidden blocks if it fits the image, else the fitting side nearest to a seventh of it.

    Args:
        image_size: (height, width) in pixels.
        patch_size: (height, width) of the model's patches.
        mask_patch: Preferred side in pixels.
        ratio: Share of hidden blocks.

    Returns:
        A side in pixels; `mask_patch` if none fits, so that `BlockMasks` reports the reason.
    """
    sides = range(1, min(image_size) + 1)
    fitting = [side for side in (mask_patch, *sides) if _fits(image_size, patch_size, side, ratio)]
    if not fitting or fitting[0] == mask_patch:
        return mask_patch
    return min(fitting, key=lambda side: abs(side - min(image_size) / _BLOCKS_PER_SIDE))


def _fits(image_size: tuple[int, int], patch_size: tuple[int, int], mask_patch: int, ratio: float) -> bool:
    if any(mask_patch % side for side in patch_size) or any(side % mask_patch for side in image_size):
        return False
    try:
        BlockMasks(image_size, patch_size, mask_patch=mask_patch, ratio=ratio)
    except UserError:  # a mask would hide the whole image
        return False
    return True

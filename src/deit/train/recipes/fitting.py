"""Settings of large data sets made to fit a small one: the size of batches, and of the blocks that masks hide."""

from __future__ import annotations

import math

from deit.core.errors import UserError
from deit.data.masks import BlockMasks

_STEPS_PER_EPOCH = 10  # at least; an epoch of one step would hardly train
_LEAST_BATCH = 8
_BLOCKS_PER_SIDE = 7  # of SimMIM: 224 pixels in blocks of 32


def fitting_batch(images: int, batch_size: int, multiple: int = 1) -> int:
    """Returns a batch size for a number of images: the one wished for if an epoch then has ten steps, else less.

    Args:
        images: To train on.
        batch_size: Wished for.
        multiple: Of which it must be one, see `Recipe.batch_multiple`.

    Returns:
        The batch size wished for; or a power of two, at least 8, rounded to `multiple`; at most all images.
    """
    if images >= _STEPS_PER_EPOCH * batch_size:
        return batch_size
    size = max(2 ** int(math.log2(max(images / _STEPS_PER_EPOCH, 1))), _LEAST_BATCH)
    size = min(size, images, batch_size)
    return max(size // multiple, 1) * multiple


def fitting_mask_patch(image_size: tuple[int, int], patch_size: tuple[int, int], mask_patch: int, ratio: float) -> int:
    """Returns the side of hidden blocks that fits an image: the one wished for, else the nearest to a seventh of it.

    Args:
        image_size: (height, width) in pixels.
        patch_size: (height, width) of the model's patches.
        mask_patch: Wished for.
        ratio: Share of hidden blocks.

    Returns:
        A side in pixels; the one wished for where none fits, so that `BlockMasks` says why.
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
    except UserError:  # a mask would hide all of it
        return False
    return True

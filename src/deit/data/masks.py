"""Draws the hidden patches of masked-image training: SimMIM's square blocks (arXiv 2111.09886, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deit.core.errors import UserError

# First numbers of random keys. Views use 0, mixing 1, the model 2.
_TRAINING_KEY, _EVALUATION_KEY = 3, 4


class BlockMasks:
    """Draws masks of square blocks, as SimMIM and the `run_mim` script of transformers do.

    Divides the image into blocks of `mask_patch` pixels and hides the share `ratio` of them, rounded up. Each block
    covers whole patches of the model. Every image has the same number of hidden patches.

    Args:
        image_size: (height, width) in pixels.
        patch_size: (height, width) of the model's patches.
        mask_patch: Side of a block in pixels; 32 in SimMIM, for images of 192 or 224 pixels.
        ratio: Share of the blocks that are hidden; 0.6 in SimMIM.

    Attributes:
        num_patches: Number of patches P of an image.
        num_masked: Number of patches that a mask hides.

    Raises:
        ValueError: Patches do not fill a block, or blocks do not fill the image; or a mask would hide everything.

    Examples:
        >>> masks = BlockMasks((64, 96), (16, 16), mask_patch=32, ratio=0.5)
        >>> masks.num_patches, masks.num_masked
        (24, 12)
    """

    def __init__(
        self, image_size: tuple[int, int], patch_size: tuple[int, int], *, mask_patch: int = 32, ratio: float = 0.6
    ) -> None:
        if mask_patch < 1 or not 0 < ratio < 1:
            raise UserError(
                f"masking.patch must be at least 1 and masking.ratio lie between 0 and 1. Received: {mask_patch} and "
                f"{ratio}."
            )
        for side in patch_size:
            if mask_patch % side:
                near = max(mask_patch // side, 1) * side
                raise UserError(
                    f"The mask patch {mask_patch} is not a multiple of the model's patch size {side}. "
                    f"Pass masking.patch={near}."
                )
        for side in image_size:
            if side % mask_patch:
                raise UserError(
                    f"The image size {side} is not a multiple of the mask patch {mask_patch}. Pass an image size of "
                    f"{max(side // mask_patch, 1) * mask_patch}, or another masking.patch."
                )
        self._blocks = (image_size[0] // mask_patch, image_size[1] // mask_patch)
        self._scale = (mask_patch // patch_size[0], mask_patch // patch_size[1])
        self._count = self._blocks[0] * self._blocks[1]
        self._hidden = math.ceil(self._count * ratio)
        if self._hidden == self._count:
            raise UserError(
                f"A mask would hide all of the image: {image_size[0]} x {image_size[1]} pixels are {self._count} "
                f"block(s) of {mask_patch}, and a share of {ratio} is rounded up. Pass a smaller masking.patch."
            )
        per_block = self._scale[0] * self._scale[1]
        self.num_patches = self._count * per_block
        self.num_masked = self._hidden * per_block

    def draw(self, random: np.random.Generator | np.random.RandomState) -> npt.NDArray[np.bool_]:
        """Draws one mask (P,), True for hidden patches. Equals run_mim's mask for an equal generator."""
        blocks = np.zeros(self._count, dtype=bool)
        blocks[random.permutation(self._count)[: self._hidden]] = True
        rows = blocks.reshape(self._blocks).repeat(self._scale[0], axis=0)
        return rows.repeat(self._scale[1], axis=1).reshape(-1)

    def for_step(self, seed: int, step: int, positions: Iterable[int]) -> Tensor:
        """Returns the masks of a training step, (B, P) bool: a function of seed, step and position.

        Args:
            seed: Random seed of the run.
            step: Number of the step, from 0.
            positions: Positions of the images in the whole step, over all processes.
        """
        return self._drawn((seed, _TRAINING_KEY, step, position) for position in positions)

    def for_images(self, numbers: Iterable[int]) -> Tensor:
        """Returns the masks of an evaluation, (B, P) bool: a function of the number of the image."""
        return self._drawn((_EVALUATION_KEY, number) for number in numbers)

    def _drawn(self, keys: Iterable[tuple[int, ...]]) -> Tensor:
        return torch.from_numpy(np.stack([self.draw(np.random.default_rng(key)) for key in keys]))

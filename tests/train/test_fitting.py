"""Batches and masks of large recipes for small data sets."""

from __future__ import annotations

import pytest

from deit.data.masks import BlockMasks
from deit.train.recipes.fitting import fitting_batch, fitting_mask_patch


@pytest.mark.parametrize(
    ("images", "wished", "multiple", "expected"),
    [(100_000, 2048, 1, 2048), (20_480, 2048, 1, 2048), (20_479, 2048, 1, 1024), (720, 2048, 1, 64), (900, 32, 1, 32),
     (24, 2048, 1, 8), (5, 2048, 1, 5), (720, 2048, 3, 63), (720, 2048, 4, 64), (2, 2048, 4, 4)],
)  # fmt: skip
def test_a_batch_leaves_an_epoch_ten_steps_where_that_can_be(images, wished, multiple, expected):
    assert fitting_batch(images, wished, multiple) == expected
    assert expected % multiple == 0


@pytest.mark.parametrize(
    ("image", "patch", "wished", "expected"),
    [((224, 224), (16, 16), 32, 32), ((192, 192), (16, 16), 32, 32), ((32, 32), (8, 8), 32, 8),
     ((32, 32), (4, 4), 9, 4), ((48, 48), (16, 16), 32, 16), ((112, 112), (16, 16), 32, 16),
     ((240, 160), (16, 16), 32, 16),
     ((96, 96), (12, 12), 32, 12), ((17, 17), (16, 16), 32, 32)],
)  # fmt: skip
def test_a_mask_patch_fits_image_and_patches(image, patch, wished, expected):
    assert fitting_mask_patch(image, patch, wished, 0.6) == expected
    if not image[0] % expected:
        BlockMasks(image, patch, mask_patch=expected, ratio=0.6)

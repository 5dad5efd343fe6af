"""The masks of SimMIM, against the generator of transformers' run_mim script written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deit.data.masks import BlockMasks


def run_mim(input_size: int, mask_patch_size: int, model_patch_size: int, mask_ratio: float) -> torch.Tensor:
    """What the script's generator computes, from numpy's global random state."""
    side, scale = input_size // mask_patch_size, mask_patch_size // model_patch_size
    chosen = np.random.permutation(side**2)[: int(np.ceil(side**2 * mask_ratio))]
    flat = np.zeros(side**2, dtype=int)
    flat[chosen] = 1
    return torch.tensor(np.kron(flat.reshape(side, side), np.ones((scale, scale), dtype=int)).flatten())


@pytest.mark.parametrize(
    ("side", "block", "patch", "ratio"),
    [(192, 32, 4, 0.6), (224, 32, 16, 0.6), (224, 16, 16, 0.4), (32, 8, 4, 0.75), (384, 64, 16, 0.5)],
)
def test_from_an_equal_random_state_the_mask_equals_run_mim(side, block, patch, ratio):
    masks = BlockMasks((side, side), (patch, patch), mask_patch=block, ratio=ratio)
    for seed in range(5):
        np.random.seed(seed)
        expected = run_mim(side, block, patch, ratio)
        received = torch.from_numpy(masks.draw(np.random.RandomState(seed)))
        assert torch.equal(received.to(torch.int64), expected)
        assert (len(received), int(received.sum())) == (masks.num_patches, masks.num_masked)


def test_an_image_need_not_be_square_nor_its_patches():
    masks = BlockMasks((32, 96), (16, 8), mask_patch=32, ratio=0.5)
    mask = masks.draw(np.random.default_rng(0)).reshape(2, 12)
    blocks = mask.reshape(2, 3, 4)
    assert (blocks == blocks[:1, :, :1]).all()  # each block of 2 x 4 patches is hidden whole or not at all
    assert mask.sum() == 2 * 2 * 4  # half of three blocks, rounded up


def test_a_mask_is_a_function_of_seed_step_and_place():
    masks = BlockMasks((64, 64), (8, 8), mask_patch=8)
    whole = masks.for_step(3, 7, range(8))
    assert torch.equal(masks.for_step(3, 7, range(1, 8, 2)), whole[1::2])  # the share of a process
    assert len({tuple(row.tolist()) for row in whole}) == 8
    for other in (masks.for_step(4, 7, range(8)), masks.for_step(3, 8, range(8)), masks.for_images(range(8))):
        assert not torch.equal(other, whole)
    assert whole.dtype == torch.bool
    assert torch.equal(masks.for_images([5]), masks.for_images(range(8))[5:6])


def test_every_block_is_hidden_equally_often():
    masks = BlockMasks((64, 64), (16, 16), mask_patch=16, ratio=0.25)
    share = masks.for_step(0, 0, range(2000)).float().mean(0)
    assert torch.allclose(share, torch.full((16,), 0.25), atol=0.04)


@pytest.mark.parametrize(
    ("image", "patch", "block", "ratio", "message"),
    [
        ((224, 224), (16, 16), 24, 0.6, "mask patch 24 is not a multiple .* patch size 16. Pass masking.patch=16"),
        ((224, 240), (16, 16), 32, 0.6, "size 240 is not a multiple of the mask patch 32. Pass .* 224"),
        ((32, 32), (4, 4), 32, 0.6, "would hide all of the image: 32 x 32 pixels are 1 block"),
        ((32, 32), (4, 4), 8, 1.0, "masking.ratio lie between 0 and 1. Received: 8 and 1.0"),
        ((32, 32), (4, 4), 0, 0.5, "masking.patch must be at least 1"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(image, patch, block, ratio, message):
    with pytest.raises(ValueError, match=message):
        BlockMasks(image, patch, mask_patch=block, ratio=ratio)

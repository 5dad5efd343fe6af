"""Masked-image models against transformers' on the masks of its run_mim script: loss, reconstruction and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deit.data.masks import BlockMasks
from deit.models.weights.loading import published_tensors
from tests.data.test_masks import run_mim

MODELS = ("DeiTForMaskedImageModeling", "ViTForMaskedImageModeling")
# Sides of the image, of the model's patches and of a block of the mask, in pixels.
SIZES = ((32, 4, 8), (64, 16, 32))
BATCH = 3
TOLERANCE = 1e-5


@pytest.fixture
def models(pair: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Builds (transformers' model, ours) for images and patches of the given sides."""

    def build(name: str, side: int, patch: int, **options: Any) -> tuple[Any, Any]:
        return pair(name, image_size=side, patch_size=patch, encoder_stride=patch, **options)

    return build


def pixels(side: int) -> Tensor:
    return torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(1))


def block_masks(side: int, patch: int, block: int, dtype: torch.dtype = torch.bool) -> Tensor:
    """A mask for each image: the truth values of `deit pretrain`, or the int64 of run_mim, drawn by its generator."""
    if dtype == torch.int64:
        np.random.seed(4)
        masks = torch.stack([run_mim(side, block, patch, 0.6) for _ in range(BATCH)])
    else:
        random, drawn = np.random.RandomState(4), BlockMasks((side, side), (patch, patch), mask_patch=block)
        masks = torch.from_numpy(np.stack([drawn.draw(random) for _ in range(BATCH)]))
    assert masks.dtype == dtype
    return masks


def hidden_pixels(masks: Tensor, side: int, patch: int) -> Tensor:
    """(B, C, H, W), True where a pixel is hidden, from (B, P)."""
    grid = masks.bool().reshape(BATCH, 1, side // patch, side // patch)
    return torch.kron(grid.int(), torch.ones(1, 3, patch, patch, dtype=torch.int32)).bool()


@pytest.mark.parametrize("sizes", SIZES)
def test_both_kinds_of_masks_hide_the_same_patches_and_differ_between_images(sizes):
    masks = block_masks(*sizes)
    assert torch.equal(masks.to(torch.int64), block_masks(*sizes, torch.int64))
    assert len({tuple(mask.tolist()) for mask in masks}) > 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_loss_reconstruction_and_every_gradient_are_those_of_transformers(
    models, gradients_of, name, sizes, dtype, attention
):
    side, patch, _ = sizes
    oracle, ours = models(name, side, patch, attention=attention)
    given = {"pixel_values": pixels(side), "bool_masked_pos": block_masks(*sizes, dtype)}
    theirs, own = oracle(**given), ours(**given)
    assert list(own) == list(theirs) == ["loss", "reconstruction"]
    assert theirs.loss > 0.1
    for field in theirs:
        torch.testing.assert_close(own[field], theirs[field], atol=TOLERANCE, rtol=0)
    for output in (theirs, own):
        output.loss.backward()
    expected = gradients_of(oracle)
    received = published_tensors({name: p.grad for name, p in ours.named_parameters()})
    assert set(received) == set(expected)
    for weight, gradient in expected.items():
        torch.testing.assert_close(
            received[weight], gradient, atol=TOLERANCE, rtol=0, msg=lambda m, w=weight: f"{w}: {m}"
        )
    token = next(gradient for weight, gradient in expected.items() if weight.endswith("mask_token"))
    assert token.abs().max() > 1e-3


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_only_masked_pixels_carry_gradient(models, name, sizes):
    """The loss is the mean of |error| over the hidden pixels: each has the same gradient but for its sign."""
    side, patch, _ = sizes
    masks = block_masks(*sizes)
    hidden = hidden_pixels(masks, side, patch)
    gradients = []
    for model in models(name, side, patch):
        output = model(pixels(side), bool_masked_pos=masks)
        gradients.append(torch.autograd.grad(output.loss, output.reconstruction)[0])
        assert (gradients[-1][~hidden] == 0).all()
        sign = (output.reconstruction - pixels(side)).sign()
        torch.testing.assert_close(gradients[-1], hidden * sign / hidden.sum(), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("name", MODELS)
def test_an_empty_mask_gives_the_plain_forward_a_loss_of_zero_and_no_gradient(models, name, dtype):
    side, patch, _ = SIZES[0]
    for model in models(name, side, patch):
        plain = model(pixels(side))
        empty = model(pixels(side), bool_masked_pos=torch.zeros(BATCH, (side // patch) ** 2, dtype=dtype))
        assert "loss" not in plain
        assert empty.loss == 0
        assert torch.equal(empty.reconstruction, plain.reconstruction)
        empty.loss.backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_mask_changes_its_own_image_alone_and_hides_what_is_under_it(models, name):
    side, patch, _ = SIZES[0]
    masks = torch.zeros(BATCH, (side // patch) ** 2, dtype=torch.bool)
    masks[1, 13] = True
    other = pixels(side).where(~hidden_pixels(masks, side, patch), 5.0)
    for model in models(name, side, patch):
        plain, masked = (model(pixels(side), bool_masked_pos=m).reconstruction for m in (None, masks))
        assert (masked[1] - plain[1]).abs().amax((0, 1, 2)) > 0.01
        torch.testing.assert_close(masked[[0, 2]], plain[[0, 2]], atol=TOLERANCE, rtol=0)
        assert (model(other).reconstruction[1] - plain[1]).abs().max() > 0.01
        assert torch.equal(model(other, bool_masked_pos=masks).reconstruction, masked)

"""Draws initial values of a new student that resemble those of a trained one (mimetic initialization)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deit.models.trunk.vision_transformer import Attention, VisionTransformer

# Shares of noise and of the identity; those of the paper for small models.
_QUERY_KEY_NOISE, _QUERY_KEY_IDENTITY = 0.7, 0.7
_VALUE_OUTPUT_NOISE, _VALUE_OUTPUT_IDENTITY = 0.4, 0.4
# Amplitude of the position embedding. Patches of 4 pixels have values of 0.14 at the start (root mean square).
_AMPLITUDE = 0.3
_LONGEST_WAVE = 100.0  # relative to the shortest; grids of small images have 4 to 28 patches on a side


@torch.no_grad()
def initialize_mimetic(trunk: VisionTransformer) -> None:
    """Replaces the initial values of the attention layers and of the position embedding.

    In trained transformers the product of the query and key weights of a head resembles a multiple of the identity,
    and that of the value and output weights a negative one. This function draws weights with such products: tokens
    attend to similar tokens from the first step on. Positions begin as sines and cosines of row and column, so nearby
    patches are similar. All other values stay.

    Draws from PyTorch's global generator. Source: Trockman and Kolter 2023, "Mimetic initialization of self-attention
    layers" (arXiv 2305.09828), section 4; the amplitude of the positions was chosen here.

    Args:
        trunk: A new trunk. On the device "meta", where weights have no values, nothing is done.
    """
    if trunk.pos_embed.is_meta:
        return
    grid = trunk.pos_embed[0, trunk.num_prefix_positions :]
    grid.copy_(_AMPLITUDE * sine_positions(trunk.grid_size, grid.shape[1]))
    for block in trunk.blocks:
        attention = block.attn
        assert isinstance(attention, Attention)
        _initialize_attention(attention)


def _initialize_attention(attention: Attention) -> None:
    qkv, proj = attention.qkv, attention.proj
    assert isinstance(qkv, nn.Linear)
    inner, width = proj.in_features, proj.out_features
    query, key, value = qkv.weight.split(inner)
    for head in range(len(attention.heads)):
        rows = slice(head * attention.head_width, (head + 1) * attention.head_width)
        product = _noisy_identity(width, _QUERY_KEY_NOISE, _QUERY_KEY_IDENTITY)
        left, right = _factors(product, attention.head_width)
        query[rows], key[rows] = left.T, right
    product = _noisy_identity(width, _VALUE_OUTPUT_NOISE, -_VALUE_OUTPUT_IDENTITY)
    left, right = _factors(product, inner)
    value.copy_(left.T)
    proj.weight.copy_(right.T)


def _noisy_identity(width: int, noise: float, identity: float) -> Tensor:
    """Returns (D, D): normal noise with variance 1 / D, and a multiple of the identity."""
    return noise * torch.randn(width, width) / math.sqrt(width) + identity * torch.eye(width)


def _factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns (D, r) and (r, D), whose product is the best approximation of a matrix (D, D) of that rank."""
    left, values, right = torch.linalg.svd(product)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Returns sines and cosines of the rows and columns of a grid, (H * W, D), row by row.

    Args:
        grid: (H, W).
        width: D. A quarter of the channels each has the sines and cosines of the row and of the column, with wave
            lengths in geometric progression from 2 pi to 200 pi patches.
    """
    quarter = -(-width // 4)
    frequencies = _LONGEST_WAVE ** -torch.linspace(0, 1, quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    waves = [place.reshape(-1, 1) * frequencies for place in (rows, columns)]
    return torch.cat([each for wave in waves for each in (wave.sin(), wave.cos())], dim=1)[:, :width]

"""Patch grids, position embeddings of other image sizes, and head masks in Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError


def patch_grid(size: tuple[int | None, ...], config: VisionTransformerConfig) -> tuple[int, int]:
    """Returns the patches per column and row of an image; an unknown side (None) counts as the trained one."""
    height, width = (own if side is None else side for side, own in zip(size, config.grid_image_size, strict=True))
    patch_height, patch_width = config.grid_patch_size
    return height // patch_height, width // patch_width


def resize_position_embedding(
    positions: Any, old_grid: tuple[int, int], new_grid: tuple[int, int], *, num_prefix_positions: int
) -> Any:
    """Resizes the patch part of a position embedding; equals PyTorch's bicubic interpolation.

    Args:
        positions: (1, prefix + rows x columns, D), patches row by row.
        old_grid: (rows, columns) of `positions`.
        new_grid: (rows, columns) of the result; an equal grid returns `positions` itself.
        num_prefix_positions: Number of positions before the patches (0 for DeiT III).

    Returns:
        (1, prefix + new rows x new columns, D).
    """
    if new_grid == old_grid:
        return positions
    (rows, columns), (new_rows, new_columns) = old_grid, new_grid
    width = positions.shape[-1]
    prefix, patches = positions[:, :num_prefix_positions], positions[:, num_prefix_positions:]
    downwards = ops.convert_to_tensor(bicubic_matrix(rows, new_rows), dtype=positions.dtype)
    across = ops.convert_to_tensor(bicubic_matrix(columns, new_columns), dtype=positions.dtype)
    patches = ops.matmul(downwards, ops.reshape(patches, (rows, columns * width)))
    patches = ops.matmul(across, ops.reshape(patches, (new_rows, columns, width)))  # (new rows, new columns, D)
    return ops.concatenate([prefix, ops.reshape(patches, (1, new_rows * new_columns, width))], axis=1)


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Returns the matrix (new, old) of PyTorch's cubic resize of one axis: a = -0.75, edges repeated."""
    sharpness = -0.75
    places = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        x = np.abs(places - first - offset)
        near = (sharpness + 2) * x**3 - (sharpness + 3) * x**2 + 1
        far = sharpness * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def head_mask_per_block(head_mask: Any, depth: int, heads: int) -> Any:
    """Returns a head mask as (L, B or 1, H or 1, N or 1, N or 1); row i belongs to block i.

    Args:
        head_mask: (H,), (L, H), or already of five dimensions.
        depth: L.
        heads: H, pruned heads included.

    Raises:
        ValueError: The mask has the wrong shape.
    """
    shape = tuple(head_mask.shape)
    if shape in ((heads,), (depth, heads)):
        head_mask = ops.reshape(head_mask, (-1, 1, heads, 1, 1))
    elif len(shape) != 5 or shape[0] not in (1, depth) or shape[2] not in (1, heads):
        raise UserError(
            f"head_mask must have the shape (heads,) = ({heads},) or (layers, heads) = ({depth}, {heads}), or five "
            f"dimensions (layers, batch, heads, tokens, tokens). Received: {shape}."
        )
    return ops.broadcast_to(head_mask, (depth, *head_mask.shape[1:]))

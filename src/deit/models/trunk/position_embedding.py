"""The position embedding of one patch grid, brought to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_position_embedding(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], *, num_prefix_positions: int
) -> Tensor:
    """Resizes the patch part of a position embedding; the prefix tokens' part is untouched.

    Bicubic, as in the paper (section 3): bilinear would shrink the vectors.

    Args:
        positions: (1, prefix + rows x columns, D), patches row by row.
        old_grid: (rows, columns) of `positions`.
        new_grid: (rows, columns) asked for; an equal grid returns `positions` itself.
        num_prefix_positions: How many positions stand before the patches (0 for DeiT III).

    Returns:
        (1, prefix + new rows x new columns, D).
    """
    if new_grid == old_grid:
        return positions
    prefix, patches = positions.tensor_split([num_prefix_positions], dim=1)
    patches = patches.unflatten(1, old_grid).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat((prefix, patches.flatten(2).transpose(1, 2)), dim=1)

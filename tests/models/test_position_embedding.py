import pytest
import torch

from deit.models.trunk.position_embedding import resize_position_embedding

timm_layers = pytest.importorskip("timm.layers.pos_embed")


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("grid", [(6, 6), (6, 8), (3, 5), (2, 9)])
def test_patches_are_resized_as_in_timm_and_prefix_tokens_untouched(prefix, grid):
    positions = torch.randn(1, prefix + 20, 8)
    resized = resize_position_embedding(positions, (4, 5), grid, num_prefix_positions=prefix)
    expected = timm_layers.resample_abs_pos_embed(
        positions, list(grid), old_size=[4, 5], num_prefix_tokens=prefix, antialias=False
    )
    torch.testing.assert_close(resized, expected, atol=1e-6, rtol=0)
    assert torch.equal(resized[:, :prefix], positions[:, :prefix])


def test_an_equal_grid_returns_the_embedding_itself():
    positions = torch.randn(1, 21, 8)
    assert resize_position_embedding(positions, (4, 5), (4, 5), num_prefix_positions=1) is positions

"""The trunk: masks, dropout, drop path, position embedding, attention."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.models.deit import DeiTForImageClassification
from deit.models.trunk.activations import ACTIVATIONS, find_activation
from deit.models.trunk.vision_transformer import DropPath, VisionTransformer, initialize_layer, set_drop_path


def pixels(batch: int = 2, height: int = 16, width: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def trunk(tiny_config, redraw):
    """Builds a trunk with large random weights and a mask token."""

    def build(**fields):
        return redraw(VisionTransformer(tiny_config(**fields), use_mask_token=True)).eval()

    return build


def some_patches() -> Tensor:
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, [0, 3, 7]] = True
    mask[1, 15] = True
    return mask


# --- patch mask ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_mask_changes_the_output(trunk):
    model = trunk()
    plain, masked = model(pixels()).tokens, model(pixels(), some_patches()).tokens
    assert ((plain - masked).abs().amax(dim=(1, 2)) > 0.1).all()


@torch.no_grad()
def test_an_empty_mask_equals_the_plain_forward(trunk):
    model = trunk()
    empty = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.equal(model(pixels()).tokens, model(pixels(), empty).tokens)


@torch.no_grad()
def test_pixels_of_masked_patches_have_no_influence(trunk):
    model = trunk()
    other = pixels()
    other[0, :, :4, :4] = 9.0  # patch 0, masked
    other[1, :, 12:, 12:] = -9.0  # patch 15, masked
    assert torch.equal(model(pixels(), some_patches()).tokens, model(other, some_patches()).tokens)
    assert not torch.allclose(model(pixels()).tokens, model(other).tokens, atol=0.1)


@torch.no_grad()
def test_the_mask_token_takes_the_place_of_a_patch_and_keeps_its_position(trunk):
    model = trunk()
    entered = model.embed(pixels(), some_patches())
    expected = model.mask_token[0, 0] + model.pos_embed[0, 2 + 3]
    torch.testing.assert_close(entered[0, 2 + 3], expected)
    assert torch.equal(entered[0, 2 + 4], model.embed(pixels())[0, 2 + 4])


def test_a_mask_of_the_wrong_shape_is_refused(trunk):
    for shape in ((2, 15), (1, 16), (16,), (2, 4, 4)):
        with pytest.raises(ValueError, match=r"bool_masked_pos must have the shape \(batch, patches\) = \(2, 16\)"):
            trunk()(pixels(), torch.zeros(shape, dtype=torch.bool))


def test_a_mask_without_a_mask_token_is_refused(tiny_config):
    with pytest.raises(ValueError, match=r"has no mask token. Build it with use_mask_token=True"):
        VisionTransformer(tiny_config())(pixels(), some_patches())


# --- pixels -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_patches_are_numbered_row_by_row_after_the_two_tokens(trunk):
    model = trunk()
    with_dot = pixels()
    with_dot[:, :, 5, 14] += 5.0  # second row of patches, last column: patch 7
    changed = (model.embed(with_dot) - model.embed(pixels())).abs().amax(dim=(0, 2))
    assert changed.nonzero().flatten().tolist() == [2 + 7]


@torch.no_grad()
def test_class_and_distillation_token_come_first_in_this_order(trunk):
    model = trunk()
    entered = model.embed(pixels())
    assert torch.equal(entered[1, 0], model.cls_token[0, 0] + model.pos_embed[0, 0])
    assert torch.equal(entered[1, 1], model.dist_token[0, 0] + model.pos_embed[0, 1])


@pytest.mark.parametrize(("height", "width"), [(16, 20), (20, 16), (32, 8), (12, 12)])
def test_an_image_of_another_size_is_refused_unless_it_is_asked_for(trunk, height, width):
    with pytest.raises(ValueError, match=f"The image is {height} x {width} pixels, the model was made for 16 x 16"):
        trunk()(pixels(height=height, width=width))


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 4, 16, 16), (3, 16, 16), (16, 16), (2, 16, 16, 3)])
def test_pixels_of_the_wrong_shape_are_refused(trunk, shape):
    with pytest.raises(ValueError, match=r"must have the shape \(batch, 3, height, width\). Received"):
        trunk()(torch.zeros(shape))


# --- position embedding -------------------------------------------------------------------------------


@torch.no_grad()
def test_resizing_the_position_embedding_to_the_same_size_is_the_identity(trunk):
    model = trunk()
    assert model.resized_position_embedding(16, 16) is model.pos_embed
    assert model.resized_position_embedding(19, 17) is model.pos_embed  # a rest fills no patch
    assert torch.equal(model(pixels(), interpolate=True).tokens, model(pixels()).tokens)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (16, 32), (36, 4)])
@torch.no_grad()
def test_resizing_the_position_embedding_leaves_prefix_tokens_alone(trunk, height, width):
    model = trunk()
    resized = model.resized_position_embedding(height, width)
    assert resized.shape == (1, 2 + (height // 4) * (width // 4), 32)
    assert torch.equal(resized[:, :2], model.pos_embed[:, :2])
    grid = model.pos_embed[0, 2:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, size=(height // 4, width // 4), mode="bicubic")[0].flatten(1).T
    assert torch.equal(resized[0, 2:], expected)


@torch.no_grad()
def test_a_constant_position_embedding_stays_constant_when_resized(trunk):
    model = trunk()
    model.pos_embed[:, 2:] = 0.7
    torch.testing.assert_close(model.resized_position_embedding(28, 20)[:, 2:], torch.full((1, 35, 32), 0.7))


@torch.no_grad()
def test_rows_and_columns_of_a_grid_that_is_not_square_are_not_mixed_up(trunk):
    model = trunk(image_size=(8, 16))
    rows = torch.arange(2.0).repeat_interleave(4)  # the number of each patch's row
    model.pos_embed[0, 2:] = rows[:, None]
    resized = model.resized_position_embedding(8, 32)[0, 2:, 0].reshape(2, 8)
    torch.testing.assert_close(resized, torch.tensor([[0.0], [1.0]]).expand(2, 8))


# --- dropout and drop path ----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"])
@torch.no_grad()
def test_dropout_and_drop_path_act_in_training_and_not_in_evaluation(trunk, rate, attention):
    model = trunk(**{rate: 0.5}, attn_implementation=attention)
    plain = trunk(attn_implementation=attention)(pixels()).tokens
    assert torch.equal(model(pixels()).tokens, plain)
    assert torch.equal(model(pixels()).tokens, model(pixels()).tokens)
    torch.manual_seed(0)
    model.train()
    first, second = model(pixels(8)).tokens, model(pixels(8)).tokens
    assert (first - second).abs().max() > 0.1


@torch.no_grad()
def test_dropout_falls_on_the_embeddings_too(trunk):
    model = trunk(hidden_dropout_prob=0.25)
    whole = model.embed(pixels())
    torch.manual_seed(0)
    dropped = model.train().embed(pixels())
    zero = dropped == 0
    torch.testing.assert_close(dropped[~zero], whole[~zero] / 0.75)
    assert 0.2 < zero.float().mean() < 0.3


def test_drop_path_rates_rise_linearly_with_depth(trunk):
    rates = [block.drop_path.rate for block in trunk(num_hidden_layers=5, drop_path_rate=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert [block.drop_path.rate for block in trunk(num_hidden_layers=1, drop_path_rate=0.2).blocks] == [0.0]


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_set_drop_path_gives_the_rates_of_timms_blocks(tiny_config, depth):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "num_heads": 4, "drop_path_rate": 0.3}
    theirs = timm.models.vision_transformer.VisionTransformer(depth=depth, **sizes)
    expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    model = DeiTForImageClassification(tiny_config(num_hidden_layers=depth, drop_path_rate=0.05))
    set_drop_path(model, 0.3)
    assert [block.drop_path.rate for block in model.deit.trunk.blocks] == pytest.approx(expected)
    assert model.config.drop_path_rate == 0.05


def test_set_drop_path_can_be_the_same_in_all_blocks_or_off(trunk):
    model = trunk(num_hidden_layers=3)
    set_drop_path(model, 0.2, shape="constant")
    assert [block.drop_path.rate for block in model.blocks] == [0.2] * 3
    set_drop_path(model, 0.0)
    assert [block.drop_path.rate for block in model.blocks] == [0.0] * 3


def test_set_drop_path_refuses_what_it_cannot_do(trunk):
    with pytest.raises(ValueError, match=r"must be 'linear' or 'constant'. Received: 'round'"):
        set_drop_path(trunk(), 0.1, shape="round")
    with pytest.raises(ValueError, match=r"must lie between 0 and 1. Received: 1.5"):
        set_drop_path(trunk(), 1.5)
    with pytest.raises(TypeError, match=r"in a DeiT or ViT of this package. Received: Linear"):
        set_drop_path(torch.nn.Linear(2, 2), 0.1)


def test_drop_path_skips_whole_samples_and_scales_up_the_others():
    torch.manual_seed(0)
    x = torch.randn(4000, 2, 3)
    y = DropPath(0.25).train()(x)
    skipped = (y == 0).all(dim=(1, 2))
    assert torch.equal(y[~skipped], x[~skipped] / 0.75)
    assert 0.22 < skipped.float().mean() < 0.28


def test_drop_path_of_one_skips_everything_and_of_zero_nothing():
    x = torch.randn(4, 2, 3)
    assert DropPath(0.0).train()(x) is x
    assert DropPath(0.7).eval()(x) is x
    assert torch.equal(DropPath(1.0).train()(x), torch.zeros(4, 2, 3))
    assert "0.250" in repr(DropPath(0.25))


@pytest.mark.parametrize("fields", [{}, {"layer_scale_init": 0.3}], ids=["deit", "deit 3"])
@pytest.mark.parametrize("rate", [0.3, 0.9, 1.0])
def test_leaving_skipped_samples_out_of_the_work_changes_neither_numbers_nor_gradients(trunk, fields, rate):
    results = []
    for watch in (False, True):
        model = trunk(**fields).train()
        set_drop_path(model, rate, shape="constant")
        if watch:  # then each part of a block is called for the whole batch
            for block in model.blocks:
                block.mlp.register_forward_hook(lambda module, given, result: None)
        torch.manual_seed(5)
        tokens = model(pixels(4)).tokens
        (tokens * pixels(4).sum()).sum().backward()
        results.append([tokens, *(p.grad for name, p in model.named_parameters() if name != "mask_token")])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_skipped_samples_really_do_not_reach_the_mlp(trunk):
    model = trunk().train()
    set_drop_path(model, 0.5, shape="constant")
    seen = []
    for block in model.blocks:
        block.mlp.activation = lambda x: seen.append(len(x)) or x
    torch.manual_seed(0)
    for _ in range(20):
        model(pixels(16))
    assert min(seen) < max(seen) <= 16
    assert 7 < sum(seen) / len(seen) < 9


# --- attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [[1.0, 0.0, 1.0, 0.5], [[1.0, 0, 1, 0.5], [0, 2.0, 1, 1]]], ids=["heads", "layers"])
@torch.no_grad()
def test_a_head_mask_gives_the_same_numbers_under_fused_and_eager_attention(trunk, mask):
    eager, fused = trunk(attn_implementation="eager"), trunk(attn_implementation="sdpa")
    head_mask = torch.tensor(mask)
    one, other = eager(pixels(), head_mask=head_mask).tokens, fused(pixels(), head_mask=head_mask).tokens
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert (one - eager(pixels()).tokens).abs().max() > 0.05


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_masking_a_head_equals_cutting_it_out_of_the_projection(trunk, attention):
    model = trunk(attn_implementation=attention)
    masked = model(pixels(), head_mask=torch.tensor([[1.0, 1, 0, 1], [1, 1, 1, 1]])).tokens
    model.blocks[0].attn.proj.weight[:, 16:24] = 0  # what head 2 of 4, each 8 wide, says
    torch.testing.assert_close(masked, model(pixels()).tokens, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_head_mask_of_ones_changes_nothing(trunk):
    model = trunk()
    assert torch.equal(model(pixels(), head_mask=torch.ones(4)).tokens, model(pixels()).tokens)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 4), (4, 2), (1, 4), ()])
def test_a_head_mask_of_the_wrong_shape_is_refused(trunk, shape):
    with pytest.raises(ValueError, match=r"head_mask must have the shape \(heads,\) = \(4,\) or \(layers, heads\)"):
        trunk()(pixels(), head_mask=torch.ones(shape))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_maps_are_probabilities_and_asking_for_them_changes_nothing(trunk, attention):
    model = trunk(attn_implementation=attention)
    output = model(pixels(), need_attentions=True)
    assert len(output.attentions) == 2
    for probabilities in output.attentions:
        assert probabilities.min() >= 0
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 4, 18))
        assert probabilities.std() > 0.01
    torch.testing.assert_close(output.tokens, model(pixels()).tokens, atol=1e-5, rtol=0)
    assert model(pixels()).attentions is None


@torch.no_grad()
def test_hidden_states_run_from_the_embeddings_to_the_last_block_before_the_norm(trunk):
    model = trunk()
    output = model(pixels(), need_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[0], model.embed(pixels()))
    assert torch.equal(model.norm(output.hidden_states[-1]), output.tokens)
    assert model(pixels()).hidden_states is None


# --- the parts ----------------------------------------------------------------------------------------


def test_an_unknown_activation_is_refused_when_the_model_is_built(tiny_config):
    with pytest.raises(ValueError, match=r"Unknown activation 'gulu'. Known: gelu, "):
        VisionTransformer(tiny_config(hidden_act="gulu"))


def test_every_activation_is_found_and_acts_on_each_number_alone():
    x = torch.linspace(-3, 3, 13)
    for name in ACTIVATIONS:
        y = find_activation(name)(x)
        torch.testing.assert_close(torch.stack([find_activation(name)(v) for v in x]), y)
    assert torch.equal(find_activation("linear")(x), x)


@torch.no_grad()
def test_initial_values_are_those_of_the_papers_code(tiny_config):
    torch.manual_seed(0)
    model = VisionTransformer(tiny_config(hidden_size=256, initializer_range=0.02), use_mask_token=True)
    for module in model.modules():
        initialize_layer(module, 0.02)
    model.initialize()
    for tensor in (model.cls_token, model.dist_token, model.pos_embed, model.blocks[1].attn.qkv.weight):
        assert 0.017 < float(tensor.std()) < 0.023
    assert not torch.equal(model.cls_token, model.dist_token)
    assert model.mask_token.abs().max() == 0
    assert model.blocks[0].mlp.fc1.bias.abs().max() == 0
    assert torch.equal(model.norm.weight, torch.ones(256))
    bound = (3 * 4 * 4) ** -0.5  # PyTorch's own values of a convolution: uniform, by the size of a patch
    assert 0.9 * bound < float(model.patch_embed.proj.weight.abs().max()) <= bound


def test_the_tensors_carry_the_names_of_the_papers_code(trunk):
    names = set(trunk(num_hidden_layers=1).state_dict())
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    expected = {f"blocks.0.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    expected |= {"cls_token", "dist_token", "mask_token", "pos_embed", "norm.weight", "norm.bias"}
    assert names == expected | {"patch_embed.proj.weight", "patch_embed.proj.bias"}

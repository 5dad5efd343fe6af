"""Token merging, against the formulas of the paper (arXiv 2210.09461) written out slowly."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from deit.core.config.config import ViTConfig
from deit.core.errors import UserError, WrongTypeError
from deit.models.auto import AutoModelForImageClassification
from deit.models.deit import DeiTForImageClassificationWithTeacher, DeiTModel
from deit.models.merging.blocks import MergingAttention, MergingBlock, MergingTransformer
from deit.models.merging.matching import follow, match, merge
from deit.models.merging.switch import merge_tokens, tokens_merged
from deit.models.trunk.vision_transformer import Attention, Block, VisionTransformer
from deit.models.vit import ViTForImageClassification

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 32, "image_size": 24,
    "patch_size": 4, "num_labels": 5, "layer_norm_eps": 1e-6,
}  # fmt: skip
PATCHES = 36


def model(kind: Any = DeiTForImageClassificationWithTeacher, **fields: Any) -> Any:
    torch.manual_seed(0)
    made = kind(kind.config_class(**{**SIZES, **fields})).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.0 if "embed" in name else 4.0)  # else all tokens are alike
    return made


def pixels(batch: int = 3, side: int = 24) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def logits(of: Any, images: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return of(pixels() if images is None else images).logits


# --- the formulas, one image, token by token ----------------------------------------------------------


def layer_norm(x: np.ndarray, layer: Any) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + layer.eps) * array(layer.weight) + array(layer.bias)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def affine(x: np.ndarray, layer: Any) -> np.ndarray:
    return x @ array(layer.weight).T + array(layer.bias)


def gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))(x)


def merged_by_the_paper(
    x: np.ndarray, keys: np.ndarray, sizes: list[int], prefix: int, r: int
) -> tuple[np.ndarray, list[int], list[list[int]]]:
    """Returns tokens, sizes, and the old tokens that each new one is made of; keys (N, d) are the mean over heads."""
    first = list(range(prefix, len(x), 2))
    second = list(range(prefix + 1, len(x), 2))
    edges = []
    for a in first:
        cosines = [keys[a] @ keys[b] / np.linalg.norm(keys[a]) / np.linalg.norm(keys[b]) for b in second]
        best = int(np.argmax(cosines))
        edges.append((cosines[best], a, second[best]))
    edges = sorted(edges, reverse=True)[: min(r, (len(x) - prefix) // 2)]
    groups = {token: [token] for token in range(len(x))}
    for _, a, b in edges:
        groups[b] += groups.pop(a)
    members = [groups[token] for token in sorted(groups)]
    total = [sum(sizes[token] for token in group) for group in members]
    rows = [sum(sizes[t] * x[t] for t in group) / size for group, size in zip(members, total, strict=True)]
    return np.stack(rows), total, members


def prefix_by_the_paper(made: Any, image: torch.Tensor, r: int) -> np.ndarray:
    trunk = made.base_model.trunk
    heads, prefix = made.config.num_attention_heads, made.config.num_prefix_tokens
    with torch.no_grad():
        x = array(trunk.embed(image[None]))[0]
    sizes = [1] * len(x)
    for number, block in enumerate(trunk.blocks):
        qkv = affine(layer_norm(x, block.norm1), block.attn.qkv).reshape(len(x), 3, heads, -1)
        mixed = []
        for head in range(heads):
            query, key, value = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
            scores = query @ key.T / math.sqrt(key.shape[1]) + np.log(sizes)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            mixed.append(weights / weights.sum(1, keepdims=True) @ value)
        x = x + affine(np.concatenate(mixed, 1), block.attn.proj)
        if number < len(trunk.blocks) - 1:
            x, sizes, _ = merged_by_the_paper(x, qkv[:, 1].mean(1), sizes, prefix, r)
        x = x + affine(gelu(affine(layer_norm(x, block.norm2), block.mlp.fc1)), block.mlp.fc2)
    return layer_norm(x, trunk.norm)[:prefix]


@pytest.mark.parametrize("r", [1, 5, 40])
@pytest.mark.parametrize("kind", [DeiTForImageClassificationWithTeacher, ViTForImageClassification])
def test_the_network_is_that_of_the_paper(kind: Any, r: int) -> None:
    made = model(kind)
    expected = [prefix_by_the_paper(made, image, r) for image in pixels()]
    merge_tokens(made, r)
    assert made.base_model.trunk.schedule == (r,) * 3
    for packed in (False, True):
        with torch.no_grad():
            received = (made.pack_weights() if packed else made).base_model(pixels(), prefix_only=True)
        np.testing.assert_allclose(array(received.last_hidden_state), expected, rtol=1e-4, atol=1e-4)
    assert (logits(made) - logits(model(kind))).abs().max() > 1e-3  # it does something


@pytest.mark.parametrize(("count", "r"), [(9, 3), (10, 4), (8, 1), (5, 1)])
def test_a_merging_is_that_of_the_paper(count: int, r: int) -> None:
    random = torch.Generator().manual_seed(count)
    keys, x = torch.randn(2, count, 3, 4, generator=random), torch.randn(2, count, 6, generator=random)
    sizes = torch.randint(1, 5, (2, count), generator=random).float()
    matching = match(keys, 2, r)
    tokens, new = merge(x, sizes, matching)
    origins = follow(None, matching)
    for i in range(2):
        expected, total, members = merged_by_the_paper(
            array(x[i]), array(keys[i].mean(1)), sizes[i].int().tolist(), 2, r
        )
        np.testing.assert_allclose(array(tokens[i]), expected, rtol=1e-5, atol=1e-5)
        assert new[i].tolist() == total
        places = {token: place for place, group in enumerate(members) for token in group}
        assert origins[i].tolist() == [places[token] for token in range(count)]
    assert new.sum(1).tolist() == sizes.sum(1).tolist()


def test_of_equal_tokens_the_earlier_ones_are_merged() -> None:
    matching = match(torch.ones(1, 10, 2, 4), 2, 3)
    assert matching.order.tolist() == [[0, 1, 3, 5, 7, 8, 9, 2, 4, 6]]
    assert matching.targets.argmax(2).tolist() == [[2, 2, 2]]


def test_sizes_sum_to_the_number_of_tokens_in_every_block() -> None:
    made = merge_tokens(model(), 5)
    seen = []
    for block in made.deit.trunk.blocks:
        block.register_forward_hook(lambda _, given, result: seen.append(result[1]))
    logits(made)
    assert [sizes.shape[1] for sizes in seen] == [33, 28, 23, 23]  # with hooks the last block is computed whole
    assert all(sizes.sum(1).tolist() == [PATCHES + 2.0] * 3 for sizes in seen)
    assert all(sizes[:, :2].eq(1).all() for sizes in seen)  # class and distillation token


def test_proportional_attention_is_attention_to_the_tokens_repeated() -> None:
    attention = model().deit.trunk.blocks[0].attn
    x, sizes = torch.randn(2, 4, 24), torch.tensor([1, 3, 1, 2])
    repeated = x.repeat_interleave(sizes, dim=1)
    first = torch.tensor([0, 1, 4, 5])
    with torch.no_grad():
        expected = attention(repeated, "sdpa", None, None)[0][:, first]
        attention.__class__ = MergingAttention
        for implementation in ("sdpa", "eager"):
            received, _ = attention(x, implementation, sizes.float().expand(2, -1))
            torch.testing.assert_close(received, expected, rtol=1e-5, atol=1e-5)


# --- on and off ---------------------------------------------------------------------------------------


def test_zero_is_the_model_bit_for_bit() -> None:
    made = model()
    before, config = logits(made), made.config.to_json_string()
    merge_tokens(made, 6)
    assert not torch.equal(logits(made), before)
    merge_tokens(made, 0)
    assert torch.equal(logits(made), before)
    assert made.config.to_json_string() == config
    assert "token_merging" not in config
    kinds = {type(module) for module in made.modules()}
    assert {VisionTransformer, Block, Attention} <= kinds
    assert not {MergingTransformer, MergingBlock, MergingAttention} & kinds


def test_merging_for_a_while() -> None:
    made = merge_tokens(model(), 2)
    before = logits(made)
    with tokens_merged(made, [6, 4, 2]) as changed:
        assert changed is made
        assert made.deit.trunk.schedule == (6, 4, 2)
        assert not torch.equal(logits(made), before)
    assert made.config.token_merging == {"r": 2}
    assert torch.equal(logits(made), before)


def test_the_same_input_gets_the_same_answer_alone_and_in_a_batch() -> None:
    made = merge_tokens(model(), 6)
    assert torch.equal(logits(made), logits(made))
    alone = torch.cat([logits(made, image[None]) for image in pixels()])
    torch.testing.assert_close(logits(made), alone, rtol=1e-4, atol=1e-5)


def test_a_saved_model_merges_when_it_is_opened(tmp_path: Any) -> None:
    made = merge_tokens(model(), 6)
    made.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["token_merging"] == {"r": 6}
    for opened in (
        DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path),
        AutoModelForImageClassification.from_pretrained(tmp_path),
        copy.deepcopy(made),
    ):
        assert torch.equal(logits(opened), logits(made))
    plain = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path, token_merging={})
    assert torch.equal(logits(plain), logits(merge_tokens(made, 0)))


def test_transformers_opens_it_and_merges_nothing(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    made = merge_tokens(model(), 6)
    made.save_pretrained(tmp_path)
    theirs = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(merge_tokens(made, 0)), rtol=1e-4, atol=1e-5)


# --- what else is asked of a model --------------------------------------------------------------------


def test_tokens_and_hidden_states_keep_their_places() -> None:
    made = merge_tokens(model(DeiTModel), 6)
    with torch.no_grad():
        output = made(pixels(), output_hidden_states=True)
        prefix = made(pixels(), prefix_only=True).last_hidden_state
    assert {state.shape for state in output.hidden_states} == {(3, PATCHES + 2, 24)}
    torch.testing.assert_close(output.last_hidden_state[:, :2], prefix, rtol=1e-4, atol=1e-5)
    counts = [len({tuple(row) for row in state[0].tolist()}) for state in output.hidden_states]
    assert counts == [38, 32, 26, 20, 20]
    torch.testing.assert_close(made.trunk.norm(output.hidden_states[-1]), output.last_hidden_state)


def test_other_sizes_pruned_heads_and_three_layers_for_the_projection() -> None:
    made, fused = merge_tokens(model(fused_qkv=False), 6), merge_tokens(model(), 6)
    made.load_state_dict(fused.state_dict())
    torch.testing.assert_close(logits(made), logits(fused), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        wide = made(pixels(2, 32), interpolate_pos_encoding=True, output_hidden_states=True)
    assert {state.shape for state in wide.hidden_states} == {(2, 66, 24)}
    made.prune_heads({1: [0, 2]})
    assert torch.isfinite(logits(made)).all()


@pytest.mark.parametrize("asked", ["attention_mask", "head_mask", "output_attentions"])
def test_what_has_no_meaning_is_refused(asked: str) -> None:
    made = merge_tokens(model(), 6)
    value = {"attention_mask": torch.ones(3, 38), "head_mask": torch.ones(3), "output_attentions": True}[asked]
    with pytest.raises(UserError, match=f"{asked} has no meaning"):
        made(pixels(), **{asked: value})


def test_what_cannot_merge_is_refused() -> None:
    with pytest.raises(WrongTypeError, match=r"DeiT or ViT of this package\. Received: Linear"):
        merge_tokens(torch.nn.Linear(2, 2), 3)
    with pytest.raises(WrongTypeError, match=r"DeiT or ViT of this package\. Received: str"):
        merge_tokens("model", 3)
    made = model()
    before = logits(made)
    for wrong, message in (
        (-1, "between 0 and"), ([1, 2], "3: one for each block but the last. Received: 2"), (1.5, "whole number"),
        (True, "whole number"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            merge_tokens(made, wrong)
    made.deit.trunk.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(UserError, match="Attention of the model was replaced by Identity"):
        merge_tokens(made, 3)
    made.deit.trunk.blocks[1].attn = model().deit.trunk.blocks[1].attn
    assert torch.equal(logits(made), before)


@pytest.mark.parametrize("value", [{"r": -1}, {"r": "3"}, {"s": 3}, 3, {"r": [1, None]}, {"r": [3]}, None])
def test_a_configuration_with_a_wrong_value_is_refused(value: Any) -> None:
    with pytest.raises((UserError, WrongTypeError), match="token_merging"):
        ViTForImageClassification(ViTConfig(**SIZES, token_merging=value))


# --- training -----------------------------------------------------------------------------------------


def test_gradients_are_those_of_plain_pytorch() -> None:
    """The backward pass written for the CPU, with sizes in it, against PyTorch's own through eager attention."""
    gradients = []
    for implementation in ("sdpa", "eager"):
        made = merge_tokens(model(attn_implementation=implementation), 6).train()
        made(pixels(), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in made.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_checkpointing_and_drop_path_train() -> None:
    made = merge_tokens(model(drop_path_rate=0.5, hidden_dropout_prob=0.1), 6).train()
    losses = []
    for checkpoints in (False, True):
        if checkpoints:
            made.gradient_checkpointing_enable()
        made.zero_grad()
        torch.manual_seed(3)
        loss = made(pixels(), labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        losses.append((loss.item(), made.deit.trunk.blocks[0].mlp.fc1.weight.grad.clone()))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-3, atol=1e-6)


def test_autocast_and_bfloat16_merge_the_same_tokens_nearly() -> None:
    made = merge_tokens(model(), 6)
    expected = logits(made)
    with torch.autocast("cpu", torch.bfloat16):
        x = made.deit.trunk.embed(pixels())
        assert made.deit.trunk.blocks[0](x, "sdpa", None, 2, 6)[0].dtype == torch.float32
        received = logits(made)
    assert (received.float() - expected).abs().max() < 0.2
    assert (logits(made.bfloat16()).float() - expected).abs().max() < 0.2


# --- export -------------------------------------------------------------------------------------------


def test_export_has_static_shapes_and_a_batch_of_any_size() -> None:
    made = merge_tokens(model(return_dict=False), 6)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(made, (pixels(2),), dynamic_shapes={"pixel_values": {0: batch}}, strict=False)
    for count in (1, 5):
        images = pixels(count)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images)[0], made(images)[0], rtol=1e-4, atol=1e-5)

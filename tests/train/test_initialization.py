"""Tests the mimetic initial values of new students against the formulas of their paper (arXiv 2305.09828)."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from deit.train.recipes.recipe import Recipe
from deit.train.students.deit import build_masked_student, build_student
from deit.train.students.initialization import sine_positions

SMALL = "deit-mini-distilled-patch4-32"  # 128 channels, 4 heads, grid of 8 x 8


def student(**settings: Any) -> torch.nn.Module:
    return build_student(SMALL, ["a", "b"], Recipe(**settings)).model


def test_products_of_the_attention_weights_resemble_multiples_of_the_identity() -> None:
    for block in student(initialization="mimetic").deit.trunk.blocks:  # type: ignore[union-attr]
        query, key, value = block.attn.qkv.weight.detach().split(128)
        product = value.T @ block.attn.proj.weight.T  # what a token adds to itself, without attention
        assert product.diagonal().mean().item() == pytest.approx(-0.4, abs=0.03)
        off = product[~torch.eye(128, dtype=torch.bool)]
        assert off.std().item() == pytest.approx(0.4 / math.sqrt(128), rel=0.05)
        for head in range(4):
            rows = slice(32 * head, 32 * head + 32)
            scores = query[rows].T @ key[rows]
            assert torch.linalg.matrix_rank(scores) == 32
            largest = torch.linalg.svdvals(scores)[:32]
            # The largest singular values of 0.7 Z + 0.7 I; those of a circular law shifted by as much as its radius.
            assert largest.min() > 0.7
            assert largest.max() < 0.7 * (2 + 1) + 0.1
            assert scores.diagonal().mean() > 0.1


def test_a_token_attends_most_to_itself_from_the_start() -> None:
    tokens = torch.nn.functional.layer_norm(torch.randn(64, 128, generator=torch.Generator().manual_seed(3)), (128,))
    shares = {}
    for name in ("normal", "mimetic"):
        attention = student(initialization=name).deit.trunk.blocks[0].attn  # type: ignore[union-attr]
        query, key, _ = attention.qkv.weight.detach().split(128)
        scores = (tokens @ query[:32].T) @ (tokens @ key[:32].T).T / math.sqrt(32)
        shares[name] = scores.softmax(-1).diagonal().mean().item()
    assert shares["normal"] == pytest.approx(1 / 64, rel=0.2)
    assert shares["mimetic"] > 10 * shares["normal"]


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    found = sine_positions((3, 5), 8)
    assert found.shape == (15, 8)
    row, column = 2, 4
    expected = [f(p * w) for p in (row, column) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
    assert found[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert sine_positions((2, 2), 6).shape == (4, 6)
    trunk = student(initialization="mimetic").deit.trunk  # type: ignore[union-attr]
    torch.testing.assert_close(trunk.pos_embed[0, 2:].detach(), 0.3 * sine_positions((8, 8), 128))


def test_the_other_values_and_the_default_stay() -> None:
    normal, mimetic = (student(initialization=name).state_dict() for name in ("normal", "mimetic"))
    changed = {name for name in normal if not torch.equal(normal[name], mimetic[name])}
    assert {name.rsplit(".", 2)[-2:][0] if "blocks" in name else name.split(".")[-1] for name in changed} <= {
        "qkv", "proj", "query", "key", "value", "o_proj", "q_proj", "k_proj", "v_proj", "pos_embed",
        "position_embeddings", "dense",
    }  # fmt: skip
    assert not any("mlp" in name or "fc" in name or "classifier" in name or "patch" in name for name in changed)
    assert all(torch.equal(value, student().state_dict()[name]) for name, value in normal.items())
    again = student(initialization="mimetic").state_dict()
    assert all(torch.equal(mimetic[name], again[name]) for name in again)
    other = student(initialization="mimetic", seed=1).state_dict()
    assert any(not torch.equal(mimetic[name], other[name]) for name in changed)


def test_masked_students_have_them_too() -> None:
    recipe = Recipe(initialization="mimetic")
    masked = build_masked_student(SMALL, recipe).model.deit.trunk  # type: ignore[union-attr]
    torch.testing.assert_close(masked.pos_embed[0, 2:].detach(), 0.3 * sine_positions((8, 8), 128))


def test_weights_that_are_given_are_used_and_the_setting_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = build_student(SMALL, ["a", "b"], Recipe(seed=5))
    given.model.save_pretrained(tmp_path)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        found = build_student(None, ["a", "b"], Recipe(initialization="mimetic", init=str(tmp_path))).model
        build_student("timm/test_resnet", ["a", "b"], Recipe(initialization="mimetic"))
    for name, value in given.model.deit.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(found.deit.state_dict()[name], value)  # type: ignore[union-attr]
    assert [f"Does not use initialization=mimetic: the initial weights are those of {start}." for start in (
        tmp_path, "timm/test_resnet"
    )] == caplog.messages  # fmt: skip

"""Code that names the modules of transformers, in version 4 or 5, finds the real modules here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import deit
from deit.core.errors import UserError

transformers = pytest.importorskip("transformers")

CLASSES = ("DeiTForImageClassificationWithTeacher", "DeiTForMaskedImageModeling", "ViTForImageClassification")
# Query, key and value are one layer here, an activation without weights is a function, dropout runs twice.
NO_MODULES = ("q_proj", "k_proj", "v_proj", "activation_fn", ".dropout")
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def build(tiny_fields: dict[str, Any], redraw: Callable[..., Any]) -> Callable[..., Any]:
    def make(name: str = CLASSES[0], **fields: Any) -> Any:
        kind = getattr(deit, name)
        return redraw(kind(kind.config_class(**tiny_fields, **fields))).eval()

    return make


def first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", CLASSES)
def test_every_module_of_transformers_5_is_found_by_its_name_and_has_the_same_output(build, name, tmp_path) -> None:
    ours = build(name)
    ours.save_pretrained(tmp_path)
    oracle = getattr(transformers, name).from_pretrained(tmp_path)
    seen: dict[str, list[Any]] = {}
    for place, module in oracle.named_modules():
        if not place or place.endswith(NO_MODULES) or isinstance(module, nn.ModuleList):
            continue
        for model in (oracle, ours):
            found = model.get_submodule(place)
            seen.setdefault(place, [])
            found.register_forward_hook(lambda inner, given, result, key=place: seen[key].append(first(result)))
    with torch.no_grad():
        for model in (oracle, ours):
            model(PIXELS)
    base = oracle.base_model_prefix
    assert f"{base}.embeddings.patch_embeddings.projection" in seen
    for place, (theirs, own) in {place: values for place, values in seen.items() if place != base}.items():
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4, msg=place)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "three layers"])
def test_every_parameter_of_transformers_4_is_found_by_its_name(build, name, fused, tmp_path) -> None:
    ours = build(name, fused_qkv=fused)
    ours.save_pretrained(tmp_path)
    published = load_file(tmp_path / "model.safetensors")
    found = 0
    for place, expected in published.items():
        value = ours
        if fused and any(f".{part}." in place for part in ("query", "key", "value")):
            continue
        for part in place.split("."):
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        torch.testing.assert_close(value, expected, msg=place)
        assert any(value is parameter for parameter in ours.parameters())
        found += 1
    assert found >= len(published) - 6 * 2 * fused


def test_aliases_add_nothing_to_the_model(build) -> None:
    model = build()
    names = [name for name, _ in model.named_modules()]
    state = list(model.state_dict())
    block = model.deit.encoder.layer[0]
    assert block is model.deit.layers[0] is model.deit.trunk.blocks[0]
    assert block.attention.output.dense is block.attention.o_proj is block.attn.proj
    assert block.layernorm_before is block.norm1
    assert block.intermediate.dense is block.mlp.fc1
    assert block.output.dense is block.mlp.fc2
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.state_dict()) == state
    assert not [word for name in names for word in ("encoder", "layernorm", "embeddings", "attention") if word in name]
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


def test_partial_freezing_acts_on_the_real_parameters(build) -> None:
    model = build()
    for parameter in model.deit.embeddings.parameters():
        parameter.requires_grad = False
    model.deit.encoder.layer[0].requires_grad_(False)
    model.deit.layernorm.requires_grad_(False)
    frozen = {name.removeprefix("deit.trunk.") for name, p in model.named_parameters() if not p.requires_grad}
    embedding = {"cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name in frozen if not name.startswith("blocks.0.")} == embedding | {"norm.weight", "norm.bias"}
    assert len([name for name in frozen if name.startswith("blocks.0.")]) == 12
    model.deit.encoder.requires_grad_(False)
    assert not any(p.requires_grad for p in model.deit.trunk.parameters())
    model.deit.encoder.train()
    assert model.deit.trunk.blocks[1].mlp.training


def test_a_map_of_gradients_is_that_of_the_real_module(build) -> None:
    """What Grad-CAM does: output and gradient of the norm in front of the last attention."""
    model, kept = build(), []
    target = model.deit.encoder.layer[-1].layernorm_before
    target.register_forward_hook(lambda module, given, result: kept.append(result))
    target.register_full_backward_hook(lambda module, given, gradients: kept.append(gradients[0]))
    model(PIXELS).logits[:, 0].sum().backward()
    assert [tuple(each.shape) for each in kept] == [(2, 18, 32)] * 2
    assert kept[1].abs().max() > 0


@pytest.mark.parametrize("name", ["layernorm", "layers", "embeddings", "encoder"])
def test_an_alias_cannot_be_set(build, name) -> None:
    model = build()
    with pytest.raises((AttributeError, UserError), match="read-only"):
        setattr(model.deit, name, nn.Identity())
    with pytest.raises((AttributeError, UserError), match="read-only"):
        model.deit.encoder.layer = model.deit.trunk.blocks[:1]
    with pytest.raises((AttributeError, UserError), match="read-only"):
        model.deit.layers[0].attention = nn.Identity()


def test_a_hook_that_would_never_be_called_is_refused(build) -> None:
    block = build().deit.layers[0]
    for group in (block.intermediate, block.output, block.attention.attention, build().deit.encoder):
        with pytest.raises(UserError, match="never be called"):
            group.register_forward_hook(print)
        with pytest.raises(UserError, match="never be called"):
            group.register_full_backward_hook(print)
    with pytest.raises(AttributeError, match="fused_qkv=False"):
        _ = block.attention.attention.query

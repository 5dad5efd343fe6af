"""Query, key and value as three layers: what LoRA looks for by name, with the numbers and the files of one."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import deit

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
CLASSES = (
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "ViTForImageClassification",
)
OLD_NAMES = ("query", "key", "value")


@pytest.fixture
def folder(tiny_fields: dict[str, Any], tmp_path: Path, redraw: Any) -> Any:
    def save(name: str = "DeiTForImageClassification", **fields: Any) -> Path:
        model_class = getattr(deit, name)
        redraw(model_class(model_class.config_class(**{**tiny_fields, **fields}))).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def opened(name: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """The fused model and the one with three layers."""
    model_class = getattr(deit, name)
    return model_class.from_pretrained(folder), model_class.from_pretrained(folder, fused_qkv=False, **options)


def linear_names(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}], ids=str)
def test_three_layers_give_the_numbers_and_the_files_of_one(
    folder: Any, name: str, fields: Any, tmp_path: Path
) -> None:
    fused, split = opened(name, folder(name, **fields))
    assert {"q_proj", "k_proj", "v_proj"} <= linear_names(split)
    assert "qkv" not in linear_names(split)
    assert "qkv" in linear_names(fused)
    for mode in (True, False):
        for model in (fused, split):
            model.train(mode)
        torch.testing.assert_close(split(PIXELS)[0], fused(PIXELS)[0], atol=1e-6, rtol=1e-5)
        with torch.no_grad():  # the way of the first tokens alone
            torch.testing.assert_close(split(PIXELS)[0], fused(PIXELS)[0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(split.pack_weights()(PIXELS)[0], fused(PIXELS)[0], atol=1e-5, rtol=1e-5)
    for which, model in (("fused", fused), ("split", split)):
        model.save_pretrained(tmp_path / which)
    written = [load_file(tmp_path / which / "model.safetensors") for which in ("fused", "split")]
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(tensor, written[1][key]) for key, tensor in written[0].items())
    texts = [(tmp_path / which / "config.json").read_text() for which in ("fused", "split")]
    assert texts[0] == texts[1]
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "split")
    torch.testing.assert_close(theirs(PIXELS)[0], split(PIXELS)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("targets", "options"),
    [(["q_proj", "v_proj"], {}), (["query", "value"], {"qkv_names": OLD_NAMES})],
    ids=["transformers 5.9", "transformers 4"],
)
def test_lora_finds_the_names_of_transformers_trains_and_merges(
    folder: Any, targets: list[str], options: Any, tmp_path: Path
) -> None:
    place = folder()
    _, model = opened("DeiTForImageClassification", place, **options)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"])
    adapted = peft.get_peft_model(model, config)
    assert len([n for n, _ in adapted.named_parameters() if "lora_A" in n]) == 4  # two in each of two blocks
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = adapted(pixel_values=PIXELS, labels=torch.arange(3)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    expected = adapted.eval()(PIXELS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    _, base = opened("DeiTForImageClassification", place, **options)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(PIXELS).logits, expected)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    for library in (deit, transformers):
        whole = library.DeiTForImageClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(whole(PIXELS).logits, expected, atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_fused_layer(folder: Any) -> None:
    fused, split = opened("DeiTForImageClassification", folder())
    for model in (fused, split):
        model.train()(PIXELS, labels=torch.arange(3)).loss.backward()
    whole, apart = fused.deit.trunk.blocks[0].attn, split.deit.trunk.blocks[0].attn
    for kind in ("weight", "bias"):
        parts = [getattr(getattr(apart, name), kind).grad for name in ("q_proj", "k_proj", "v_proj")]
        torch.testing.assert_close(torch.cat(parts), getattr(whole.qkv, kind).grad, atol=1e-6, rtol=1e-4)


def test_a_hook_on_one_of_the_layers_acts(folder: Any) -> None:
    fused, split = opened("DeiTForImageClassification", folder())
    for block in split.deit.trunk.blocks:
        block.attn.v_proj.register_forward_hook(lambda module, given, out: 2 * out)
    with torch.no_grad():
        assert (split(PIXELS).logits - fused(PIXELS).logits).abs().max() > 1e-3


def test_state_dicts_of_every_form_go_into_both(folder: Any) -> None:
    place = folder()
    fused, split = opened("DeiTForImageClassification", place)
    theirs = transformers.DeiTForImageClassification.from_pretrained(place)
    published = load_file(place / "model.safetensors")
    for state in copy.deepcopy([fused.state_dict(), split.state_dict(), theirs.state_dict(), published]):
        for model in (fused, split):
            before: dict[str, Tensor] = {key: value.clone() for key, value in model.state_dict().items()}
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            result = model.load_state_dict(state)
            assert (result.missing_keys, result.unexpected_keys) == ([], [])
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    lacking = dict(published)
    lost = [key for key in published if key.endswith("attention.key.weight")]
    del lacking[lost[0]]
    with pytest.raises(RuntimeError, match="Missing key"):
        split.load_state_dict(lacking)
    assert split.load_state_dict(lacking, strict=False).missing_keys == lost[:1]


def test_a_new_model_has_three_layers_with_drawn_values(tiny_fields: dict[str, Any]) -> None:
    config = deit.DeiTConfig(**tiny_fields, fused_qkv=False)
    for model in (deit.DeiTForImageClassification(config), deit.AutoModelForImageClassification.from_config(config)):
        assert {"q_proj", "k_proj", "v_proj"} <= linear_names(model)
        stds = [p.std().item() for n, p in model.named_parameters() if n.endswith("k_proj.weight")]
        assert stds == pytest.approx([0.02] * 2, rel=0.1)
    assert "fused_qkv" not in config.to_json_string(use_diff=False)


def test_heads_can_be_pruned_and_copies_made(folder: Any, tmp_path: Path) -> None:
    fused, split = opened("DeiTForImageClassification", folder())
    for model in (fused, split):
        model.prune_heads({0: [1, 2]})
    copies = (split, copy.deepcopy(split), pickle.loads(pickle.dumps(split)))
    for model in copies:
        torch.testing.assert_close(model(PIXELS).logits, fused(PIXELS).logits, atol=1e-6, rtol=1e-5)
    split.save_pretrained(tmp_path / "pruned")
    again = deit.DeiTForImageClassification.from_pretrained(tmp_path / "pruned", fused_qkv=False)
    torch.testing.assert_close(again(PIXELS).logits, fused(PIXELS).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qkv_names": ("q", "k")}, "qkv_names must be three different names"),
        ({"qkv_names": ("q", "q", "v")}, "qkv_names must be three different names"),
        ({"qkv_names": ("q.x", "k", "v")}, "qkv_names must be three different names"),
        ({"fused_qkv": "no"}, "fused_qkv must be one of True, False"),
        ({"qkv_names": ("proj", "k", "v")}, "'proj' is taken by another part of the attention"),
    ],
    ids=str,
)
def test_names_that_cannot_be_are_refused(tiny_fields: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deit.DeiTModel(deit.DeiTConfig(**{**tiny_fields, "fused_qkv": False, **fields}))


def test_the_auto_class_opens_such_a_model_and_it_is_exported(folder: Any) -> None:
    place = folder()
    model = deit.AutoModelForImageClassification.from_pretrained(place, fused_qkv=False)
    assert {"q_proj", "k_proj", "v_proj"} <= linear_names(model)
    exported = torch.export.export(model, (), {"pixel_values": PIXELS}, strict=False)
    torch.testing.assert_close(exported.module()(pixel_values=PIXELS).logits, model(PIXELS).logits)

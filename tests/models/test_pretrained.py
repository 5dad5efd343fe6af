"""Model directories: written, read again in a new process, and refused when something is wrong."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from deit.models.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)
from deit.models.weights.loading import load_published_tensors, published_tensors

CLASSES = (DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTForMaskedImageModeling)


def pixels() -> Tensor:
    return torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)


@pytest.fixture
def saved(tiny_config, redraw, tmp_path):
    """Saves a model with large random weights and returns (model, folder)."""

    def save(model_class=DeiTForImageClassificationWithTeacher, **fields):
        model = redraw(model_class(tiny_config(**fields))).eval()
        model.save_pretrained(tmp_path / "model")
        return model, tmp_path / "model"

    return save


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


# --- there and back -----------------------------------------------------------------------------------

IN_A_NEW_PROCESS = """
import sys
from pathlib import Path
import torch
import deit

torch.set_num_threads(1)
folder = Path(sys.argv[1])
pixels = torch.load(folder / "pixels.pt", weights_only=True)
results = {}
for path in sorted(p for p in folder.iterdir() if p.is_dir()):
    model = getattr(deit, path.name).from_pretrained(path)
    assert not model.training
    with torch.no_grad():
        results[path.name] = model(pixels)[0]
torch.save(results, folder / "results.pt")
"""


@torch.no_grad()
def test_a_model_that_is_saved_gives_the_same_numbers_in_a_new_process(tiny_config, redraw, tmp_path):
    expected = {}
    for model_class in CLASSES:
        model = redraw(model_class(tiny_config(qkv_bias=model_class is not DeiTModel))).eval()
        model.save_pretrained(tmp_path / model_class.__name__)
        expected[model_class.__name__] = model(pixels())[0]
    torch.save(pixels(), tmp_path / "pixels.pt")
    subprocess.run([sys.executable, "-W", "error", "-c", IN_A_NEW_PROCESS, str(tmp_path)], check=True, timeout=120)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert set(results) == set(expected)
    for name, numbers in expected.items():
        assert numbers.abs().max() > 0.1
        torch.testing.assert_close(results[name], numbers, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_class", CLASSES)
def test_saving_and_loading_keeps_every_tensor_and_the_configuration(saved, model_class):
    names = {0: "cat", 1: "dog", 2: "owl", 3: "eel", 4: "bee"}
    model, folder = saved(model_class, id2label=names, drop_path_rate=0.1)
    again, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    assert_equal_weights(model, again)
    assert again.config.id2label == names
    assert again.config.architectures == [model_class.__name__]
    assert again.config.drop_path_rate == 0.1
    assert not again.training


def test_the_folder_holds_a_configuration_and_weights_that_say_they_are_pytorchs(saved):
    _, folder = saved()
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    values = json.loads((folder / "config.json").read_text())
    assert values["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    assert values["dtype"] == "float32"


def test_saving_leaves_the_configuration_of_the_model_as_it_was(saved):
    model, _ = saved()
    assert model.config.architectures is None
    assert model.config.dtype is None


def test_saving_again_replaces_the_model_and_keeps_other_files(saved, redraw):
    model, folder = saved()
    (folder / "notes.txt").write_text("mine")
    redraw(model, seed=1).save_pretrained(folder)
    assert_equal_weights(DeiTForImageClassificationWithTeacher.from_pretrained(folder), model)
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_error_while_saving_leaves_the_old_model(saved, redraw, monkeypatch):
    model, folder = saved()
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def write_half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("deit.models.weights.loading.save_file", write_half)
    model.config.drop_path_rate = 0.5
    with pytest.raises(OSError, match="disk full"):
        redraw(model, seed=1).save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert os.listdir(folder.parent) == ["model"]


def test_other_weights_can_be_saved_in_place_of_the_models_own(saved, tmp_path):
    model, _ = saved()
    averaged = {name: tensor * 0.5 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "averaged", state_dict=averaged)
    again = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path / "averaged")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, averaged[name])


def test_a_file_in_the_way_of_a_folder_is_refused(saved, tmp_path):
    model, _ = saved()
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match=r"is a file. Pass a folder"):
        model.save_pretrained(tmp_path / "taken")


def test_published_names_join_to_the_tensors_again(saved):
    model, _ = saved()
    tensors = published_tensors(model.state_dict())
    query = tensors["deit.encoder.layer.1.attention.attention.query.weight"]
    value = tensors["deit.encoder.layer.1.attention.attention.value.weight"]
    qkv = model.deit.trunk.blocks[1].attn.qkv.weight
    assert torch.equal(query, qkv[:32])
    assert torch.equal(value, qkv[64:])
    other = DeiTForImageClassificationWithTeacher(model.config)
    load_published_tensors(other, tensors)
    assert_equal_weights(model, other)


# --- precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("auto", torch.bfloat16), (None, torch.float32), ("float16", torch.float16), (torch.float64, torch.float64)],
    ids=str,
)
def test_the_type_of_the_weights_is_the_files_or_the_one_asked_for(saved, asked, expected):
    model, folder = saved()
    model.bfloat16().save_pretrained(folder)
    again = DeiTForImageClassificationWithTeacher.from_pretrained(folder, dtype=asked)
    assert {p.dtype for p in again.parameters()} == {expected}
    assert torch.equal(again.cls_classifier.weight, model.cls_classifier.weight.to(expected))


def test_the_older_name_of_dtype_is_understood(saved):
    _, folder = saved()
    assert DeiTForImageClassificationWithTeacher.from_pretrained(folder, torch_dtype="bfloat16").dtype == torch.bfloat16


def test_an_unknown_type_is_refused(saved):
    _, folder = saved()
    with pytest.raises(ValueError, match=r"dtype must be a torch type, its name or 'auto'. Received: 'float31'"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder, dtype="float31")


# --- other heads, other classes -----------------------------------------------------------------------


def test_new_heads_on_a_trunk_are_reported(saved, caplog):
    model, folder = saved(DeiTForMaskedImageModeling)
    with caplog.at_level(logging.WARNING):
        again, info = DeiTForImageClassificationWithTeacher.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {
        f"{head}.{kind}" for head in ("cls_classifier", "distillation_classifier") for kind in ("weight", "bias")
    }
    assert set(info["unexpected_keys"]) == {"decoder.0.weight", "decoder.0.bias", "deit.embeddings.mask_token"}
    assert "start anew: cls_classifier.weight" in caplog.text
    assert "are not used: " in caplog.text
    assert torch.equal(again.deit.trunk.pos_embed, model.deit.trunk.pos_embed)
    assert again.cls_classifier.weight.abs().max() > 0


def test_the_class_head_does_not_turn_into_one_of_the_two_heads_by_chance(saved):
    model, folder = saved(DeiTForImageClassification)
    again, info = DeiTForImageClassificationWithTeacher.from_pretrained(folder, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not torch.equal(again.cls_classifier.weight, model.classifier.weight)


def test_heads_for_another_number_of_classes_are_refused(saved):
    _, folder = saved()
    message = r"4 tensors of .* have another shape .*\(5, 32\) in the file, \(7, 32\) in the model.*Pass ignore"
    with pytest.raises(ValueError, match=message):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder, num_labels=7)


def test_heads_for_another_number_of_classes_start_anew_when_that_is_asked_for(saved):
    model, folder = saved()
    again, info = DeiTForImageClassificationWithTeacher.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert ("cls_classifier.weight", (5, 32), (7, 32)) in info["mismatched_keys"]
    assert {m[0] for m in info["mismatched_keys"]} == {
        f"{head}.{kind}" for head in ("cls_classifier", "distillation_classifier") for kind in ("weight", "bias")
    }
    assert again.config.num_labels == 7
    assert again.cls_classifier.weight.std() < 0.05  # initial values, not those of the file
    assert torch.equal(again.deit.trunk.blocks[1].attn.qkv.weight, model.deit.trunk.blocks[1].attn.qkv.weight)


def test_an_image_size_that_does_not_fit_the_file_is_refused(saved):
    _, folder = saved()
    with pytest.raises(ValueError, match=r"position_embeddings: \(1, 18, 32\) in the file, \(1, 66, 32\) in the model"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder, image_size=32)


# --- configuration ------------------------------------------------------------------------------------


def test_keywords_override_the_configuration(saved):
    _, folder = saved()
    model = DeiTForImageClassificationWithTeacher.from_pretrained(
        folder, attn_implementation="eager", drop_path_rate=0.3, hidden_dropout_prob=0.1
    )
    assert model.config.attn_implementation == "eager"
    assert model.deit.trunk.blocks[-1].drop_path.rate == pytest.approx(0.3)
    assert model.deit.trunk.pos_drop.p == 0.1


def test_a_configuration_can_be_given(saved, tiny_config):
    _, folder = saved()
    config = tiny_config(distillation_kind="soft")
    opened = DeiTForImageClassificationWithTeacher.from_pretrained(folder, config=config)
    assert opened.config.distillation_kind == "soft"
    assert (opened.config.name_or_path, config.name_or_path) == (str(folder), "")  # the caller's own stays as it is


def test_arguments_of_the_constructor_are_passed_on(saved):
    _, folder = saved(DeiTModel)
    assert DeiTModel.from_pretrained(folder, add_pooling_layer=False).pooler is None
    assert DeiTModel.from_pretrained(folder, False).pooler is None
    assert DeiTModel.from_pretrained(folder, use_mask_token=True).trunk.mask_token is not None


def test_an_unknown_keyword_is_refused(saved):
    _, folder = saved()
    with pytest.raises(TypeError, match=r"does not know an argument: .*num_label"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder, num_label=7)


# --- files that cannot be used ------------------------------------------------------------------------


def test_a_missing_folder_or_file_is_named(saved, tmp_path):
    _, folder = saved()
    load = DeiTForImageClassificationWithTeacher.from_pretrained
    with pytest.raises(FileNotFoundError, match=r"No model directory at .*nowhere"):
        load(tmp_path / "nowhere")
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match=r"No config\.json at .*model"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in .*model"):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_refused(saved, share):
    _, folder = saved()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors .*truncated"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder)


def test_a_checkpoint_of_fewer_blocks_is_refused(saved):
    _, folder = saved()
    with pytest.raises(ValueError, match=r"lacks 16 tensors .*layer\.2\..*another architecture or depth"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder, num_hidden_layers=3)


def test_a_checkpoint_of_another_width_is_refused(saved):
    _, folder = saved()
    with pytest.raises(ValueError, match="have another shape than the model's"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder, hidden_size=16)


def test_one_missing_tensor_of_the_trunk_is_refused_even_when_sizes_may_differ(saved):
    _, folder = saved()
    tensors = load_file(folder / "model.safetensors")
    del tensors["deit.encoder.layer.1.attention.attention.key.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*'deit.encoder.layer.1.attention.attention.key.bias'"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_weights_of_something_else_are_refused(saved):
    _, folder = saved()
    save_file({"fc.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="Is it a checkpoint of another architecture"):
        DeiTForImageClassificationWithTeacher.from_pretrained(folder)


STARTS = {"before.weight": 1.0, "after.weight": 1.0, "layernorm.weight": 1.0, "activation": 0.25, "layer_scale": 0.1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lost", ["everything", "one of query, key and value", "a norm and an activation"])
def test_what_a_file_lacks_starts_anew_where_the_report_is_asked_for(saved, caplog, lost, dtype):
    model, folder = saved(hidden_act="prelu", layer_scale_init=0.1)
    tensors = load_file(folder / "model.safetensors")
    gone = {
        "everything": set(tensors),
        "one of query, key and value": {
            f"deit.encoder.layer.1.attention.attention.key.{k}" for k in ("weight", "bias")
        },
        "a norm and an activation": {
            name for name in tensors if ".layer.0." in name and ("layernorm_after" in name or "activation" in name)
        },
    }[lost]
    save_file(
        {n: t for n, t in tensors.items() if n not in gone} or {"x": torch.zeros(1)}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=f"lacks {len([n for n in gone if 'classifier' not in n])} tensors that"):
        type(model).from_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        again, info = type(model).from_pretrained(folder, output_loading_info=True, dtype=dtype)
    own = dict(model.named_parameters())
    assert info["missing_keys"] == (set(own) if lost == "everything" else gone)  # such a file has no other names
    assert all(name in caplog.text for name in info["missing_keys"])
    for name, tensor in published_tensors(again.state_dict()).items():
        assert tensor.dtype == dtype
        if name not in gone:
            assert torch.equal(tensor, tensors[name].to(dtype)), name
        elif tensor.ndim > 1 or "projection" in name:
            assert 0.0 < tensor.float().std() < 0.2, name
        else:
            start = next((value for part, value in STARTS.items() if part in name), 0.0)
            assert (tensor == torch.tensor(start).to(dtype)).all(), name


def test_a_configuration_of_another_kind_of_model_is_refused(saved):
    _, folder = saved()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="is of model type 'vit'"):
        DeiTModel.from_pretrained(folder)


def test_a_model_outlives_its_file(saved, redraw):
    """Weights may be views of the file, but of its old content: replacing or removing it changes nothing."""
    model, folder = saved()
    again = DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    redraw(DeiTForImageClassificationWithTeacher(model.config), seed=5).save_pretrained(folder)
    assert_equal_weights(model, again)
    (folder / "model.safetensors").unlink()
    assert_equal_weights(model, again)


def test_training_a_model_leaves_its_file_alone(saved):
    model, folder = saved()
    again = DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert_equal_weights(model, DeiTForImageClassificationWithTeacher.from_pretrained(folder))


def test_loading_without_a_view_keeps_no_hold_of_the_file(saved):
    model, folder = saved()
    again = DeiTForImageClassificationWithTeacher.from_pretrained(folder, low_cpu_mem_usage=False)
    data = bytearray(Path(folder / "model.safetensors").read_bytes())
    data[-4000:] = bytes(4000)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(data)
    assert_equal_weights(model, again)

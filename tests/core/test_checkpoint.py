"""Names of tensors: from the network to published files and back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from deit.core.checkpoint import Part, file_names, find_weights, layout, match_prefix

# Every kind of name, written down from a published file.
NAMES = {
    "deit.trunk.cls_token": ["deit.embeddings.cls_token"],
    "deit.trunk.dist_token": ["deit.embeddings.distillation_token"],
    "deit.trunk.mask_token": ["deit.embeddings.mask_token"],
    "deit.trunk.pos_embed": ["deit.embeddings.position_embeddings"],
    "deit.trunk.patch_embed.proj.weight": ["deit.embeddings.patch_embeddings.projection.weight"],
    "deit.trunk.blocks.0.norm1.weight": ["deit.encoder.layer.0.layernorm_before.weight"],
    "deit.trunk.blocks.11.attn.qkv.bias": [
        "deit.encoder.layer.11.attention.attention.query.bias",
        "deit.encoder.layer.11.attention.attention.key.bias",
        "deit.encoder.layer.11.attention.attention.value.bias",
    ],
    "deit.trunk.blocks.3.attn.proj.weight": ["deit.encoder.layer.3.attention.output.dense.weight"],
    "deit.trunk.blocks.3.norm2.bias": ["deit.encoder.layer.3.layernorm_after.bias"],
    "deit.trunk.blocks.3.mlp.fc1.weight": ["deit.encoder.layer.3.intermediate.dense.weight"],
    "deit.trunk.blocks.3.mlp.fc2.bias": ["deit.encoder.layer.3.output.dense.bias"],
    "deit.trunk.norm.weight": ["deit.layernorm.weight"],
    "trunk.norm.weight": ["layernorm.weight"],
    "trunk.cls_token": ["embeddings.cls_token"],
    "pooler.dense.weight": ["pooler.dense.weight"],
    "classifier.bias": ["classifier.bias"],
    "distillation_classifier.weight": ["distillation_classifier.weight"],
    "decoder.0.weight": ["decoder.0.weight"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_the_network_has_its_published_names(name):
    assert file_names(name, "deit.") == NAMES[name]


def test_the_layout_leads_back_from_published_names():
    table = layout(NAMES, "deit.")
    assert table["deit.encoder.layer.11.attention.attention.value.bias"] == Part(
        name="deit.trunk.blocks.11.attn.qkv.bias", index=2, count=3
    )
    assert table["layernorm.weight"] == Part(name="trunk.norm.weight")
    assert len(table) == sum(map(len, NAMES.values()))


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False, "num_hidden_layers": 11}], ids=str)
@pytest.mark.parametrize(
    "name",
    ["DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTForMaskedImageModeling"],
)
def test_every_name_of_a_file_of_transformers_is_mapped_and_back(name, fields, tiny_fields, tmp_path):
    transformers = pytest.importorskip("transformers")
    import deit

    fields = {**tiny_fields, **fields}
    getattr(transformers, name)(transformers.DeiTConfig(**fields)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    state = getattr(deit, name)(deit.DeiTConfig(**fields)).state_dict()

    table = layout(state, "deit.")
    assert set(table) == set(shapes)
    assert {part.name for part in table.values()} == set(state)
    for file_name, part in table.items():
        rows, *rest = state[part.name].shape
        assert shapes[file_name] == (rows // part.count, *rest)
        assert file_names(part.name, "deit.")[part.index] == file_name
    for own_name, count in Counter(part.name for part in table.values()).items():
        assert count == (3 if ".qkv." in own_name else 1)


def test_a_file_of_a_bare_trunk_fits_a_model_with_heads():
    table = layout(["deit.trunk.norm.weight", "classifier.weight"], "deit.")
    assert match_prefix(["layernorm.weight", "classifier.weight", "odd"], table, "deit.") == {
        "layernorm.weight": "deit.layernorm.weight",
        "classifier.weight": "classifier.weight",
        "odd": "deit.odd",
    }


def test_a_file_with_heads_fits_a_bare_trunk():
    table = layout(["trunk.norm.weight"], "deit.")
    assert match_prefix(["deit.layernorm.weight", "classifier.weight"], table, "deit.") == {
        "deit.layernorm.weight": "layernorm.weight",
        "classifier.weight": "classifier.weight",
    }


@pytest.mark.parametrize("name", ["trunk.norm.weight", "deit.trunk.norm.weight"])
def test_names_of_the_same_kind_of_model_stay(name):
    table = layout([name], "deit.")
    assert match_prefix(table, table, "deit.") == {n: n for n in table}


def test_the_weights_of_a_folder_are_found(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"


def test_a_missing_folder_or_file_of_weights_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"No model directory at .*nowhere"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in"):
        find_weights(tmp_path)

"""Names of tensors: from the network to published files and back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from deit.core.weights.files import find_weights
from deit.core.weights.names import (
    DIALECTS,
    Part,
    detect_dialect,
    file_names,
    layout,
    match_prefix,
    name_in_trunk,
    places,
)

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
    assert file_names(name) == NAMES[name]


def test_the_layout_leads_back_from_published_names():
    table = layout(NAMES)
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

    table = layout(state)
    assert set(table) == set(shapes)
    assert {part.name for part in table.values()} == set(state)
    for file_name, part in table.items():
        rows, *rest = state[part.name].shape
        assert shapes[file_name] == (rows // part.count, *rest)
        assert file_names(part.name)[part.index] == file_name
    for own_name, count in Counter(part.name for part in table.values()).items():
        assert count == (3 if ".qkv." in own_name else 1)


# One tensor of each kind in every dialect, written down from published files.
DIALECT_NAMES = {
    "deit.trunk.blocks.3.attn.proj.weight": {
        "huggingface": "deit.encoder.layer.3.attention.output.dense.weight",
        "transformers": "deit.layers.3.attention.o_proj.weight",
        "timm": "blocks.3.attn.proj.weight",
        "original": "blocks.3.attn.proj.weight",
    },
    "vit.trunk.blocks.0.ls2.gamma": {
        "huggingface": "vit.encoder.layer.0.layer_scale2.lambda1",
        "transformers": "vit.layers.0.layer_scale2.lambda1",
        "timm": "blocks.0.ls2.gamma",
        "original": "blocks.0.gamma_2",
    },
    "deit.trunk.dist_token": {
        "huggingface": "deit.embeddings.distillation_token",
        "transformers": "deit.embeddings.distillation_token",
        "timm": "dist_token",
        "original": "dist_token",
    },
    "deit.trunk.norm.bias": {
        "huggingface": "deit.layernorm.bias",
        "transformers": "deit.layernorm.bias",
        "timm": "norm.bias",
        "original": "norm.bias",
    },
    "cls_classifier.weight": {
        "huggingface": "cls_classifier.weight",
        "transformers": "cls_classifier.weight",
        "timm": "head.weight",
        "original": "head.weight",
    },
    "classifier.bias": {"timm": "head.bias", "original": "head.bias"},
    "distillation_classifier.bias": {"timm": "head_dist.bias", "original": "head_dist.bias"},
}


@pytest.mark.parametrize("name", DIALECT_NAMES)
def test_a_tensor_has_its_name_in_every_dialect(name):
    for dialect, expected in DIALECT_NAMES[name].items():
        assert file_names(name, dialect) == [expected]


def test_query_key_and_value_are_apart_in_the_memory_of_transformers():
    assert file_names("trunk.blocks.1.attn.qkv.bias", "transformers") == [
        f"layers.1.attention.{part}_proj.bias" for part in "qkv"
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_name_leads_there_and_back(dialect):
    own = [name for name in NAMES if name.startswith("deit.") and "mask" not in name]
    own.append("deit.trunk.blocks.0.ls1.gamma")
    table = layout(own, dialect)
    assert detect_dialect(table) == dialect
    prefix = "" if dialect in ("huggingface", "transformers") else "deit."
    assert {prefix + part.name for part in places(table).values()} == set(own)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("deit.trunk.cls_token", "deit"),
        ("trunk.cls_token", "deit"),
        ("vit.embeddings.cls_token", "huggingface"),
        ("encoder.layer.0.output.dense.bias", "huggingface"),
        ("layers.7.mlp.fc2.bias", "transformers"),
        ("cls_token", "timm"),
        ("blocks.0.ls1.gamma", "timm"),
        ("blocks.0.gamma_1", "original"),
        ("_orig_mod.blocks.0.attn.qkv.bias", "timm"),
        ("module.deit.embeddings.cls_token", "huggingface"),
        ("classifier.weight", "huggingface"),
        ("fc.weight", "huggingface"),
    ],
)
def test_the_dialect_is_told_by_the_names(name, dialect):
    assert detect_dialect([name, "classifier.bias"]) == dialect


def test_names_that_say_nothing_get_the_dialect_asked_for():
    assert detect_dialect(["classifier.weight"], default="deit") == "deit"


def test_the_head_of_timm_is_the_one_of_its_model():
    assert places(["cls_token", "dist_token", "head.weight"])["head.weight"].name == "cls_classifier.weight"
    assert places(["cls_token", "head.weight"])["head.weight"].name == "classifier.weight"


def test_names_that_the_table_does_not_hold_stay():
    assert places(["cls_token", "reg_token"])["reg_token"] == Part(name="reg_token")
    assert file_names("extra.weight", "timm") == ["extra.weight"]


def test_a_trunk_inside_something_else_keeps_what_is_in_front():
    assert file_names("backbone.model.trunk.norm.weight") == ["backbone.model.layernorm.weight"]
    part = places(["backbone.encoder.layer.0.attention.attention.value.weight"])
    assert list(part.values()) == [Part(name="backbone.trunk.blocks.0.attn.qkv.weight", index=2, count=3)]


def test_a_file_of_a_bare_trunk_fits_a_model_with_heads():
    wanted = ["deit.trunk.norm.weight", "classifier.weight"]
    assert match_prefix(["trunk.norm.weight", "classifier.weight", "odd"], wanted, "deit.") == {
        "trunk.norm.weight": "deit.trunk.norm.weight",
        "classifier.weight": "classifier.weight",
        "odd": "deit.odd",
    }


def test_a_file_with_heads_fits_a_bare_trunk():
    assert match_prefix(["deit.trunk.norm.weight", "classifier.weight"], ["trunk.norm.weight"], "deit.") == {
        "deit.trunk.norm.weight": "trunk.norm.weight",
        "classifier.weight": "classifier.weight",
    }


@pytest.mark.parametrize("name", ["trunk.norm.weight", "deit.trunk.norm.weight"])
def test_names_of_the_same_kind_of_model_stay(name):
    assert match_prefix([name], [name], "deit.") == {name: name}


def test_the_weights_of_a_folder_are_found(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path).files == (tmp_path / "model.safetensors",)


def test_a_missing_folder_or_file_of_weights_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"No model directory at .*nowhere"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in"):
        find_weights(tmp_path)


@pytest.mark.parametrize("prefix", ["", "trunk.", "deit.trunk.", "my.vit.trunk."])
def test_a_tensor_of_the_trunk_has_one_name_whatever_stands_around_the_trunk(prefix):
    assert name_in_trunk(f"{prefix}blocks.0.norm1.bias") == "blocks.0.norm1.bias"


def test_a_head_keeps_its_name():
    assert name_in_trunk("cls_classifier.weight") == "cls_classifier.weight"

"""The configuration: defaults, checks, labels, JSON."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys

import pytest

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.config_file import read_config
from deit.core.config.field_checks import height_and_width


def test_the_defaults_are_those_of_deit_base():
    config = DeiTConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.image_size, config.patch_size, config.grid_size) == (224, 16, (14, 14))
    assert (config.hidden_act, config.layer_norm_eps, config.pooler_output_size) == ("gelu", 1e-12, 768)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.attn_implementation == "sdpa"
    assert (config.drop_path_rate, config.distillation_kind, config.distillation_weight) == (0.0, "hard", 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1. Received: 0"),
        ({"num_hidden_layers": -2}, "num_hidden_layers must be at least 1"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob must be between 0.0 and 1.0. Received: 1.5"),
        ({"drop_path_rate": -0.1}, "drop_path_rate must be between"),
        ({"distillation_weight": 2}, "distillation_weight must be between"),
        ({"distillation_temperature": 0}, "distillation_temperature must be at least"),
        ({"distillation_kind": "warm"}, "distillation_kind must be one of 'hard', 'soft'. Received: 'warm'"),
        ({"problem_type": "clustering"}, "problem_type must be one of"),
        ({"attn_implementation": "flash"}, "attn_implementation must be one of 'sdpa', 'eager', .*Received: 'flash'"),
        ({"image_size": (0, 8)}, "image_size must be at least 1"),
        ({"num_labels": -1}, "num_labels must be an integer of at least 0. Received: -1"),
        ({"num_labels": True}, "num_labels must be an integer"),
        ({"validate": 1}, "cannot hold a key named 'validate'"),
        ({"to_dict": None}, "cannot hold a key named 'to_dict'"),
    ],
    ids=str,
)
def test_a_value_that_is_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DeiTConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 768.0}, "hidden_size must be an integer. Received: 768.0"),
        ({"num_channels": True}, "num_channels must be an integer. Received: True"),
        ({"num_attention_heads": "12"}, "num_attention_heads must be an integer. Received: '12'"),
        ({"image_size": "224"}, "image_size must be an integer or a pair"),
        ({"image_size": (1, 2, 3)}, "image_size must be an integer or a pair"),
        ({"patch_size": (16, 16.0)}, "patch_size must be an integer. Received: 16.0"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps must be a number"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob must be a number"),
        ({"hidden_act": 3}, "hidden_act must be the name of an activation or a function. Received: 3"),
        ({"pooler_act": None}, "pooler_act must be the name of an activation or a function"),
        ({"qkv_bias": "false"}, "qkv_bias must be True or False. Received: 'false'"),
        ({"return_dict": 1}, "return_dict must be True or False. Received: 1"),
        ({"id2label": ["cat", "dog"]}, "id2label must be a dict. Received:"),
        ({"label2id": "cat"}, "label2id must be a dict. Received: 'cat'"),
        ({"dtype": 16}, "dtype must be a torch type or its name. Received: 16"),
        ({"pruned_heads": [1]}, "pruned_heads must be a dict"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused(fields, message):
    with pytest.raises(TypeError, match=message):
        DeiTConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 12"),
        ({"image_size": 8}, "patch_size 16 is larger than image_size 8"),
        ({"image_size": (224, 8)}, "patch_size 16 is larger than image_size"),
        ({"image_size": 16_384, "patch_size": 1}, "more than 262144 patches"),
    ],
    ids=str,
)
def test_fields_may_disagree_until_a_model_needs_them(fields, message):
    config = DeiTConfig(**fields)
    with pytest.raises(ValueError, match=message):
        config.validate()
    again = DeiTConfig()
    again.update(fields)
    with pytest.raises(ValueError, match=message):
        again.validate()
    again.update({"hidden_size": 768, "image_size": 224, "patch_size": 16})
    again.validate()


def test_a_width_and_its_heads_can_be_changed_one_after_the_other():
    config = DeiTConfig()
    config.update_from_string("hidden_size=320")
    config.update_from_string("num_attention_heads=5")
    config.validate()
    assert (config.hidden_size, config.num_attention_heads) == (320, 5)


def test_sides_are_height_then_width():
    assert height_and_width(5, "size") == (5, 5)
    assert height_and_width([3, 4], "size") == (3, 4)
    assert DeiTConfig(image_size=(32, 48), patch_size=(16, 8)).grid_size == (2, 6)
    assert DeiTConfig(image_size=[33, 47]).grid_size == (2, 2)


@pytest.mark.parametrize("number", [10**400, -(10**400), math.inf, math.nan])
@pytest.mark.parametrize(
    "name", ["initializer_range", "layer_norm_eps", "hidden_dropout_prob", "distillation_temperature"]
)
def test_a_number_that_is_none_is_refused(name, number):
    with pytest.raises(ValueError, match=f"{name} must be"):
        DeiTConfig(**{name: number})


@pytest.mark.parametrize("given", [5, "DeiTModel", [["DeiTModel"]], {"DeiTModel": 1}, [None]])
def test_architectures_that_are_no_list_of_texts_are_refused(given, tmp_path):
    with pytest.raises(TypeError, match="architectures must be a list of names"):
        DeiTConfig(architectures=given)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": given}))
    with pytest.raises(TypeError, match="architectures must be a list of names"):
        read_config(tmp_path)


# --- labels -------------------------------------------------------------------------------------------


def test_a_number_of_labels_gives_names():
    config = DeiTConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    config.num_labels = 1
    assert config.label2id == {"LABEL_0": 0}


def test_names_of_classes_give_their_number_and_the_way_back():
    config = DeiTConfig(id2label={"0": "cat", "1": "dog", "2": "owl"})
    assert config.num_labels == 3
    assert config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert config.label2id == {"cat": 0, "dog": 1, "owl": 2}


def test_numbers_of_classes_given_as_text_become_numbers():
    assert DeiTConfig(id2label={0: "cat"}, label2id={"cat": "0"}).label2id == {"cat": 0}


def test_a_number_that_contradicts_the_names_wins_and_starts_them_anew():
    config = DeiTConfig(num_labels=3, id2label={0: "cat", 1: "dog"})
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_another_number_of_labels_at_loading_starts_the_names_anew():
    values = DeiTConfig(id2label={0: "cat", 1: "dog"}).to_dict()
    assert DeiTConfig.from_dict(values, num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert DeiTConfig.from_dict(values, num_labels=2).id2label == {0: "cat", 1: "dog"}


def test_other_names_at_loading_replace_both_tables():
    values = DeiTConfig(id2label={0: "cat", 1: "dog"}).to_dict()
    config = DeiTConfig.from_dict(values, id2label={0: "owl"})
    assert (config.id2label, config.label2id) == ({0: "owl"}, {"owl": 0})


# --- JSON ---------------------------------------------------------------------------------------------

ROUND_TRIPS = [
    {},
    {"hidden_size": 96, "num_attention_heads": 3, "qkv_bias": False, "pooler_output_size": 10},
    {"id2label": {0: "cat", 1: "dog", 2: "owl"}},
    {"num_labels": 0},
    {"image_size": [32, 48], "problem_type": "regression", "architectures": ["DeiTModel"], "dtype": "float16"},
    {"drop_path_rate": 0.2, "distillation_kind": "soft", "distillation_temperature": 3.0, "distillation_weight": 0.1},
    {"output_attentions": True, "output_hidden_states": True, "return_dict": False, "note": {"a": [1]}},
]


@pytest.mark.parametrize("fields", ROUND_TRIPS, ids=str)
def test_a_configuration_survives_saving_and_loading(fields, tmp_path):
    config = DeiTConfig(**fields)
    config.save_pretrained(tmp_path / "new" / "folder")
    assert DeiTConfig.from_pretrained(tmp_path / "new" / "folder") == config
    assert DeiTConfig.from_pretrained(tmp_path / "new" / "folder" / "config.json") == config
    assert DeiTConfig.from_json_file(tmp_path / "new" / "folder" / "config.json") == config
    assert DeiTConfig.from_dict(config.to_dict()) == config
    for name, value in fields.items():
        assert DeiTConfig.from_pretrained(tmp_path / "new" / "folder").to_dict().get(name, value) == value


def test_the_file_is_sorted_and_holds_common_fields_only_when_they_were_set():
    text = DeiTConfig(problem_type="regression").to_json_string()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert values["problem_type"] == "regression"
    assert values["model_type"] == "deit"
    assert not {"drop_path_rate", "return_dict", "id2label", "dtype", "attn_implementation"} & set(values)
    assert "return_dict" in json.loads(DeiTConfig().to_json_string(use_diff=False))


def test_a_dict_is_a_copy():
    config = DeiTConfig(note={"a": [1]})
    config.to_dict()["note"]["a"].append(2)
    assert config.note == {"a": [1]}


def test_the_attention_implementation_is_never_written():
    assert "eager" not in DeiTConfig(attn_implementation="eager").to_json_string(use_diff=False)


def test_a_file_cannot_set_private_state():
    config = DeiTConfig.from_dict({"_attn_implementation": "magic", "_name_or_path": "/secret", "hidden_size": 96})
    assert config.attn_implementation == "sdpa"
    assert "secret" not in config.to_json_string(use_diff=False)


def test_the_older_name_of_dtype_is_read():
    assert DeiTConfig.from_dict({"torch_dtype": "bfloat16"}).to_dict()["dtype"] == "bfloat16"
    assert DeiTConfig(dtype="torch.float16").to_dict()["dtype"] == "float16"


def test_a_type_is_torchs_where_torch_is_there_and_its_name_elsewhere(tmp_path):
    torch = pytest.importorskip("torch")
    config = DeiTConfig(dtype=torch.float16)
    assert config.dtype is config.torch_dtype is torch.float16
    config.torch_dtype = "bfloat16"
    assert config.dtype is torch.bfloat16
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    code = "import sys, deit; c = deit.DeiTConfig.from_pretrained(sys.argv[1]); print(c.dtype, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["bfloat16", "False"]


def test_code_for_transformers_reads_a_configuration(tmp_path):
    config = DeiTConfig(note=1, name_or_path="me/model")
    assert config.name_or_path == "me/model"
    assert config.get_text_config() is config.get_text_config(decoder=True) is config
    assert {key: getattr(config, key) for key in config} == config.to_dict()
    assert "note" in config
    assert (config.is_encoder_decoder, config.sub_configs) == (False, {})
    config.save_pretrained(tmp_path)
    values, rest = DeiTConfig.get_config_dict(tmp_path, hidden_size=3, colour="red")
    assert values == json.loads((tmp_path / "config.json").read_text())
    assert "me/model" not in values.values()
    assert rest == {"hidden_size": 3, "colour": "red"}


def test_a_damaged_file_is_also_the_error_that_transformers_raises(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match="is damaged or is not a configuration"):
        DeiTConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="is damaged or is not a configuration"):
        DeiTConfig.get_config_dict(tmp_path)


def test_keywords_override_the_file_and_others_come_back(tmp_path):
    DeiTConfig(hidden_size=96, num_attention_heads=3, note=1).save_pretrained(tmp_path)
    config, unused = DeiTConfig.from_pretrained(
        tmp_path, hidden_size=48, note=2, drop_path_rate=0.1, colour="red", return_unused_kwargs=True
    )
    assert (config.hidden_size, config.note, config.drop_path_rate) == (48, 2, 0.1)
    assert unused == {"colour": "red"}
    assert not hasattr(config, "colour")


def test_an_update_sets_fields_and_checks_them():
    config = DeiTConfig()
    config.update({"image_size": 32, "patch_size": 8, "attn_implementation": "eager", "num_labels": 4})
    assert (config.grid_size, config.attn_implementation, config.num_labels) == ((4, 4), "eager", 4)
    with pytest.raises(ValueError, match="num_attention_heads must be at least 1"):
        config.update({"num_attention_heads": 0})


def test_equality_looks_at_every_field():
    assert DeiTConfig() == DeiTConfig()
    assert DeiTConfig() != DeiTConfig(layer_norm_eps=1e-6)
    assert DeiTConfig() != DeiTConfig(note=1)
    assert DeiTConfig() != "DeiTConfig"


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged or is not"), ("[1]", "holds a list, not a JSON object")]
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        DeiTConfig.from_pretrained(tmp_path)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No config\.json at .*nowhere"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No config\.json at"):
        read_config(tmp_path)


def test_a_configuration_of_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="of model type 'vit', DeiTConfig needs 'deit'"):
        DeiTConfig.from_pretrained(tmp_path)


# --- the two kinds ------------------------------------------------------------------------------------


def test_a_vit_has_the_same_fields_and_one_prefix_token_less():
    assert ViTConfig.field_names() == DeiTConfig.field_names()
    assert (DeiTConfig().num_prefix_tokens, ViTConfig().num_prefix_tokens) == (2, 1)
    values = {**ViTConfig(num_labels=3).to_dict(), "model_type": "deit"}
    assert values == DeiTConfig(num_labels=3).to_dict()
    assert ViTConfig() != DeiTConfig()


def test_the_kind_is_written_and_a_file_of_the_other_kind_is_refused(tmp_path):
    ViTConfig(hidden_size=96, num_attention_heads=3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit"
    assert ViTConfig.from_pretrained(tmp_path) == ViTConfig(hidden_size=96, num_attention_heads=3)
    with pytest.raises(ValueError, match="of model type 'vit', DeiTConfig needs 'deit'"):
        DeiTConfig.from_pretrained(tmp_path)


# --- values that JSON does not have -------------------------------------------------------------------


def test_a_pair_equals_itself_after_a_journey_through_json(tmp_path):
    config = ViTConfig(image_size=(32, 48), patch_size=(16, 8), note=((1, 2), {"a": (3,)}))
    config.save_pretrained(tmp_path)
    again = ViTConfig.from_pretrained(tmp_path)
    assert again == config
    assert (again.grid_image_size, again.grid_patch_size, again.grid_size) == ((32, 48), (16, 8), (2, 6))
    assert again != ViTConfig(image_size=(48, 32), patch_size=(16, 8), note=config.note)


def test_a_function_is_an_activation_that_is_shown_and_cannot_be_written():
    config = DeiTConfig(hidden_act=abs)
    assert "built-in function abs" in repr(config)
    with pytest.raises(ValueError, match=r"hidden_act cannot be written as JSON .*Replace <built-in function abs>"):
        config.to_json_string()


def test_a_configuration_shows_itself_as_its_file():
    config = ViTConfig(num_labels=3)
    assert repr(config) == str(config) == f"ViTConfig {config.to_json_string()}"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_configuration_can_be_copied_and_pickled(copied):
    config = DeiTConfig(num_labels=3, attn_implementation="eager", image_size=(32, 48), note={"a": [1]})
    again = copied(config)
    assert again == config
    assert again.attn_implementation == "eager"
    again.num_labels = 4
    assert config.num_labels == 3


# --- pruned heads -------------------------------------------------------------------------------------


def test_pruned_heads_are_written_when_there_are_any_and_read_with_numbers(tmp_path):
    config = DeiTConfig(pruned_heads={"3": {5, 1}, 0: [2]})
    assert config.pruned_heads == {3: [1, 5], 0: [2]}
    config.save_pretrained(tmp_path)
    assert DeiTConfig.from_pretrained(tmp_path) == config
    assert DeiTConfig.from_pretrained(tmp_path).pruned_heads == {3: [1, 5], 0: [2]}
    assert "pruned_heads" not in DeiTConfig().to_json_string()
    assert DeiTConfig().pruned_heads is not DeiTConfig().pruned_heads


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({12: [0]}, "must name blocks from 0 to 11. Received: 12"),
        ({0: [12]}, "must name heads from 0 to 11. Received for 0"),
        ({0: list(range(12))}, "would leave block 0 without attention heads"),
        ({"first": [0]}, "keys of pruned_heads must be numbers"),
    ],
    ids=str,
)
def test_heads_that_cannot_be_pruned_are_refused(pruned, message):
    with pytest.raises(ValueError, match=message):
        DeiTConfig(pruned_heads=pruned).validate()


# --- updates ------------------------------------------------------------------------------------------


def test_an_update_with_one_wrong_value_changes_nothing():
    config = DeiTConfig()
    with pytest.raises(TypeError, match="patch_size must be an integer or a pair"):
        config.update({"image_size": 32, "num_labels": 7, "patch_size": "8"})
    assert config == DeiTConfig()


def test_an_update_cannot_replace_a_method_and_keeps_what_it_does_not_know():
    config = DeiTConfig()
    for name in ("validate", "to_dict", "model_type"):
        with pytest.raises(ValueError, match=f"cannot hold a key named '{name}'"):
            config.update({name: None})
    config.update({"note": 1, "id2label": {"0": "cat"}})
    assert (config.note, config.id2label) == (1, {0: "cat"})


def test_fields_can_be_given_as_text():
    config = DeiTConfig(note="x")
    config.update_from_string("image_size=64,qkv_bias=false,layer_norm_eps=1e-6,hidden_act=relu,num_labels=3,note=a=b")
    assert (config.image_size, config.qkv_bias, config.layer_norm_eps) == (64, False, 1e-6)
    assert (config.hidden_act, config.num_labels, config.note) == ("relu", 3, "a=b")
    config.update_from_string("qkv_bias=YES")
    assert config.qkv_bias is True


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("hidden_sise=3", ValueError, "'hidden_sise=3' names no field of DeiTConfig"),
        ("hidden_size", ValueError, "'hidden_size' names no field"),
        ("_attn_implementation=eager", ValueError, "names no field"),
        ("hidden_size=wide", ValueError, "hidden_size must be a number like 768. Received: 'wide'"),
        ("qkv_bias=maybe", ValueError, "qkv_bias must be true or false. Received: 'maybe'"),
        ("problem_type=regression", TypeError, "problem_type cannot be given as text: it is None"),
    ],
)
def test_text_that_names_no_field_or_value_is_refused(text, error, message):
    config = DeiTConfig()
    with pytest.raises(error, match=message):
        config.update_from_string(text)
    assert config == DeiTConfig()


# --- unknown keys -------------------------------------------------------------------------------------

SUSPICIOUS = {
    "auto_map": {"AutoModel": "evil.Model"},
    "custom_pipelines": {"x": {"impl": "evil.run"}},
    "quantization_config": {"quant_method": "evil"},
    "_target_": "evil.run",
    "transformers_version": "99",
    "unknown": [1, {"a": None}],
}


def test_unknown_keys_are_data_that_nothing_interprets(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SUSPICIOUS, "model_type": "vit", "hidden_size": 96}))
    before = set(sys.modules)
    config = ViTConfig.from_pretrained(tmp_path)
    assert set(sys.modules) == before
    written = json.loads(config.to_json_string())
    for key, value in SUSPICIOUS.items():
        if not key.startswith("_"):
            assert written[key] == value
    assert "_target_" not in written

"""Files of every kind, read into a model without a second copy; arguments of from_pretrained and save_pretrained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deit
from deit.models.pretrained import DeiTPreTrainedModel
from deit.models.weights.loading import published_tensors, read_network, resolve_device
from deit.models.weights.tensor_source import DictSource

Model = deit.DeiTForImageClassificationWithTeacher


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


@pytest.fixture
def model(tiny_config, redraw):
    return redraw(Model(tiny_config())).eval()


# --- kinds of files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ({}, ["model.safetensors"]),
        ({"safe_serialization": False}, ["pytorch_model.bin"]),
        ({"variant": "fp16"}, ["model.fp16.safetensors"]),
        ({"variant": "fp16", "safe_serialization": False}, ["pytorch_model.fp16.bin"]),
    ],
    ids=str,
)
def test_a_model_in_one_file_comes_back(model, tmp_path, arguments, files):
    model.save_pretrained(tmp_path, **arguments)
    assert sorted(os.listdir(tmp_path)) == ["config.json", *files]
    loading = {k: v for k, v in arguments.items() if k == "variant"}
    assert_equal_weights(model, Model.from_pretrained(tmp_path, **loading))
    assert_equal_weights(model, Model.from_pretrained(tmp_path, low_cpu_mem_usage=False, **loading))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_model_in_several_files_comes_back(model, tmp_path, safe, variant):
    model.save_pretrained(tmp_path, max_shard_size="20KB", safe_serialization=safe, variant=variant)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    shards = sorted(tmp_path.glob(f"{stem}*-of-*.{suffix}"))
    assert len(shards) > 3
    assert all(os.path.getsize(f) < 30_000 for f in shards)
    middle = f".{variant}" if variant else ""
    assert shards[0].name == f"{stem}{middle}-00001-of-{len(shards):05d}.{suffix}"
    index = json.loads((tmp_path / f"{stem}.{suffix}.index{middle}.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()
    assert set(index["weight_map"].values()) == {f.name for f in shards}
    assert_equal_weights(model, Model.from_pretrained(tmp_path, variant=variant))


def test_transformers_opens_a_model_in_several_files(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    theirs = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path)
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, theirs(pixels).logits, atol=1e-5, rtol=0)


def test_saving_removes_the_files_of_an_earlier_call_and_nothing_else(model, tmp_path):
    (tmp_path / "model-notes.txt").write_text("mine")
    (tmp_path / "model.onnx").write_text("mine")
    model.save_pretrained(tmp_path, variant="fp16")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    model.save_pretrained(tmp_path, safe_serialization=False)
    kept = ["config.json", "model-notes.txt", "model.fp16.safetensors", "model.onnx", "pytorch_model.bin"]
    assert sorted(os.listdir(tmp_path)) == kept


def test_a_model_in_a_subfolder_comes_back(model, tmp_path):
    model.save_pretrained(tmp_path / "inner")
    assert_equal_weights(model, Model.from_pretrained(tmp_path, subfolder="inner"))
    with pytest.raises(FileNotFoundError, match="No folder 'other' in"):
        Model.from_pretrained(tmp_path, subfolder="other")


def test_safetensors_are_preferred_and_pickles_can_be_asked_for(model, tmp_path, redraw):
    model.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    other = redraw(Model(model.config), seed=1)
    other.save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert_equal_weights(model, Model.from_pretrained(tmp_path))
    assert_equal_weights(model, Model.from_pretrained(tmp_path, use_safetensors=True))
    assert_equal_weights(other, Model.from_pretrained(tmp_path, use_safetensors=False))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in .* It holds pytorch_model\.bin"):
        Model.from_pretrained(tmp_path, use_safetensors=True)


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "model", is_main_process=False)
    assert os.listdir(tmp_path) == []


# --- no second copy -----------------------------------------------------------------------------------


class Extended(Model):
    """What a user adds to a model: a parameter, a layer and a buffer with values of their own."""

    def __init__(self, config):
        super().__init__(config)
        self.temperature = nn.Parameter(torch.tensor([3.0]))
        self.extra = nn.Linear(2, 2)
        nn.init.constant_(self.extra.weight, 7.0)
        self.register_buffer("mean", torch.tensor([0.5, 0.25]))
        self.register_buffer("table", torch.arange(3), persistent=False)


class Holder(DeiTPreTrainedModel):
    """A model of a user around the bare one, under a name of their own."""

    def __init__(self, config):
        super().__init__(config)
        self.backbone = deit.DeiTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, 3)
        self.layernorm = nn.LayerNorm(3)
        self.post_init()


def test_what_a_subclass_adds_keeps_its_values(tiny_config, redraw, tmp_path):
    subclass = Extended
    redraw(subclass(tiny_config())).eval().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "mean" in tensors
    saved = subclass.from_pretrained(tmp_path)
    assert torch.equal(saved.temperature.detach(), tensors["temperature"])
    own = ("temperature", "extra.weight", "extra.bias", "mean")
    save_file({n: t for n, t in tensors.items() if n not in own}, tmp_path / "model.safetensors")
    started, info = subclass.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == sorted(own)
    assert (started.temperature.item(), started.mean.tolist()) == (3.0, [0.5, 0.25])
    assert (started.extra.weight == 7.0).all()


def test_a_model_of_a_user_around_ours_comes_back(tiny_config, redraw, tmp_path):
    holder = redraw(Holder(tiny_config()))
    holder.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "backbone.encoder.layer.1.attention.attention.key.bias" in names
    assert {"layernorm.weight", "backbone.layernorm.weight"} <= names
    assert_equal_weights(holder, Holder.from_pretrained(tmp_path))


def test_a_buffer_that_is_not_saved_keeps_its_values(tiny_config, tmp_path):
    Extended(tiny_config()).save_pretrained(tmp_path)
    assert torch.equal(Extended.from_pretrained(tmp_path).table, torch.arange(3))


def test_loading_draws_no_random_numbers(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Model.from_pretrained(tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_parts_that_start_anew_have_initial_values(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    other, info = Model.from_pretrained(
        tmp_path, num_labels=1000, image_size=32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {name for name, _, _ in info["mismatched_keys"]} == {
        "deit.embeddings.position_embeddings",
        *(f"{h}.{k}" for h in ("cls_classifier", "distillation_classifier") for k in ("weight", "bias")),
    }
    assert other.cls_classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert other.cls_classifier.bias.abs().max() == 0
    assert other.deit.trunk.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(other.deit.trunk.cls_token, model.deit.trunk.cls_token)
    masked = deit.DeiTModel.from_pretrained(tmp_path, use_mask_token=True, add_pooling_layer=False)
    assert masked.trunk.mask_token.abs().max() == 0


def test_a_loaded_model_can_be_trained_and_saved_again_in_its_own_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path).train()
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    again(pixels, labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    assert not torch.equal(again.deit.trunk.norm.weight, model.deit.trunk.norm.weight)
    again.save_pretrained(tmp_path)
    assert_equal_weights(again, Model.from_pretrained(tmp_path))


# --- arguments ----------------------------------------------------------------------------------------


def test_loading_info_has_the_keys_of_transformers(model, tmp_path):
    model.save_pretrained(tmp_path)
    _, info = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


def test_weights_can_be_given_in_place_of_a_file(model, tmp_path, redraw):
    model.save_pretrained(tmp_path)
    other = redraw(Model(model.config), seed=1)
    assert_equal_weights(other, Model.from_pretrained(tmp_path, state_dict=other.state_dict()))
    assert_equal_weights(other, Model.from_pretrained(None, config=model.config, state_dict=other.state_dict()))
    with pytest.raises(ValueError, match="needs config="):
        Model.from_pretrained(None, state_dict=other.state_dict())
    with pytest.raises(ValueError, match="Pass the path or the name"):
        Model.from_pretrained(None, config=model.config)


def test_the_configuration_can_be_another_folders(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    config = type(model.config).from_dict(model.config.to_dict())
    config.drop_path_rate = 0.3
    config.save_pretrained(tmp_path / "b")
    again = Model.from_pretrained(tmp_path / "a", config=str(tmp_path / "b"))
    assert again.config.drop_path_rate == 0.3


@pytest.mark.parametrize("device_map", ["cpu", None, torch.device("cpu"), {"": "cpu"}], ids=str)
def test_a_device_map_names_one_device(model, tmp_path, device_map):
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path, device_map=device_map)
    assert again.device == torch.device("cpu")
    assert_equal_weights(model, again)


def test_automatic_placement_takes_the_accelerator_when_there_is_one():
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert resolve_device("auto") == found
    assert resolve_device({"": "cpu"}) == torch.device("cpu")
    assert resolve_device(1).index == 1


@pytest.mark.parametrize("device_map", [{"a": "cpu", "b": "cuda:0"}, {}, "nonsense", 1.5], ids=str)
def test_a_device_map_for_several_devices_is_refused(device_map):
    with pytest.raises(ValueError, match="device_map must name one device"):
        resolve_device(device_map)


@pytest.mark.parametrize("arguments", [{"low_cpu_mem_usage": True}, {"trust_remote_code": True}, {"from_tf": False}])
def test_arguments_without_a_meaning_here_are_accepted(model, tmp_path, arguments):
    model.save_pretrained(tmp_path)
    assert_equal_weights(model, Model.from_pretrained(tmp_path, **arguments))


@pytest.mark.parametrize("arguments", [{"from_tf": True}, {"from_flax": True}, {"weights_only": False}])
def test_what_is_not_done_here_is_refused(model, tmp_path, arguments):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Model.from_pretrained(tmp_path, **arguments)


@pytest.mark.parametrize("size", ["5 parsecs", 0, -1, True, None, "GB"], ids=str)
def test_a_bad_size_of_files_is_refused(model, tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size must be a number of bytes"):
        model.save_pretrained(tmp_path / "model", max_shard_size=size)
    assert os.listdir(tmp_path) == []


def test_an_unknown_argument_of_saving_is_refused(model, tmp_path):
    with pytest.raises(TypeError, match="does not know the argument 'shard_size'"):
        model.save_pretrained(tmp_path, shard_size="1GB")


# --- load_state_dict ----------------------------------------------------------------------------------


def published(model: nn.Module) -> dict[str, Tensor]:
    from deit.models.weights.loading import published_tensors

    return {name: tensor.clone() for name, tensor in published_tensors(model.state_dict()).items()}


def test_missing_and_unexpected_names_are_reported_in_the_callers_dialect(model, redraw):
    other = redraw(Model(model.config), seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    tensors = published(model)
    key = "deit.encoder.layer.1.attention.attention.key.bias"
    del tensors[key]
    tensors["odd"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "odd"') as error:
        other.load_state_dict(tensors)
    assert f'Missing key(s) in state_dict: "{key}"' in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())

    result = other.load_state_dict(tensors, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([key], ["odd"])
    query, own, value = other.deit.trunk.blocks[1].attn.qkv.bias.detach().chunk(3)
    assert torch.equal(query, tensors[key.replace("key", "query")])
    assert torch.equal(own, before["deit.trunk.blocks.1.attn.qkv.bias"].chunk(3)[1])  # kept
    assert torch.equal(value, tensors[key.replace("key", "value")])


def test_a_tensor_of_another_shape_is_refused_and_changes_nothing(model, redraw):
    other = redraw(Model(model.config), seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    tensors = published(model)
    tensors["deit.layernorm.weight"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"size mismatch for deit.trunk.norm.weight: .*\(3,\).*\(32,\)"):
        other.load_state_dict(tensors, strict=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_names_of_the_model_itself_keep_the_manners_of_torch(model):
    result = model.load_state_dict({"cls_classifier.bias": torch.ones(5)}, strict=False)
    assert "deit.trunk.cls_token" in result.missing_keys
    assert torch.equal(model.cls_classifier.bias.detach(), torch.ones(5))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_tensors_can_be_taken_over_without_a_copy(model):
    tensors = published(model)
    model.load_state_dict(tensors, assign=True)
    assert model.deit.trunk.norm.weight.data_ptr() == tensors["deit.layernorm.weight"].data_ptr()


def test_a_state_dict_of_parallel_training_or_compilation_can_be_loaded(model, redraw):
    other = redraw(Model(model.config), seed=1)
    other.load_state_dict({f"module.{name}": tensor for name, tensor in published(model).items()})
    assert_equal_weights(model, other)


def test_files_open_from_any_working_directory(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert_equal_weights(model, Model.from_pretrained("model"))
    assert_equal_weights(model, Model.from_pretrained(Path("model")))


# --- weights without a configuration ------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["huggingface", "transformers"])
@pytest.mark.parametrize(
    "name", ["DeiTForMaskedImageModeling", "ViTForMaskedImageModeling", "DeiTForImageClassification", "DeiTModel"]
)
def test_a_weight_file_alone_tells_its_class_and_its_sizes(name, dialect, tiny_fields, redraw, tmp_path):
    kind = getattr(deit, name)
    config = kind.config_class(**{**tiny_fields, "hidden_size": 64, "num_attention_heads": 1, "layer_norm_eps": 1e-6})
    model = redraw(kind(config)).eval()
    save_file(published_tensors(model.state_dict(), dialect), tmp_path / "weights.safetensors")
    again = kind.from_pretrained(tmp_path / "weights.safetensors")
    assert again.config.architectures == [name]
    assert_equal_weights(model, again)


def test_a_network_is_read_whole_and_joined_under_the_names_of_the_trunk(model):
    tensors = read_network(DictSource(published_tensors(model.state_dict())))
    expected = {name.removeprefix("deit.trunk."): tensor for name, tensor in model.state_dict().items()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)

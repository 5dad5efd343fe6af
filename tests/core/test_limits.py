"""Files that would fill the memory or the time: refused by what they say, before anything of that size is made."""

from __future__ import annotations

import json
import struct
import tracemalloc

import pytest
from safetensors.numpy import load_file, save_file

import deit
from deit.core.config.config import DeiTConfig
from deit.core.config.config_file import read_config
from deit.core.errors import DamagedFileError, read_json, shown
from deit.core.weights.files import find_weights, read_header, read_index

CLAIMS = {
    "num_labels": 100_000_000,
    "num_hidden_layers": 200_000,
    "hidden_size": 10**9,
    "intermediate_size": 10**12,
    "image_size": 10**6,
    "num_channels": 10**6,
    "patch_size": 10**6,
    "num_attention_heads": 10**9,
    "encoder_stride": 10**9,
}


@pytest.mark.parametrize("field", CLAIMS)
def test_a_size_beyond_any_model_is_refused_without_being_made(tiny_fields, field):
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"{field} must be at most"):
        DeiTConfig(**{**tiny_fields, field: CLAIMS[field]})
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_too_many_patches_are_refused_by_a_model(tiny_fields):
    config = DeiTConfig(**{**tiny_fields, "image_size": 16_000, "patch_size": 4})
    with pytest.raises(ValueError, match="more than 262144 patches"):
        deit.DeiTModel(config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_setting_that_is_no_number_is_refused(tiny_fields, value):
    with pytest.raises(ValueError, match="layer_norm_eps must be at least"):
        DeiTConfig(**{**tiny_fields, "layer_norm_eps": value})


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 1000, "intermediate_size": 65_536},
        {"hidden_size": 32_768, "pooler_output_size": 32_768},
        {"id2label": {str(i): str(i) for i in range(2)}, "num_labels": 100_000, "hidden_size": 1024},
        {"image_size": 2048, "hidden_size": 4096},
        {"num_channels": 60_000, "hidden_size": 512},
    ],
    ids=str,
)
def test_a_configuration_that_asks_for_more_than_its_weights_is_refused(tiny_config, redraw, tmp_path, change):
    pytest.importorskip("torch")
    model = redraw(deit.DeiTForImageClassificationWithTeacher(tiny_config()))
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values.pop("id2label"), values.pop("label2id")
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=r"describes .* numbers, but .*safetensors holds"):
        deit.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path)


def test_new_heads_may_be_larger_than_the_file(tiny_config, redraw, tmp_path):
    pytest.importorskip("torch")
    redraw(deit.DeiTForImageClassificationWithTeacher(tiny_config())).save_pretrained(tmp_path)
    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(
        tmp_path, num_labels=21_843, ignore_mismatched_sizes=True
    )
    assert model.config.num_labels == 21_843


def test_a_long_header_is_refused_before_it_is_read(tmp_path):
    text = b'{"__metadata__":{"a":"' + b"x" * 60_000_000 + b'"}}'
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    tracemalloc.start()
    with pytest.raises(ValueError, match="its header of 60000025 bytes is longer than"):
        read_header(tmp_path / "model.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [b"{" + b'"a":' * 0 + b'"a":' + b"[" * 100_000, b"", b"\xff\xfe", b"[]", b"nul", b'{"a": ' + b"9" * 5000 + b"}",
     b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}'],
    ids=lambda text: str(text[:12]),
)  # fmt: skip
def test_damaged_json_is_one_kind_of_error(tmp_path, text):
    file = tmp_path / "model.safetensors.index.json"
    file.write_bytes(text)
    with pytest.raises(DamagedFileError) as error:
        read_index(file)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_json_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedFileError, match="more than 16777216"):
        read_config(tmp_path)


def test_a_pipe_and_a_device_are_not_read(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "zero.json"):
        with pytest.raises(DamagedFileError, match="a pipe or a device"):
            read_json(tmp_path / name, "a configuration")
        with pytest.raises(DamagedFileError, match="a pipe or a device"):
            find_weights(tmp_path / name)


def test_a_message_holds_a_few_hundred_characters_of_its_input():
    nested: object = ["lol"] * 10
    for _ in range(30):
        nested = [nested] * 10
    assert len(shown(nested)) <= 300
    assert len(shown({str(i): "x" * 10**6 for i in range(1000)})) <= 300


def test_a_mapped_file_of_another_size_than_its_header_is_refused(tmp_path):
    import numpy as np

    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors")["a"].shape == (4,)
    with (tmp_path / "a.safetensors").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedFileError, match="should have"):
        read_header(tmp_path / "a.safetensors")

"""Weight files as training scripts leave them: any ending, any wrapping; the numbers are those that timm reads."""

from __future__ import annotations

import argparse
import datetime
import logging
import re
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict as timm_reads

import deit
from deit.models.weights.from_pretrained import FileOptions, open_checkpoint

Model = deit.DeiTForImageClassificationWithTeacher


@pytest.fixture
def model(tiny_config, redraw):
    return redraw(Model(tiny_config()))


@pytest.fixture
def tensors(model) -> dict[str, torch.Tensor]:
    """In timm's dialect."""
    return _in_timm(model)


def _in_timm(model):
    from deit.models.weights.loading import published_tensors

    return published_tensors(model.state_dict(), "timm")


def other(tensors, shift=1.0):
    return {name: tensor + shift for name, tensor in tensors.items()}


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def opened(path, config) -> dict[str, torch.Tensor]:
    return _in_timm(Model.from_pretrained(path, config=config))


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


ENDINGS = [
    "model_best.pth.tar",
    "last.ckpt",
    "weights.pkl",
    "A.PTH",
    "pytorch_model.BIN",
    "checkpoint",
    "a.weights",
    "b.safetensors",
]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ENDINGS)
def test_the_content_decides_and_not_the_ending(tmp_path, model, tensors, name, zipped):
    torch.save({"model": tensors}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert equal(opened(tmp_path / name, model.config), tensors)
    if not name.endswith(".safetensors"):
        assert equal(timm_reads(str(tmp_path / name)), tensors)


@pytest.mark.parametrize("name", [*ENDINGS, "c.pth", "d.bin"])
def test_safetensors_of_any_ending(tmp_path, model, tensors, name):
    save_file(tensors, tmp_path / name)
    assert equal(opened(tmp_path / name, model.config), tensors)


def test_a_pickle_named_safetensors_is_refused_where_only_safetensors_are_wanted(tmp_path, tensors):
    torch.save(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is a pickle, which use_safetensors=True refuses"):
        Model.from_pretrained(tmp_path / "model.safetensors", use_safetensors=True)


WRAPPED = {
    "DataParallel": lambda t: under("module.", t),
    "torch.compile": lambda t: under("_orig_mod.", t),
    "compiled, then parallel": lambda t: under("module._orig_mod.", t),
    "parallel, then compiled": lambda t: under("_orig_mod.module.", t),
    "twice": lambda t: under("module.module._orig_mod._orig_mod.", t),
    "Lightning": lambda t: {"state_dict": under("model.", t), "epoch": 3},
    "Lightning, compiled": lambda t: {"state_dict": under("net._orig_mod.", t), "epoch": 3},
    "each block compiled": lambda t: {n.replace("blocks.0.", "blocks.0._orig_mod."): v for n, v in t.items()},
    "with a loss": lambda t: {"state_dict": {**under("model.", t), "criterion.weight": torch.ones(3)}},
    "with a teacher inside": lambda t: {"state_dict": {**under("teacher.", other(t)), **under("student.", t)}},
    "with an average inside": lambda t: {"state_dict": {**under("ema.module.", other(t)), **under("model.", t)}},
    "an averaged model": lambda t: {"n_averaged": torch.tensor(7), **under("module.", t)},
    "heads beside the trunk": lambda t: {n if n.startswith("head") else f"backbone.{n}": v for n, v in t.items()},
    "dicts in dicts": lambda t: {"checkpoint": {"nets": {"model": under("module.", t)}}, "epoch": 1},
    "DeepSpeed": lambda t: {"module": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "a scalar beside tensors": lambda t: {**t, "epoch": 3, "best": 0.5, "scale": torch.tensor(2.0)},
    "an optimizer beside tensors": lambda t: {**t, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}, "lr": 0.1}},
    "counters as tensors": lambda t: {"epoch": torch.tensor(3), "rng_state": torch.ones(5), "model": t},
    "the paper's code": lambda t: {"model": t, "model_ema": other(t), "args": argparse.Namespace(lr=1), "epoch": 1},
    "timm": lambda t: {"state_dict": other(t), "state_dict_ema": t, "arch": "deit", "metric": np.float64(3)},
    "EMA alone, of timm": lambda t: {"state_dict_ema": t, "epoch": 1},
    "EMA alone, of the paper's code": lambda t: {"model_ema": under("module.", t)},
    "what scripts note": lambda t: {
        "state_dict": OrderedDict(t), "date": datetime.datetime(2020, 1, 1), "path": Path("x"), "scores": np.ones(3),
        "counts": defaultdict(list, a=[1]), "hyper_parameters": {"optimizer": {"lr": 1}},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_scripts_wrap_around_weights_is_taken_off(tmp_path, model, tensors, kind, zipped):
    torch.save(WRAPPED[kind](tensors), tmp_path / "a.pth.tar", _use_new_zipfile_serialization=zipped)
    assert equal(opened(tmp_path / "a.pth.tar", model.config), tensors)


@pytest.mark.parametrize("kind", ["DataParallel", "compiled, then parallel", "an averaged model"])
def test_wrapped_safetensors(tmp_path, model, tensors, kind):
    save_file(WRAPPED[kind](tensors), tmp_path / "a.safetensors")
    assert equal(opened(tmp_path / "a.safetensors", model.config), tensors)


@pytest.mark.parametrize("kind", ["DataParallel", "Lightning", "timm", "an averaged model", "with a teacher inside"])
def test_the_architecture_is_read_off_wrapped_names(tmp_path, redraw, kind):
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 64}
    model = redraw(Model(deit.DeiTConfig(**sizes, image_size=32, layer_norm_eps=1e-6)))
    tensors = _in_timm(model)
    torch.save(WRAPPED[kind](tensors), tmp_path / "a.ckpt")
    found = Model.from_pretrained(tmp_path / "a.ckpt")
    assert found.config.num_hidden_layers == 2
    assert equal(_in_timm(found), tensors)


@pytest.mark.parametrize("dialect", ["huggingface", "transformers", "deit"])
@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.module.", "net."])
def test_every_dialect_may_be_wrapped(tmp_path, model, dialect, prefix):
    from deit.models.weights.loading import published_tensors

    state = model.state_dict() if dialect == "deit" else published_tensors(model.state_dict(), dialect)
    torch.save({"state_dict": under(prefix, state)}, tmp_path / "a.ckpt")
    assert equal(opened(tmp_path / "a.ckpt", model.config), _in_timm(model))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("timm", r"Reads the EMA weights of .*a\.pth, under 'state_dict_ema'\. Not used: 'state_dict'"),
        ("the paper's code", r"Reads the weights of .*a\.pth, under 'model'\. Not used: 'model_ema'"),
        ("EMA alone, of timm", "Reads the EMA weights"),
        ("EMA alone, of the paper's code", "Reads the EMA weights"),
        ("Lightning", r"whose names begin with 'model\.'"),
        ("a scalar beside tensors", "Beside the weights and not used: 'epoch', 'best'"),
        ("dicts in dicts", "under 'checkpoint.nets.model'"),
    ],
)
def test_one_line_says_what_was_taken(tmp_path, tensors, caplog, kind, said):
    torch.save(WRAPPED[kind](tensors), tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        open_checkpoint(tmp_path / "a.pth", FileOptions())
    assert len(caplog.messages) == 1
    assert re.search(said, caplog.messages[0])


def test_a_published_file_is_read_without_a_word(tmp_path, tensors, caplog):
    torch.save({"model": tensors}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        open_checkpoint(tmp_path / "a.pth", FileOptions())
    assert not caplog.messages


def test_a_whole_module_is_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds more than tensors: .*torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "a.pth", FileOptions())


def test_several_networks_of_equal_rank_are_refused_by_name(tmp_path, tensors):
    torch.save({"one": tensors, "two": other(tensors)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds several networks: 'one', 'two'"):
        open_checkpoint(tmp_path / "a.pth", FileOptions())


FORMATS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x1f\x8b\x08": "a gzip archive",
    b"<!DOCTYPE html>": "a page of HTML",
    b"version https://git-lfs.github.com/spec/v1": "a pointer of Git LFS",
    b"GGUF": "a GGUF file",
}


@pytest.mark.parametrize("start", FORMATS, ids=FORMATS.get)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_of_another_format_is_called_by_its_name(tmp_path, start, name):
    (tmp_path / name).write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=FORMATS[start]):
        open_checkpoint(tmp_path / name, FileOptions())


def test_an_archive_of_numpy_is_called_by_its_name(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="a NumPy archive"):
        open_checkpoint(tmp_path / "a.npz", FileOptions())

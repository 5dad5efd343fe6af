"""Opening model directories of this package and of timm: the right logits, and plain words when a file is bad."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import deit
from deit.core.errors import UserError
from deit.inference.contract import Contract
from deit.inference.engines.opening import open_engine
from deit.inference.engines.torch_engine import TorchEngine, open_torch_engine
from tests.inference.conftest import NAMES, PROCESSOR

PIXELS = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)


def test_a_student_with_two_heads_answers_with_their_mean_and_shows_each(deit_directory):
    folder = deit_directory()
    engine = open_torch_engine(folder)
    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    with torch.no_grad():
        output = model(torch.from_numpy(PIXELS))
    heads = engine(PIXELS)
    assert list(heads) == ["both", "class", "distillation"]
    np.testing.assert_allclose(heads["class"], output.cls_logits.numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(heads["distillation"], output.distillation_logits.numpy(), atol=1e-5, rtol=1e-5)
    assert np.allclose(heads["both"], (heads["class"] + heads["distillation"]) / 2, atol=1e-6)
    assert not np.allclose(heads["class"], heads["distillation"], atol=0.1)
    assert engine.contract.head_names == tuple(heads)
    assert engine.contract.image_size == PIXELS.shape[2:]
    assert engine.contract.label_names == NAMES


def test_a_student_with_one_head_answers_with_it(deit_directory):
    folder = deit_directory("DeiTForImageClassification")
    engine = open_torch_engine(folder)
    model = deit.DeiTForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS)).logits.numpy()
    assert list(engine(PIXELS)) == ["class"]
    np.testing.assert_allclose(engine(PIXELS)["class"], expected, atol=1e-5, rtol=1e-5)
    assert engine.contract.label_names == NAMES


def test_a_timm_model_answers_with_its_logits_and_its_label_names(timm_directory):
    folder = timm_directory(label_names=NAMES)
    engine = open_torch_engine(folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS)).numpy()
    assert list(engine(PIXELS)) == ["class"]
    assert np.array_equal(engine(PIXELS)["class"], expected)
    assert engine.contract.label_names == NAMES


def test_a_timm_model_without_label_names_numbers_its_classes(timm_directory):
    folder = timm_directory()
    assert open_torch_engine(folder).contract.label_names == ["0", "1", "2", "3", "4"]
    values = json.loads((folder / "config.json").read_text())
    del values["num_classes"]  # it stands in model_args as well
    (folder / "config.json").write_text(json.dumps(values))
    assert open_torch_engine(folder).contract.label_names == ["0", "1", "2", "3", "4"]


def test_an_engine_puts_the_model_in_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 2)).train()
    engine = TorchEngine(model, Contract(processor=PROCESSOR, label_names=["a", "b"]))
    assert not model.training
    assert np.array_equal(engine(PIXELS)["class"], engine(PIXELS)["class"])


def test_logits_do_not_depend_on_the_other_images_of_the_batch(deit_directory):
    engine = open_torch_engine(deit_directory())
    alone = np.concatenate([engine(PIXELS[i : i + 1])["both"] for i in range(3)])
    assert np.allclose(engine(PIXELS)["both"], alone, atol=1e-5)


def test_a_file_that_is_no_exported_model_is_refused(deit_directory):
    folder = deit_directory()
    with pytest.raises(
        UserError,
        match=r"model\.safetensors cannot be opened as a model\. Pass one of: a model directory, \*\.xml, \*\.onnx",
    ):
        open_engine(folder / "model.safetensors")
    assert isinstance(open_engine(folder), TorchEngine)


# --- what is refused ----------------------------------------------------------------------------------


def shorten(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused_by_name(deit_directory, share):
    folder = deit_directory()
    shorten(folder / "model.safetensors", share)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors .* It may be truncated"):
        open_torch_engine(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_of_timm_are_refused_by_name(timm_directory, share):
    folder = timm_directory()
    shorten(folder / "model.safetensors", share)
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder))}.* cannot be read as safetensors"):
        open_torch_engine(folder)


def test_missing_weights_are_refused(deit_directory):
    folder = deit_directory()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in .*WithTeacher"):
        open_torch_engine(folder)


def test_missing_weights_of_timm_are_refused(timm_directory):
    folder = timm_directory()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in"):
        open_torch_engine(folder)


def test_weights_of_another_timm_architecture_are_refused(timm_directory):
    folder = timm_directory()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "architecture": "test_efficientnet"}))
    with pytest.raises(ValueError, match="timm cannot open"):
        open_torch_engine(folder)


def test_a_missing_folder_and_a_missing_configuration_are_refused(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"No config\.json at"):
            open_torch_engine(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json is damaged or is not"),
        ("[1]", "holds a list, not a JSON object"),
        ('{"model_type": "bert"}', "is of model type 'bert'. Needed: 'deit' or 'vit', or a timm model"),
        ("{}", "is of model type None"),
        ('{"model_type": "deit"}', "which is no image classifier"),
        ('{"model_type": "deit", "architectures": ["DeiTForMaskedImageModeling"]}', "which is no image classifier"),
    ],
)
def test_a_configuration_that_describes_no_classifier_is_refused(deit_directory, text, message):
    folder = deit_directory()
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_torch_engine(folder)


def test_weights_that_do_not_fit_the_configuration_are_refused(deit_directory):
    folder = deit_directory()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="lacks 16 tensors that DeiTForImageClassificationWithTeacher needs"):
        open_torch_engine(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_there_is_not_is_refused(deit_directory, device):
    message = (
        rf"(Unknown device '{device}'|The device '{device}' (cannot be used|was asked for).*)\. Pass (device=)?'cpu'"
    )
    with pytest.raises(ValueError, match=message):
        open_torch_engine(deit_directory(), device)


def test_features_are_what_the_class_head_of_a_model_is_given(deit_directory, timm_directory):
    pixels = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    for name in ("DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"):
        engine = open_engine(deit_directory(name))
        told = engine.with_features(pixels)
        head = getattr(engine.model, "cls_classifier", None) or engine.model.classifier
        with torch.no_grad():
            logits = head(torch.from_numpy(told["features"])).numpy()
        assert logits == pytest.approx(told["class"], abs=1e-5)
        assert set(told) == {*engine(pixels), "features"}
    engine = open_engine(timm_directory())
    with torch.inference_mode():
        features = engine.model.forward_head(engine.model.forward_features(torch.from_numpy(pixels)), pre_logits=True)
    assert engine.with_features(pixels)["features"] == pytest.approx(features.numpy(), abs=1e-6)

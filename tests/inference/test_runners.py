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
from deit.inference.runners import TorchRunner, open_runner
from tests.inference.conftest import NAMES

PIXELS = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)


def test_a_student_with_two_heads_answers_with_their_mean_and_shows_each(deit_directory):
    folder = deit_directory()
    runner = open_runner(folder)
    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    with torch.no_grad():
        output = model(torch.from_numpy(PIXELS))
    heads = runner.heads(PIXELS)
    assert list(heads) == ["both", "class", "distillation"]
    np.testing.assert_allclose(heads["class"], output.cls_logits.numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(heads["distillation"], output.distillation_logits.numpy(), atol=1e-5, rtol=1e-5)
    assert np.allclose(heads["both"], (heads["class"] + heads["distillation"]) / 2, atol=1e-6)
    assert not np.allclose(heads["class"], heads["distillation"], atol=0.1)
    assert np.array_equal(runner(PIXELS), heads["both"])
    assert runner.label_names == NAMES


def test_a_student_with_one_head_answers_with_it(deit_directory):
    folder = deit_directory("DeiTForImageClassification")
    runner = open_runner(folder)
    model = deit.DeiTForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS)).logits.numpy()
    assert list(runner.heads(PIXELS)) == ["class"]
    np.testing.assert_allclose(runner(PIXELS), expected, atol=1e-5, rtol=1e-5)
    assert runner.label_names == NAMES


def test_a_timm_model_answers_with_its_logits_and_its_label_names(timm_directory):
    folder = timm_directory(label_names=NAMES)
    runner = open_runner(folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS)).numpy()
    assert list(runner.heads(PIXELS)) == ["class"]
    assert np.array_equal(runner(PIXELS), expected)
    assert runner.label_names == NAMES


def test_a_timm_model_without_label_names_numbers_its_classes(timm_directory):
    folder = timm_directory()
    assert open_runner(folder).label_names == ["0", "1", "2", "3", "4"]
    values = json.loads((folder / "config.json").read_text())
    del values["num_classes"]  # it stands in model_args as well
    (folder / "config.json").write_text(json.dumps(values))
    assert open_runner(folder).label_names == ["0", "1", "2", "3", "4"]


def test_a_runner_puts_the_model_in_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 2)).train()
    runner = TorchRunner(model, ["a", "b"])
    assert not model.training
    assert np.array_equal(runner(PIXELS), runner(PIXELS))


def test_logits_do_not_depend_on_the_other_images_of_the_batch(deit_directory):
    runner = open_runner(deit_directory())
    alone = np.concatenate([runner(PIXELS[i : i + 1]) for i in range(3)])
    assert np.allclose(runner(PIXELS), alone, atol=1e-5)


# --- what is refused ----------------------------------------------------------------------------------


def shorten(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused_by_name(deit_directory, share):
    folder = deit_directory()
    shorten(folder / "model.safetensors", share)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors .* It may be truncated"):
        open_runner(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_of_timm_are_refused_by_name(timm_directory, share):
    folder = timm_directory()
    shorten(folder / "model.safetensors", share)
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder))}.* cannot be read as safetensors"):
        open_runner(folder)


def test_missing_weights_are_refused(deit_directory):
    folder = deit_directory()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in .*WithTeacher"):
        open_runner(folder)


def test_missing_weights_of_timm_are_refused(timm_directory):
    folder = timm_directory()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors in"):
        open_runner(folder)


def test_weights_of_another_timm_architecture_are_refused(timm_directory):
    folder = timm_directory()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "architecture": "test_efficientnet"}))
    with pytest.raises(ValueError, match="timm cannot open"):
        open_runner(folder)


def test_a_missing_folder_and_a_missing_configuration_are_refused(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"No config\.json at"):
            open_runner(folder)


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
        open_runner(folder)


def test_weights_that_do_not_fit_the_configuration_are_refused(deit_directory):
    folder = deit_directory()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="lacks 16 tensors that DeiTForImageClassificationWithTeacher needs"):
        open_runner(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_there_is_not_is_refused(deit_directory, device):
    with pytest.raises(
        ValueError, match=rf"The device '{device}' (cannot be used|was asked for).*\. Pass device='cpu'"
    ):
        open_runner(deit_directory(), device)

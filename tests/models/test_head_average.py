"""Two heads together: the mean of logits (the paper's code) or of probabilities (its text), computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import deit
from deit.cli.app import app
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.inference.engines.opening import open_engine
from deit.inference.predictor import Predictor


@pytest.fixture
def folder(tiny_config, redraw, tmp_path):
    model = redraw(deit.DeiTForImageClassificationWithTeacher(tiny_config()), std=0.5)
    model.save_pretrained(tmp_path / "model")
    DeiTImageProcessor(size=16, crop_size=16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


PIXELS = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)


def test_probabilities_are_averaged_as_the_paper_says(folder):
    heads = open_engine(folder, head_average="probabilities")(PIXELS)
    expected = (softmax(heads["class"]) + softmax(heads["distillation"])) / 2
    np.testing.assert_allclose(softmax(heads["both"]), expected, atol=1e-6)
    logits = open_engine(folder, head_average="logits")(PIXELS)["both"]
    np.testing.assert_allclose(logits, (heads["class"] + heads["distillation"]) / 2, atol=1e-6)
    assert np.abs(softmax(logits) - expected).max() > 1e-3  # they are not the same


def test_logits_are_averaged_when_nothing_is_said(folder):
    logits = open_engine(folder, head_average="logits")(PIXELS)["both"]
    np.testing.assert_array_equal(open_engine(folder)(PIXELS)["both"], logits)


def test_several_labels_average_the_sigmoid(folder):
    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(
        folder, head_average="probabilities", problem_type="multi_label_classification"
    )
    with torch.no_grad():
        output = model(torch.from_numpy(PIXELS))
    expected = (sigmoid(output.cls_logits.numpy()) + sigmoid(output.distillation_logits.numpy())) / 2
    np.testing.assert_allclose(sigmoid(output.logits.numpy()), expected, atol=1e-6)


def test_the_choice_is_kept_with_the_model(folder, tmp_path):
    model = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder, head_average="probabilities")
    model.save_pretrained(folder)
    wanted = open_engine(folder, head_average="probabilities")(PIXELS)["both"]
    np.testing.assert_array_equal(open_engine(folder)(PIXELS)["both"], wanted)
    pipe = deit.pipeline("image-classification", str(folder))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8))
    named = {entry["label"]: entry["score"] for entry in pipe(image)}
    told = {entry.label: entry.score for entry in Predictor.open(folder).classify([image])[0]}
    assert named == pytest.approx(told, abs=1e-6)


def test_the_command_takes_it_by_name(folder, tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    for average in ("logits", "probabilities"):
        result = CliRunner().invoke(
            app, ["classify", str(folder), str(tmp_path / "a.png"), "--average", average, "--json"]
        )
        assert result.exit_code == 0
        told = Predictor.open(folder, head_average=average).classify([Image.new("RGB", (16, 16), "red")])
        assert json.loads(result.output)[0]["predictions"][0]["score"] == pytest.approx(told[0][0].score, abs=1e-5)
    result = CliRunner().invoke(app, ["classify", str(folder), str(tmp_path / "a.png"), "--average", "mean"])
    assert result.exit_code == 2
    assert "head_average must be one of 'logits', 'probabilities'" in " ".join(result.output.split())


def test_one_head_has_no_average(tiny_vit_config, redraw, tmp_path):
    redraw(deit.ViTForImageClassification(tiny_vit_config())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model with one head"):
        open_engine(tmp_path, head_average="logits")


def test_large_logits_do_not_overflow():
    from deit.models.deit import average_heads

    config = deit.DeiTConfig(num_labels=2, head_average="probabilities")
    together = average_heads(torch.tensor([[1e4, 0.0]]), torch.tensor([[-1e4, 0.0]]), config)
    assert torch.allclose(together.softmax(1), torch.tensor([[0.5, 0.5]]))

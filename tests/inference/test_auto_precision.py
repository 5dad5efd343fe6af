"""precision="auto" of an engine and of the command: the measurement of inference decides."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deit.inference.predictor import Predictor
from deit.runtime import auto_precision, precision_speed
from tests.cli.conftest import succeeds
from tests.train import tiny


@pytest.fixture
def model(tmp_path):
    tiny.student().save_pretrained(tmp_path / "model")
    tiny.processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("speedup", "expected"), [(2.9, "bf16"), (0.1, "fp32")])
def test_auto_asks_the_measurement_of_inference(monkeypatch, tmp_path, model, speedup, expected):
    asked: list[bool] = []
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEIT_AUTO_PRECISION", raising=False)
    monkeypatch.setattr(auto_precision, "_measured", {})
    monkeypatch.setattr(precision_speed, "measure_speedup", lambda *, trains: asked.append(trains) or speedup)
    auto = Predictor.open(model, precision="auto")
    assert auto.engine.precision == expected
    assert asked == [False]
    assert Predictor.open(model).engine.precision == "fp32"  # the default measures nothing
    pixels = np.random.default_rng(0).normal(size=(2, 3, tiny.SIDE, tiny.SIDE)).astype(np.float32)
    named = Predictor.open(model, precision=expected)
    for head, logits in auto.engine(pixels).items():
        np.testing.assert_array_equal(logits, named.engine(pixels)[head])


def test_evaluate_takes_auto(monkeypatch, tmp_path, model):
    from PIL import Image

    monkeypatch.setenv("DEIT_AUTO_PRECISION", "bf16")
    for name in ("LABEL_0", "LABEL_1"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (20, 24), (60, 0, 0)).save(tmp_path / "photos" / name / "a.png")
    found = {}
    for precision in ("auto", "bf16", "fp32"):
        command = ["evaluate", str(model), str(tmp_path / "photos"), "--json", "--precision", precision]
        found[precision] = json.loads(succeeds(*command, "--device", "cpu").stdout)
    auto, bf16, fp32 = (found[name]["heads"] for name in found)
    assert auto == bf16 != fp32

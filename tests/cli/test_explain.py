"""`deit explain`: the files that it writes, what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import deit as package
from deit.cli.app import app
from deit.core.images.reading import load_image
from deit.explain.maps import DEFAULT_METHOD, METHODS
from deit.explain.score import RANDOM_ORDERS
from deit.models.deit import DeiTForImageClassificationWithTeacher
from tests.cli.conftest import deit, is_refused, succeeds


@pytest.fixture
def model(tiny_config: Any, redraw: Any, tmp_path: Path) -> Path:
    """A model directory with random weights and the classes of `names`."""
    names = ["cat", "dog", "a <b> owl", "3", "elk"]
    config = tiny_config(id2label=dict(enumerate(names)))
    folder = tmp_path / "model"
    redraw(DeiTForImageClassificationWithTeacher(config)).save_pretrained(folder)
    package.DeiTImageProcessor(size={"shortest_edge": 20}, crop_size=16).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"p{number}.png")
    return folder


def test_pictures_arrays_json_and_a_page_are_written(model, images, tmp_path):
    out = tmp_path / "out"
    result = succeeds("explain", model, images, "--out", out)
    assert "Explanations of 2 images" in result.output
    names = {file.name for file in out.iterdir()}
    heads = ("both", "class", "distillation")
    each = {f"{stem}.{rest}" for stem in ("0001-p0", "0002-p1") for rest in (
        "npy", "json", *(f"{head}.png" for head in heads), *(f"{head}.seen.png" for head in heads))}  # fmt: skip
    assert names == each | {"index.html", "contact-sheet.png"}
    array = np.load(out / "0001-p0.npy")
    assert (array.shape, array.dtype) == ((3, 3, 4, 4), np.float32)  # heads, 2 blocks and the whole, rows, columns
    told = json.loads((out / "0001-p0.json").read_text())
    assert list(told["heads"]) == list(heads)
    assert told["heads"]["both"]["score"]["verdict"] in ("better", "no better", "worse", "unknown")
    assert np.shape(told["heads"]["both"]["values"]) == (4, 4)
    assert load_image(out / "0001-p0.both.png").size == (40, 30)
    assert load_image(out / "0001-p0.both.seen.png").size == (16, 16)
    page = (out / "index.html").read_text()
    assert all(name in page for name in each)
    assert "http" not in page.replace("https://arxiv", "")
    assert load_image(out / "contact-sheet.png").width == 8 + 4 * 200


def test_the_probability_and_class_are_those_of_classify(model, images, tmp_path):
    told = json.loads(succeeds("explain", model, images / "p0.png", "--out", tmp_path / "out", "--json").stdout)
    answer = json.loads(succeeds("classify", model, images / "p0.png", "--json", "--engine", "torch").stdout)
    (first, *_) = answer[0]["predictions"]
    assert told[0]["label"] == first["label"]
    assert told[0]["heads"]["both"]["probability"] == pytest.approx(first["score"], abs=1e-5)


@pytest.mark.parametrize("method", ["relevance", "legrad", "attnlrp", "rollout"])
def test_every_method_target_and_head(method, model, images, tmp_path):
    options = ("--method", method, "--target", "a <b> owl", "--head", "class", "--random-orders", 0, "--json")
    told = json.loads(succeeds("explain", model, images, "--out", tmp_path / "out", *options).stdout)
    assert {(each["method"], each["label"], *each["heads"]) for each in told} == {(method, "a <b> owl", "class")}
    assert told[0]["heads"]["class"]["score"] is None
    assert "a &lt;b&gt; owl" in (tmp_path / "out" / "index.html").read_text()


def test_broken_files_are_left_out_and_counted(model, images, tmp_path):
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    result = deit("explain", model, images, "--out", tmp_path / "out", "--random-orders", 0)
    assert result.exit_code == 3
    assert "broken.png" in result.stderr
    assert "Explanations of 2 images" in result.output
    strict = deit("explain", model, images, "--out", tmp_path / "out", "--random-orders", 0, "--strict")
    is_refused(strict, "broken.png")


def test_one_image_of_standard_input(model, images, tmp_path):
    data = (images / "p0.png").read_bytes()
    succeeds("explain", model, "-", "--out", tmp_path / "out", "--random-orders", 0, input=data)
    assert (tmp_path / "out" / "0001-standard-input.json").exists()


def test_a_model_that_merges_tokens_is_explained_and_that_is_said(model, images, tmp_path):
    package.merge_tokens(package.DeiTForImageClassificationWithTeacher.from_pretrained(model), 3).save_pretrained(model)
    result = succeeds("explain", model, images, "--out", tmp_path / "out", "--random-orders", 0)
    assert "without merging" in result.stderr
    assert "without merging" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "gradcam"), "Unknown method 'gradcam'. Known: relevance"),
        (("--target", "unicorn"), "no class 'unicorn'"),
        (("--target", "5"), "has 5 classes"),
        (("--head", "third"), "has the heads both, class, distillation"),
        (("--random-orders", "3"), "--random-orders must be 0, for no score, or 9 to 1000"),
        (("--out", "{images}/p0.png"), "is a file"),
    ],
)
def test_mistakes_are_one_line(options, words, model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = deit("explain", model, images, *(str(option).format(images=images) for option in options))
    is_refused(result, words)
    assert not any(tmp_path.rglob("index.html"))


def test_a_class_that_is_called_by_a_number_is_found_by_its_name(model, images, tmp_path):
    options = ("--target", "3", "--random-orders", 0, "--json", "--out", tmp_path / "out")
    assert json.loads(succeeds("explain", model, images, *options).stdout)[0]["target"] == 3


def test_the_defaults_of_the_command_are_those_of_python():
    """They are written twice, so that help needs no PyTorch."""
    parameters = {p.name: p.default for p in typer.main.get_command(app).commands["explain"].params}  # type: ignore[attr-defined]
    assert (parameters["method"], parameters["random_orders"]) == (DEFAULT_METHOD, RANDOM_ORDERS)
    for method in METHODS:
        assert method in succeeds("explain", "--help").output

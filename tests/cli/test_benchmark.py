"""`deit benchmark`: its table, its files, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

import deit as package
from tests.cli.conftest import deit, is_refused, succeeds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = package.DeiTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4
    )
    package.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    package.DeiTImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder)
    return folder


def test_it_prints_a_table_and_writes_figures_and_a_chart(tiny, tmp_path):
    out = tmp_path / "figures"
    options = ("--engines", "torch", "--precisions", "fp32", "--batch-sizes", "2", "--seconds", 1, "--threads", 1)
    result = succeeds("benchmark", tiny, *options, "--out", out)
    for word in ("images/s", "p50 ms", "of matrix rate", "first answer s", "memory MB", "1 thread(s)", "torch 2."):
        assert word in result.stdout
    assert "the machine was" in result.stdout
    told = json.loads((out / "benchmark.json").read_text())
    (cell,) = told["cells"]
    assert (cell["engine"], cell["precision"], cell["batch_size"]) == ("torch", "fp32", 2)
    assert cell["images_per_second"] > 1
    assert (out / "benchmark.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-sizes", "1,two"), "--batch-sizes must be numbers separated by commas"),
        (("--batch-sizes", "0"), "--batch-sizes must be numbers of at least 1"),
        (("--seconds", "0"), "--seconds must be a number above 0"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--engines", "tensorrt"), "Unknown engine 'tensorrt'. Known: torch,"),
        (("--precisions", "fp7"), "Unknown precision 'fp7'"),
    ],
)
def test_wrong_options_are_refused_at_once(tiny, options, words):
    is_refused(deit("benchmark", tiny, *options), words)


def test_a_file_as_folder_of_results_is_refused_before_anything_is_measured(tiny, tmp_path):
    (tmp_path / "file").write_text("x")
    is_refused(deit("benchmark", tiny, "--out", tmp_path / "file"), "--out must be a folder")


def test_a_missing_model_is_refused(tmp_path):
    is_refused(deit("benchmark", tmp_path / "gone", "--seconds", 1), "gone")

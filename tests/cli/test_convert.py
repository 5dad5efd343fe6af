"""`deit convert`."""

from __future__ import annotations

import os
import re

import pytest
import torch
from safetensors.torch import load_file

import deit as package
from deit.models.weights.loading import published_tensors
from tests.cli.conftest import deit, is_refused, succeeds

TWO_HEADED = package.DeiTForImageClassificationWithTeacher


@pytest.fixture
def folder(tiny_config, redraw, tmp_path):
    redraw(TWO_HEADED(tiny_config(layer_norm_eps=1e-6))).eval().save_pretrained(tmp_path / "model")
    package.DeiTImageProcessor(size=20, crop_size=16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def difference_in(output: str) -> float:
    match = re.search(r"Largest difference on random pixels, opened with (timm|deit): (\S+)", output)
    assert match, output
    return float(match[2])


def test_a_model_is_converted_and_the_largest_difference_printed(folder, tmp_path):
    pytest.importorskip("timm")
    result = succeeds("convert", folder, tmp_path / "timm", "--to", "timm")
    assert difference_in(result.stdout) < 1e-5
    assert "from huggingface to timm" in result.stdout
    result = succeeds("convert", tmp_path / "timm", tmp_path / "a.pth", "--to", "original")
    assert "Preprocessing: not written, this dialect has no place for it" in result.stdout
    original = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    expected = published_tensors(TWO_HEADED.from_pretrained(folder).state_dict(), "original")
    assert set(original) == set(expected)
    assert all(torch.equal(original[name], tensor) for name, tensor in expected.items())


def test_going_round_gives_the_file_that_it_started_from(folder, tmp_path):
    succeeds("convert", folder, tmp_path / "timm", "--to", "timm")
    succeeds("convert", tmp_path / "timm", tmp_path / "again")
    first, second = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    processor = package.DeiTImageProcessor.from_pretrained(tmp_path / "again")
    assert (processor.size, processor.crop_size) == ({"height": 20, "width": 20}, {"height": 16, "width": 16})


def test_a_destination_that_exists_is_refused(folder, tmp_path):
    (tmp_path / "there").mkdir()
    is_refused(deit("convert", folder, tmp_path / "there"), "exists. Choose another name")


@pytest.mark.parametrize("to", ["keras", ""])
def test_an_unknown_dialect_is_refused(folder, tmp_path, to):
    is_refused(deit("convert", folder, tmp_path / "x", "--to", to), "Known: huggingface, timm, original")


def test_the_original_dialect_is_one_file(folder, tmp_path):
    is_refused(deit("convert", folder, tmp_path / "x", "--to", "original"), "ends in .pth")


@pytest.mark.parametrize("kind", ["DeiTForImageClassification", "DeiTForMaskedImageModeling", "DeiTModel"])
def test_what_timm_has_no_place_for_is_refused_and_nothing_is_left(kind, tiny_config, tmp_path):
    getattr(package, kind)(tiny_config()).save_pretrained(tmp_path / "model")
    is_refused(
        deit("convert", tmp_path / "model", tmp_path / "x", "--to", "timm"), "tensors that timm has no place for"
    )
    assert os.listdir(tmp_path) == ["model"]


def test_a_copy_that_answers_differently_is_refused_and_nothing_is_left(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("deit.models.conversion.published_tensors", lambda state, dialect: {
        name: tensor + 0.1 for name, tensor in published_tensors(state, dialect).items()
    })  # fmt: skip
    is_refused(deit("convert", folder, tmp_path / "x.pth", "--to", "original"), "The copy answers differently: by")
    assert os.listdir(tmp_path) == ["model"]


def test_a_missing_or_damaged_source_is_refused(folder, tmp_path):
    is_refused(deit("convert", tmp_path / "nowhere", tmp_path / "x"), "No model directory at")
    (folder / "model.safetensors").write_bytes(b"")
    is_refused(deit("convert", folder, tmp_path / "x"), "It may be truncated")


def test_the_preprocessing_of_a_published_architecture_is_the_papers(tmp_path, redraw):
    config = package.variant_config("deit-tiny-distilled-patch16-224", num_labels=3)
    model = redraw(TWO_HEADED(config), std=0.02).eval()
    torch.save({"model": published_tensors(model.state_dict(), "original")}, tmp_path / "a.pth")
    result = succeeds("convert", tmp_path / "a.pth", tmp_path / "hf")
    assert "Preprocessing: the paper's evaluation of deit-tiny-distilled-patch16-224." in result.stdout
    processor = package.DeiTImageProcessor.from_pretrained(tmp_path / "hf")
    assert (processor.size, processor.crop_size["height"]) == ({"shortest_edge": 256}, 224)
    assert TWO_HEADED.from_pretrained(tmp_path / "hf").config.layer_norm_eps == 1e-6
    wrong = deit("convert", tmp_path / "a.pth", tmp_path / "y", "--variant", "deit-small-distilled-patch16-224")
    is_refused(wrong, "another shape")


def test_a_copy_can_merge_tokens_and_stop_it_again(folder, tmp_path):
    result = succeeds("convert", folder, tmp_path / "merged", "--token-merging", "1")
    assert "merges up to 1 patch tokens in each block but the last" in result.stdout
    assert difference_in(result.stdout) == 0.0  # opened again it answers as the model that was written
    assert '"token_merging"' in (tmp_path / "merged" / "config.json").read_text()
    assert "1 patch" not in succeeds("convert", tmp_path / "merged", tmp_path / "copy").stdout
    assert '"token_merging"' in (tmp_path / "copy" / "config.json").read_text()
    succeeds("convert", tmp_path / "merged", tmp_path / "plain", "--token-merging", "0")
    assert (tmp_path / "plain" / "config.json").read_text() == (folder / "config.json").read_text()
    is_refused(
        deit("convert", tmp_path / "merged", tmp_path / "a.pth", "--to", "original"), "no place for token merging"
    )
    is_refused(deit("convert", folder, tmp_path / "wrong", "--token-merging", "-1"), "must lie between 0 and")
    assert not (tmp_path / "wrong").exists()

"""Weights and answers that are no numbers: an error or a mark wherever a model is used, never a score."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import deit
from deit.cli.app import app
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.inference.embedder import Embedder
from deit.inference.predictor import Predictor
from deit.models.weights.finiteness import refuse_non_finite
from deit.train.teachers.cache import BatchPlace, TeacherCache
from deit.train.teachers.records import HardRecords, SoftRecords
from deit.train.teachers.teacher import Teacher, TeacherEnsemble, open_teacher

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
NAMED = "deit.embeddings.cls_token"


@pytest.fixture(params=[float("nan"), float("inf"), -float("inf")], ids=str)
def damaged(request, tiny_config, redraw, tmp_path):
    """A model directory with one number that is none, with an image beside it."""
    config = tiny_config(id2label={0: "cat", 1: "dog"}, num_labels=2)
    folder = tmp_path / "model"
    redraw(deit.DeiTForImageClassificationWithTeacher(config)).save_pretrained(folder)
    DeiTImageProcessor(size=16, crop_size=16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[NAMED][0, 0, 3] = request.param
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (40 * i, 9, 200)).save(tmp_path / "data" / name / f"{i}.png")
    return folder


COMMANDS = {
    "classify": ["classify", "MODEL", "DATA/cat/0.png"],
    "classify --json": ["classify", "MODEL", "DATA/cat/0.png", "--json"],
    "evaluate": ["evaluate", "MODEL", "DATA"],
    "embed": ["embed", "MODEL", "DATA/cat", "--out", "OUT/features.parquet"],
    "train --init": ["train", "DATA", "--init", "MODEL", "--out", "OUT/run"],
    "train --teacher": ["train", "DATA", "--student", "deit-tiny-distilled-patch16-224", "--teacher", "MODEL", "--out",
                        "OUT/run"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_weights_that_are_no_numbers(damaged, tmp_path, command):
    places = {"MODEL": str(damaged), "DATA": str(tmp_path / "data"), "OUT": str(tmp_path)}
    arguments = ["/".join(places.get(part, part) for part in word.split("/")) for word in COMMANDS[command]]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "nan %" not in result.output
    assert "cls_token' are NaN or infinite" in " ".join(result.output.split())


def test_the_library_refuses_weights_that_are_no_numbers(damaged):
    for use in (Predictor.open, Embedder.open, open_teacher, deit.pipeline):
        arguments = ("image-classification", str(damaged)) if use is deit.pipeline else (damaged,)
        with pytest.raises(ValueError, match=r"of its tensor 'deit.*cls_token' are NaN or infinite"):
            use(*arguments)


def test_large_numbers_whose_sum_overflows_are_finite():
    refuse_non_finite([("a", torch.full((4,), 3e38)), ("b", torch.full((9,), 6e4, dtype=torch.float16))], "x")


def test_an_answer_that_is_no_number_is_marked(tmp_path):
    def runner(pixels):
        logits = np.tile(np.array([[1.0, 2.0]], np.float32), (len(pixels), 1))
        logits[pixels.mean((1, 2, 3)) > 0.5] = np.nan
        return logits

    predictor = Predictor(runner, DeiTImageProcessor(size=16, crop_size=16), ["cat", "dog"])
    black, white = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "white")
    first, second, third = predictor.classify_each([black, white, black])
    assert [p.label for p in first.predictions] == [p.label for p in third.predictions] == ["dog", "cat"]
    assert not second.predictions
    assert "answers with NaN or infinity" in second.error
    assert "NaN" not in json.dumps(first.to_dict())
    with pytest.raises(ValueError, match="answers with NaN or infinity"):
        predictor.classify([black, white])
    with pytest.raises(ValueError, match="answers with NaN or infinity"):
        list(predictor.classify_each([black, white], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("together", [False, True])
def test_a_teacher_whose_answer_is_no_number_is_refused(bad, together):
    teacher = Teacher(lambda pixels: torch.tensor([[0.0, 1.0], [bad, 1.0]]), name="broken")
    asked = TeacherEnsemble([Teacher(lambda pixels: torch.zeros(2, 2)), teacher]) if together else teacher
    with pytest.raises(ValueError, match="The teacher broken answers 1 of 2 images with NaN or infinity"):
        asked(torch.zeros(2, 3, 8, 8), **HALF)


def test_a_teacher_with_weights_that_are_no_numbers_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3), torch.nn.BatchNorm1d(3))
    model[2].running_var[1] = float("nan")
    with pytest.raises(
        ValueError, match=r"The teacher x cannot be used: 1 of the 3 numbers of its tensor '2\.running_var'"
    ):
        Teacher(model, name="x")


@pytest.mark.parametrize("records", [HardRecords(3), SoftRecords(3, 3, 1.0), SoftRecords(3, 1, 1.0)])
def test_a_cache_records_no_answer_that_is_no_number(tmp_path, records):
    cache = TeacherCache(tmp_path / "cache", {"teacher": "a"}, records, batch_size=1)
    place = BatchPlace(step=0, part=0, checksums=(7,))
    with pytest.raises(ValueError, match="answers 1 of 1 images with NaN or infinity"):
        cache.write(place, torch.tensor([[0.0, float("nan"), 1.0]]))
    assert cache.read(place) is None


def test_answers_in_a_cache_that_are_none_are_refused():
    with pytest.raises(ValueError, match="class 9 of 3"):
        HardRecords(3).decode(HardRecords(10).encode(torch.eye(10)[9:]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        SoftRecords(2, 2, 1.0).decode(SoftRecords(2, 2, 1.0).encode(torch.tensor([[float("nan"), 1.0]])))

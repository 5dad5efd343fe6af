"""Predictor, pipeline, evaluation and both commands give one answer: that of transformers and of the formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import deit
from deit.cli.app import app
from deit.data.open_data import open_labelled
from deit.evaluate.evaluation import evaluate_model
from deit.inference.predictor import Predictor
from tests.inference.conftest import PROCESSOR

transformers = pytest.importorskip("transformers")

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ["ant", "bee", "cow"]
COUNT = 7
# What the labels of the images are, as a table writes them and as numbers.
CELLS = {
    SINGLE: [NAMES[i % 3] for i in range(COUNT)],
    MULTI: [";".join(NAMES[: i % 3 + 1]) for i in range(COUNT)],
    REGRESSION: [str(i / 4 - 1) for i in range(COUNT)],
}
TRUE = {
    SINGLE: np.arange(COUNT) % 3,
    MULTI: np.array([[k <= i % 3 for k in range(3)] for i in range(COUNT)], np.float64),
    REGRESSION: np.arange(COUNT) / 4 - 1,
}


def by_hand(kind: str, logits: np.ndarray) -> np.ndarray:
    if kind == SINGLE:
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return 1 / (1 + np.exp(-logits)) if kind == MULTI else logits


@pytest.fixture(params=[SINGLE, MULTI, REGRESSION])
def case(request, tmp_path: Path, tiny_config, redraw) -> tuple[str, Path, Path, list[str], np.ndarray]:
    """The problem type, a model, a table of labelled images, the files, and the scores (N, K) by the formula."""
    kind, names = request.param, ["age"] if request.param == REGRESSION else NAMES
    labels: dict[str, Any] = {"num_labels": len(names)}
    labels |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = redraw(deit.DeiTForImageClassification(tiny_config(**labels, problem_type=kind)), std=0.2)
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    random = np.random.default_rng(0)
    files = [str(tmp_path / f"{i}.png") for i in range(COUNT)]
    for file in files:
        Image.fromarray(random.integers(0, 256, (20 + COUNT, 24, 3), np.uint8)).save(file)
    rows = [f"{i}.png,{cell}" for i, cell in enumerate(CELLS[kind])]
    (tmp_path / "labels.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    theirs = transformers.DeiTForImageClassification.from_pretrained(tmp_path / "model").eval()
    pixels = PROCESSOR([Image.open(file) for file in files], return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = theirs(pixels).logits.double().numpy()
    return kind, tmp_path / "model", tmp_path / "labels.csv", files, by_hand(kind, logits)


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_answers(answers: Any, names: list[str], expected: np.ndarray) -> None:
    """Checks pairs of label and score, first the best, for each image."""
    for found, row in zip(answers, expected, strict=True):
        order = np.argsort(-row, kind="stable")
        assert [label for label, _ in found] == [names[i] for i in order]
        assert [score for _, score in found] == pytest.approx(row[order], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_files_have_one_answer_everywhere(case, batch_size):
    kind, model, _, files, expected = case
    names = ["age"] if kind == REGRESSION else NAMES
    predictor = Predictor.open(model)
    told = predictor.classify(files, batch_size=batch_size)
    assert_answers([[(p.label, p.score) for p in row] for row in told], names, expected)
    ours = deit.pipeline(model=model, device="cpu", use_fast=False)(files, batch_size=batch_size)
    processor = transformers.DeiTImageProcessorPil.from_pretrained(model)
    theirs = transformers.pipeline("image-classification", str(model), image_processor=processor, device="cpu")(files)
    for answers in (ours, theirs):
        assert_answers([[(e["label"], e["score"]) for e in row] for row in answers], names, expected)
    rows = run("classify", model, *files, "--batch-size", batch_size)
    assert [row["image"] for row in rows] == files
    assert_answers([[(p["label"], p["score"]) for p in row["predictions"]] for row in rows], names, expected)


def test_an_evaluation_scores_these_answers(case):
    kind, model, table, _, expected = case
    predictor = Predictor.open(model)
    names = predictor.engine.contract.label_names
    source = open_labelled(str(table), classes=names, problem_type=kind)
    true = TRUE[kind]
    for found in (
        evaluate_model(predictor, source).as_dict(),
        run("evaluate", model, table, "--label-column", "label"),
    ):
        head = found["heads"]["class"]
        assert (found["problem_type"], found["images"]) == (kind, COUNT)
        if kind == SINGLE:
            assert head["top1"] == pytest.approx(100 * (expected.argmax(1) == true).mean())
            assert head["loss"] == pytest.approx(-np.log(expected[range(COUNT), true]).mean(), abs=1e-5)
            for mistake in found["mistakes"]:
                assert mistake["size"] == pytest.approx(expected[mistake["index"]].max(), abs=1e-5)
        elif kind == MULTI:
            assert head["exact_match"] == pytest.approx(100 * ((expected > 0.5) == true).all(1).mean())
            loss = -np.where(true == 1, np.log(expected), np.log(1 - expected)).mean()
            assert head["loss"] == pytest.approx(loss, abs=1e-5)
        else:
            assert head["mean_absolute_error"] == pytest.approx(np.abs(expected[:, 0] - true).mean(), abs=1e-5)
            for mistake in found["mistakes"]:
                assert float(mistake["said"]) == pytest.approx(expected[mistake["index"], 0], rel=1e-3)


def test_a_row_shows_shares_in_percent_and_numbers_as_they_are(case):
    kind, model, _, files, expected = case
    result = CliRunner().invoke(app, ["classify", str(model), files[0], "--device", "cpu", "--top-k", "1"])
    best = expected[0].max()
    shown = f"age {best:.4g}" if kind == REGRESSION else f"{NAMES[expected[0].argmax()]} {100 * best:.1f} %"
    assert result.stdout == f"{files[0]}\t{shown}\n"

"""What a run with precision=auto computes in, what it records of that, and how it goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deit.core.errors import DamagedFileError
from deit.data.sources import ArraySource, Data, Subset
from deit.runtime import auto_precision, precision_speed
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Optimizer, Schedule
from deit.train.run.resumed import precision_of_run
from deit.train.tasks.classification import ClassificationTask
from tests.cli.conftest import succeeds
from tests.ranks import run_on_ranks
from tests.train import tiny

CPU = torch.device("cpu")
FAST, SLOW = 2.9, 0.1
MEASURED = "2.9 x as fast as fp32, measured in 0.0 s"


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Returns a function that turns this machine into another one, which measures the given speed."""

    def becomes(speedup: float) -> None:
        monkeypatch.setattr(precision_speed, "measure_speedup", lambda *, trains: speedup)
        monkeypatch.setattr(auto_precision, "_measured", {})
        monkeypatch.setenv("DEIT_CACHE", str(tmp_path / f"cache {speedup}"))
        monkeypatch.delenv("DEIT_AUTO_PRECISION", raising=False)

    becomes(FAST)
    return becomes


def task() -> ClassificationTask:
    return ClassificationTask(tiny.student(), tiny.processor())


def recipe(epochs: int = 1, **settings: Any) -> Recipe:
    return tiny.recipe(precision="auto", schedule=Schedule(epochs=epochs, warmup_epochs=0), **settings)


def train(out: Path, recipe: Recipe, *, resume: bool = False) -> None:
    fit(task(), tiny.data(), recipe, out=out, device="cpu", resume=resume)


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def newest_meta(out: Path) -> Path:
    return max((out / "state").glob("step-*")) / "meta.json"


def test_a_run_computes_in_what_was_measured_and_records_it_in_three_places(tmp_path, machine):
    train(tmp_path / "auto", recipe())
    train(tmp_path / "bf16", tiny.recipe(precision="bf16", schedule=recipe().schedule))
    assert weights(tmp_path / "auto") == weights(tmp_path / "bf16")
    found = {"precision": "bf16", "reason": MEASURED, "source": "measured", "speedup": 2.9, "seconds": 0.0}
    record = json.loads((tmp_path / "auto" / "training.json").read_text())
    assert record["precision"] == {"asked": "auto", **found}
    assert record["recipe"]["precision"] == "auto"
    assert json.loads(newest_meta(tmp_path / "auto").read_text())["precision"] == found
    first, second, *_ = (tmp_path / "auto" / "recipe.yaml").read_text().splitlines()
    assert first == f"# precision: auto stands for bf16 in this run ({MEASURED})."
    assert not second.startswith("#")
    assert Recipe.load(tmp_path / "auto" / "recipe.yaml").precision == "auto"
    asked = json.loads((tmp_path / "bf16" / "training.json").read_text())["precision"]
    assert asked == {"asked": "bf16", "precision": "bf16", "reason": "as requested", "source": "asked"}
    assert not (tmp_path / "bf16" / "recipe.yaml").read_text().startswith("#")
    machine(SLOW)
    train(tmp_path / "slow", recipe())
    assert json.loads((tmp_path / "slow" / "training.json").read_text())["precision"]["precision"] == "fp32"
    assert weights(tmp_path / "slow") != weights(tmp_path / "auto")


def test_a_run_goes_on_in_the_precision_it_began_with_on_a_machine_that_would_take_another(tmp_path, machine):
    train(tmp_path / "whole", recipe(2))
    train(tmp_path / "run", recipe(1))
    machine(SLOW)
    train(tmp_path / "run", recipe(2), resume=True)
    choice = precision_of_run(tmp_path / "run", recipe(2), CPU, resume=True)
    assert choice.describe() == f"Precision: bf16, with which the run began ({MEASURED})."
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["precision"]["precision"] == "bf16"
    assert record["precision"]["source"] == "run"
    assert (tmp_path / "run" / "recipe.yaml").read_text().startswith("# precision: auto stands for bf16 in this run")
    machine(FAST)
    train(tmp_path / "again", recipe(1))
    train(tmp_path / "again", recipe(2), resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "again")


@pytest.mark.parametrize(("features", "expected"), [((), "fp32"), (("avx512_bf16",), "fp32"), (("amx_bf16",), "bf16")])
def test_a_run_of_an_older_version_goes_on_by_the_rule_of_that_version(tmp_path, monkeypatch, features, expected):
    train(tmp_path / "run", recipe())
    meta = newest_meta(tmp_path / "run")
    meta.write_text(json.dumps({k: v for k, v in json.loads(meta.read_text()).items() if k != "precision"}))
    monkeypatch.setattr("deit.train.run.resumed.cpu_features", lambda: frozenset(features))
    choice = precision_of_run(tmp_path / "run", recipe(2), CPU, resume=True)
    assert (choice.precision, choice.source) == (expected, "run")
    assert precision_of_run(tmp_path / "run", recipe(2), torch.device("cuda"), resume=True).precision == "bf16"
    assert precision_of_run(tmp_path / "run", recipe(2), CPU, resume=False).source != "run"


@pytest.mark.parametrize("value", ["bf16", {"precision": "fp8"}, {"precision": ["bf16"]}, {}, None])
def test_a_state_that_names_no_precision_is_refused(tmp_path, value):
    train(tmp_path / "run", recipe())
    meta = newest_meta(tmp_path / "run")
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "precision": value}))
    with pytest.raises(DamagedFileError, match="names no precision"):
        precision_of_run(tmp_path / "run", recipe(2), CPU, resume=True)


def test_a_named_precision_is_taken_and_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(precision_speed, "measure_speedup", None)
    train(tmp_path / "run", tiny.recipe(schedule=Schedule(epochs=1, warmup_epochs=0)))


def test_all_processes_compute_in_what_the_first_one_found(tmp_path):
    ran = run_on_ranks("tests.train.precision_of_ranks", tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert found == ["torch.bfloat16", "torch.bfloat16"]
    assert json.loads((tmp_path / "run" / "training.json").read_text())["precision"]["speedup"] == 3.0


def test_the_command_says_it_in_one_line_before_the_first_step(tmp_path):
    for part, name in itertools.product(("train", "val"), ("dark", "light")):
        (tmp_path / "photos" / part / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (20, 24), (i, 0, 60 if name == "dark" else 200)).save(
                tmp_path / "photos" / part / name / f"{part}{i}.png"
            )
    command = ["train", tmp_path / "photos", "--out", tmp_path / "run", "--student", "deit-digits-distilled-patch8-32"]
    command += ["--epochs", "1", "--batch-size", "2", "--device", "cpu", "--set", "num_workers=0"]
    lines = succeeds(*map(str, command)).output.splitlines()
    (number,) = [n for n, line in enumerate(lines) if line.startswith("Precision:")]
    assert lines[number].startswith("Precision: bf16 (2.9 x as fast as fp32, measured in ")
    assert number < next(n for n, line in enumerate(lines) if line.startswith("epoch 1"))
    assert "Precision:" not in succeeds(*map(str, command), "--resume").output  # nothing is left to train


def test_bf16_learns_what_fp32_learns(tmp_path):
    """Handwritten digits of scikit-learn, 48 steps: the losses differ by less than 2 %, the scores by 5 points."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=3)
    source = ArraySource(images, digits.target)
    data = Data(train=Subset(source, np.arange(300)), val=Subset(source, np.arange(400, 500)))
    histories = {}
    for precision in ("fp32", "bf16"):
        settings = tiny.recipe(
            precision=precision, batch_size=50, augment=tiny.PLAIN, eval_epochs=2, label_smoothing=0.0,
            optimizer=Optimizer(lr=2e-2, reference_batch_size=0), schedule=Schedule(epochs=8, warmup_epochs=1),
        )  # fmt: skip
        student = tiny.student(10, patch_size=4, encoder_stride=4, initializer_range=0.2)
        task = ClassificationTask(student, tiny.processor())
        histories[precision] = fit(task, data, settings, out=tmp_path / precision, device="cpu").history
    losses = {name: [row["train_loss"] for row in rows] for name, rows in histories.items()}
    assert losses["fp32"][-1] < 0.75 * losses["fp32"][0]  # it learns
    assert losses["bf16"] != losses["fp32"]
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0.02)
    scores = {name: rows[-1]["val_top1"] for name, rows in histories.items()}
    assert scores["bf16"] == pytest.approx(scores["fp32"], abs=5)

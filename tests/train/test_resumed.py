"""Runs that go on with other settings: which may change, what was done stays, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deit.train.loop import fit
from deit.train.optimization import learning_rate
from deit.train.recipes.recipe import Recipe
from tests.train import tiny
from tests.train.test_loop import classification_task


def run(out: Path, recipe: Recipe, *, resume: bool = False) -> tuple[list[dict], list[tuple[float, float]]]:
    """Returns the rows of metrics, and loss and learning rate of each step that was done now."""
    steps: list[tuple[float, float]] = []
    result = fit(
        classification_task(), tiny.data(), recipe, out=out, device="cpu", resume=resume,
        on_step=lambda event: steps.append((event.loss, event.lr)),
    )  # fmt: skip
    return result.history, steps


def recipe(epochs: int, **fields: object) -> Recipe:
    settings = {"schedule.epochs": epochs, "schedule.warmup_epochs": 1, "batch_size": 4, **fields}
    return tiny.recipe().with_settings(settings)


def test_a_longer_run_keeps_what_was_done_and_follows_the_longer_schedule_from_there(tmp_path, caplog):
    before, _ = run(tmp_path / "run", recipe(2))
    caplog.clear()
    after, steps = run(tmp_path / "run", recipe(4), resume=True)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in after[:2]] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in before
    ]
    assert [row["epoch"] for row in after] == [1, 2, 3, 4]
    rates = [learning_rate(step, steps_per_epoch=3, recipe=recipe(4)) for step in range(6, 12)]
    assert [lr for _, lr in steps] == pytest.approx(rates)
    (note,) = [record.getMessage() for record in caplog.records if record.name == "deit.train.run.resumed"]
    end = learning_rate(6, steps_per_epoch=3, recipe=recipe(2))
    assert note.startswith("The run goes on to epoch 4 in place of 2. What was done stays; from step 6 on ")
    assert "whose warm-up of 1 stays as the run began with it." in note
    assert f"({rates[0]:.3g}, {end:.3g} before)" in note
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").schedule.epochs == 4
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["changed_settings"] == [{"after_step": 6, "settings": {"schedule.epochs": [2, 4]}}]


def test_an_epoch_after_the_old_end_has_the_losses_of_its_own_steps(tmp_path):
    """The old end was evaluated though it was no multiple of the epochs between evaluations."""
    run(tmp_path / "run", recipe(3, eval_epochs=2))
    rows, steps = run(tmp_path / "run", recipe(4, eval_epochs=2), resume=True)
    assert [row["epoch"] for row in rows] == [2, 3, 4]
    assert rows[-1]["train_loss"] == pytest.approx(sum(loss for loss, _ in steps) / len(steps), rel=1e-5)


def test_a_run_cannot_be_made_shorter_than_it_is(tmp_path):
    run(tmp_path / "run", recipe(3))
    with pytest.raises(
        ValueError, match=r"has done 9 steps of 3 an epoch, more than schedule\.epochs=2 has\. Pass 3 or"
    ):
        run(tmp_path / "run", recipe(2), resume=True)
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").schedule.epochs == 3


def test_workers_may_change_and_no_weight_does(tmp_path, caplog):
    run(tmp_path / "whole", recipe(2, num_workers=0))
    run(tmp_path / "run", recipe(2, num_workers=0))
    folder = tmp_path / "run" / "state"
    last = max(folder.glob("step-*"))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    run(tmp_path / "run", recipe(2, num_workers=1), resume=True)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all((first[name] == second[name]).all() for name in first)
    assert "The run goes on with num_workers=1, 0 before; no result follows from it." in caplog.text


def test_the_refusal_of_others_says_what_may_change(tmp_path):
    run(tmp_path / "run", recipe(1))
    with pytest.raises(
        ValueError, match=r"has other settings: seed \(0, now 3\)\. Resume it with the same ones\. What may change is"
    ):
        run(tmp_path / "run", recipe(2, seed=3), resume=True)

"""A planned training from the command and from Python: what it prints and writes, goes on from, and refuses."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import deit
from deit.cli.terminal import planned
from deit.planning import make_plan
from deit.planning.carry_out import read_plan
from deit.planning.facts import Speed
from deit.planning.look import look_for_weights
from deit.runtime.auto_precision import VARIABLE
from deit.train.recipes.recipe import Recipe
from tests.cli.conftest import deit as command, is_refused, succeeds
from tests.data.pictures import fill, picture
from tests.planning.conftest import STUDENT, TEACHER

pytestmark = pytest.mark.usefixtures("small")
MINUTES = ("--minutes", 1.1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ with 8 and val/ with 4 images of each of three colours."""
    fill(tmp_path / "photos" / "train", 8)
    fill(tmp_path / "photos" / "val", 4, seed=100)
    return tmp_path / "photos"


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_planned_training_says_what_and_why_and_its_recipe_repeats_it(photos, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "fp32")  # else a CPU may measure that bf16 is faster
    out = tmp_path / "run"
    printed = " ".join(succeeds("train", photos, "--out", out, *MINUTES).output.split())
    assert "Plan for 1.1 min:" in printed
    assert f"Student: {STUDENT} at 32 pixels, which starts from random weights." in printed
    assert f"Teacher: {TEACHER} at 32 pixels, trained first for 3 epochs (light views)." in printed
    assert "Forecast: 1 min (teacher 30 s, student 30 s, planning " in printed
    assert "Training the teacher: 3 epochs" in printed
    assert "Training the student: 3 epochs" in printed
    assert "the forecast was 1 min." in printed
    record = json.loads((out / "plan.json").read_text())
    assert record["taken"].keys() == {"teacher", "student", "seconds"}
    assert record["forecast"]["seconds"] == pytest.approx(60, abs=6)
    recipe = Recipe.load(out / "recipe.yaml")
    assert recipe.teacher == (str(out / "teacher"),)
    assert recipe.precision == "fp32"
    assert Recipe.load(out / "teacher" / "recipe.yaml").student == TEACHER
    again = succeeds("train", photos, "--recipe", out / "recipe.yaml", "--out", tmp_path / "again").output
    assert "Plan for" not in again
    assert same_weights(out, tmp_path / "again")


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_a_planned_training_goes_on_with_the_part_that_was_stopped(photos, tmp_path, monkeypatch, caplog, part):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    succeeds("train", photos, "--out", whole, *MINUTES)
    run_fit = planned.run_fit

    def fails(task: Any, images: Any, recipe: Recipe, *args: Any, **options: Any) -> Any:
        def at_second_epoch(event: Any) -> None:
            if event.epoch == 2:
                raise OSError("The disk is gone.")

        if recipe.student == (TEACHER if part == "teacher" else STUDENT):
            options["watch"] = at_second_epoch
        return run_fit(task, images, recipe, *args, **options)

    monkeypatch.setattr(planned, "run_fit", fails)
    assert "The disk is gone." in command("train", photos, "--out", stopped, *MINUTES).stderr
    monkeypatch.setattr(planned, "run_fit", run_fit)
    is_refused(command("train", photos, "--out", stopped, *MINUTES), "holds a run already", "--resume")
    monkeypatch.setattr(make_plan, "measure", None)  # nothing is measured again
    printed = succeeds("train", photos, "--out", stopped, *MINUTES, "--resume").output
    assert ("Training the teacher" in printed) == (part == "teacher")
    assert same_weights(whole / "teacher", stopped / "teacher")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    succeeds("train", photos, "--out", stopped, "--resume")
    assert "has done all of its 3 epochs" in caplog.text


def test_the_plan_alone_trains_and_writes_nothing(photos, tmp_path):
    printed = succeeds("train", photos, "--out", tmp_path / "run", *MINUTES, "--plan").output
    assert "Forecast: " in printed
    assert "Training" not in printed.replace("Training images", "")
    assert not (tmp_path / "run").exists()
    named = succeeds(
        "train", photos, "--out", tmp_path / "run", "--student", STUDENT, "--epochs", 2, "--batch-size", 8, "--plan"
    ).output  # a plan of a recipe: its forecast
    assert "Forecast: " in named
    assert not (tmp_path / "run").exists()


def test_python_plans_and_trains_and_keeps_what_is_set(photos, tmp_path):
    data = deit.open_data(photos)
    plan = deit.plan(data, {"seed": 3, "teacher": (), "batch_size": 12}, minutes=0.6)
    assert plan.teacher_recipe is None
    assert (plan.recipe.seed, plan.recipe.batch_size) == (3, 12)
    epochs = []
    result = deit.fit_plan(plan, data, out=tmp_path / "run", on_epoch=epochs.append)
    assert len(epochs) == len(result.history) > 0
    assert read_plan(tmp_path / "run") == plan
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_convnet_teaches_a_start_for_thumbnails(photos, tmp_path):
    start, run = tmp_path / "start", tmp_path / "run"
    succeeds("train", photos, "--out", start, "--student", STUDENT, "--epochs", 1, "--batch-size", 8)
    printed = " ".join(succeeds("train", photos, "--out", run, "--init", start, *MINUTES).output.split())
    assert f"Student: that of the weights, which starts from {start}." in printed
    assert f"Teacher: {TEACHER} at 32 pixels, trained first for 3 epochs" in printed
    recipe = Recipe.load(run / "recipe.yaml")
    assert (recipe.init, recipe.teacher, recipe.distillation.guidance) == (str(start), (str(run / "teacher"),), 10)
    plan = deit.plan(deit.open_data(photos), {"init": str(run / "teacher")}, minutes=1.1)
    assert plan.teacher_recipe is None


@pytest.mark.parametrize("epochs", [("--epochs", 2), ("--set", "schedule.epochs=2")], ids=str)
def test_settings_of_the_command_line_are_kept_as_what_they_mean(photos, tmp_path, epochs):
    out, given = tmp_path / "run", ("--recipe", "auto", *epochs, "--set", "token_merging=0")
    printed = " ".join(succeeds("train", photos, "--out", out, *given).output.split())
    assert "- 2 epochs of 3 steps in batches of 8: as you set them, at " in printed
    assert "- Kept as you set them: schedule.epochs, token_merging. - Guidance: " in printed
    recipe = Recipe.load(out / "recipe.yaml")
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.token_merging) == (2, 0.2, 0)


@pytest.mark.parametrize(
    ("kind", "given", "side"),
    [
        (deit.DeiTForImageClassification, {"image_size": 32}, 32),
        (deit.DeiTForImageClassification, {"image_size": 32, "token_merging": {"r": 1}}, 0),
        (deit.DeiTForImageClassification, {"image_size": [32, 32]}, 32),
        (deit.DeiTForImageClassification, {"image_size": [32, 64]}, 0),
        (deit.ViTForImageClassification, {"image_size": 32}, 0),
    ],
    ids=str,
)
def test_only_some_starts_can_be_taught(tmp_path, kind, given, side):
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    kind(kind.config_class(**sizes, intermediate_size=64, patch_size=8, **given)).save_pretrained(tmp_path)
    assert look_for_weights(str(tmp_path)).taught_side == side


def test_minutes_with_a_recipe_choose_its_epochs_alone(photos, tmp_path):
    options = ("--recipe", "small-data-cpu", "--student", STUDENT, "--batch-size", 8, "--minutes", 0.6)
    printed = succeeds("train", photos, *options, "--out", tmp_path / "run").output
    assert "epochs in 0.6 min, by the speed measured here." in printed
    recipe, named = Recipe.load(tmp_path / "run" / "recipe.yaml"), deit.named_recipe("small-data-cpu").recipe
    assert recipe.schedule.epochs == 3  # of 9 s, in 36 s of which some are gone
    assert recipe.schedule.warmup_epochs == pytest.approx(0.3)
    assert recipe.augment == named.augment
    assert not (tmp_path / "run" / "plan.json").exists()
    resumed = command("train", photos, *options, "--out", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_images_without_a_label_are_for_the_student_alone(photos, tmp_path):
    fill(photos / "unlabelled", 4, seed=200)
    for path in (photos / "unlabelled").rglob("*.png"):
        with Image.open(path) as image:
            image.resize((200, 200)).save(path)
    printed = " ".join(succeeds("train", photos, "--out", tmp_path / "run", "--minutes", 1.5).output.split())
    assert "12 more without a label" in printed
    assert "Images without a label are of another kind: typically 200 pixels." in printed
    counts = [
        json.loads((tmp_path / "run" / part / "training.json").read_text())["data"]["train_images"]
        for part in ("teacher", ".")
    ]
    assert "Uses 6 of the 12 images without a label" in printed
    assert counts == [24, 30]
    recipe = tmp_path / "run" / "recipe.yaml"
    again = succeeds("train", photos, "--recipe", recipe, "--out", tmp_path / "again").output
    assert "30 training (24 with a label" in " ".join(again.split())
    wished = ("--minutes", 1.5, "--set", "data.max_unlabelled_images=12")
    assert "Uses " not in succeeds("train", photos, "--out", tmp_path / "all", *wished).output
    assert json.loads((tmp_path / "all" / "training.json").read_text())["data"]["train_images"] == 36


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", 5, "--epochs", 3), "Received both. Pass --minutes or --epochs."),
        (("--minutes", 5, "--set", "schedule.epochs=3"), "Received both."),
        (("--minutes", 0), "--minutes must be more than 0. Received: 0."),
        (("--minutes", "nan"), "--minutes must be more than 0. Received: nan."),
        (("--teacher-cache", "said"), "--teacher-cache needs a training that can be repeated."),
        (("--resume",), "holds no run to resume."),
        (("--freeze", "trunk"), "Pass --init with weights to keep."),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(photos, tmp_path, options, message):
    is_refused(command("train", photos, "--out", tmp_path / "run", *options), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("minutes", [0.1, 1e-9])
def test_too_few_minutes_are_refused_with_the_least_that_is_useful(photos, tmp_path, minutes):
    result = command("train", photos, "--out", tmp_path / "run", "--minutes", minutes)
    is_refused(result, "The time is too short: 24 images take 9.0 s a pass here", "Pass --minutes 0.")
    recipe = ("--recipe", "small-data-cpu", "--student", STUDENT, "--batch-size", 8)
    result = command("train", photos, "--out", tmp_path / "run", *recipe, "--minutes", minutes)
    is_refused(result, "is too short for one pass over the images. Pass --minutes 0.")
    assert not (tmp_path / "run").exists()


def test_data_that_teach_nothing_are_refused(tmp_path):
    one = tmp_path / "one"
    (one / "a").mkdir(parents=True)
    for i in range(4):
        picture("red", i).save(one / "a" / f"{i}.png")
    is_refused(command("train", one, "--out", tmp_path / "run"), "All images are of one class, 'a'")
    single = tmp_path / "single"
    for name in ("a", "b"):
        (single / name).mkdir(parents=True)
        picture("red", len(name)).save(single / name / "only.png")
    is_refused(command("train", single, "--out", tmp_path / "run"), "dividing it needs at least 2")
    same = tmp_path / "same"
    for part in ("train", "val"):
        for name in ("a", "b"):
            (same / part / name).mkdir(parents=True)
            for i in range(3):
                picture("red", 1).save(same / part / name / f"{i}.png")
    is_refused(command("train", same, "--out", tmp_path / "run"), "All 6 training images are copies of one image")
    assert not (tmp_path / "run").exists()


def test_a_validation_part_without_a_class_is_told_before_the_training(photos, tmp_path, caplog):
    for file in (photos / "val" / "red").iterdir():
        file.unlink()
    succeeds("train", photos, "--out", tmp_path / "run", *MINUTES, "--plan")
    assert "have no validation image, the first is 'red'" in caplog.text


def test_a_damaged_plan_is_refused(photos, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text('{"recipe": 3}')
    is_refused(command("train", photos, "--out", tmp_path / "run", "--resume"), "no plan of a training")


@pytest.mark.slow
def test_a_real_measurement_is_sane_and_draws_nothing_from_the_generators(photos, monkeypatch):
    from deit.planning.speed import measure

    monkeypatch.setattr(make_plan, "measure", measure)
    state = torch.get_rng_state()
    found: list[Speed] = []
    monkeypatch.setattr(
        make_plan, "measure", lambda *args, **options: found.append(measure(*args, **options)) or found[-1]
    )
    plan = deit.plan(deit.open_data(photos), minutes=30, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert plan.forecast.seconds <= 1800
    for speed in found:
        assert 0 <= speed.answers <= speed.step < 30
        assert 0 < speed.light_view < 1
        assert speed.memory > 10**7


def test_the_answers_of_a_given_teacher_are_measured(photos, monkeypatch):
    from deit.planning.speed import measure

    found: list[Speed] = []
    monkeypatch.setattr(
        make_plan, "measure", lambda *args, **options: found.append(measure(*args, **options)) or found[-1]
    )

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return torch.zeros(len(pixels), 3)

    images, slow = deit.open_data(photos), deit.Teacher(answer, name="slow")
    settings = {"student": STUDENT, "teacher": ("slow",)}
    plan = deit.plan(images, settings, minutes=0.5, device="cpu", teachers=slow)
    assert plan.teacher_recipe is None
    recipe = Recipe().with_settings({**settings, "batch_size": 8})
    make_plan.in_minutes(recipe, images, 0.5, device="cpu", teachers=slow)
    assert [speed.answers >= 0.05 for speed in found] == [True, True]
    make_plan.in_minutes(recipe, images, 0.5, device="cpu")  # a cache holds the answers
    assert found[-1].answers == 0

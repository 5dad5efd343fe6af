"""Defaults that follow another setting, and learning rates that follow the batch."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math

import pytest
import torch

from deit.core.variants import variant_config
from deit.models.vit import ViTModel
from deit.train.loop import fit
from deit.train.optimization import describe_rates, learning_rate, planned_rates
from deit.train.recipes.catalog import list_recipes, named_recipe
from deit.train.recipes.recipe import Recipe, differences
from deit.train.recipes.sections import Distillation, Optimizer, Schedule
from deit.train.students.deit import build_student
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny

SOFT = {"distillation.kind": "soft"}


def numbers(recipe: Recipe) -> tuple[float, float]:
    return recipe.distillation.temperature, recipe.distillation.weight


# --- defaults that follow -----------------------------------------------------------------------------


def test_soft_distillation_has_the_papers_numbers_however_it_is_asked_for(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("distillation: {kind: soft}")
    for recipe in (
        Recipe().with_settings(SOFT),
        Recipe(distillation=Distillation(kind="soft")),
        Recipe.load(tmp_path / "a.yaml"),
        Recipe.from_dict({"distillation": {"kind": "soft"}}),
        dataclasses.replace(Recipe(), distillation=dataclasses.replace(Distillation(), kind="soft")),
        copy.deepcopy(named_recipe("deit-tiny-distilled").recipe).with_settings(SOFT),
        named_recipe("deit-base-distilled-soft").recipe,
    ):
        assert numbers(recipe) == (3.0, 0.1)
        assert "temperature: 3.0\n  weight: 0.1\n" in recipe.to_yaml()
    assert numbers(Recipe()) == (1.0, 0.5)
    assert numbers(Recipe().with_settings(SOFT).with_settings({"distillation.kind": "hard"})) == (1.0, 0.5)


def test_a_number_that_was_chosen_stays(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("distillation: {weight: 0.5}")
    for recipe in (
        Recipe().with_settings({**SOFT, "distillation.weight": "0.5"}),
        Recipe().with_settings({"distillation.weight": 0.5}).with_settings(SOFT),
        Recipe(distillation=Distillation(weight=0.5)).with_settings(SOFT),
        Recipe.load(tmp_path / "a.yaml").with_settings(SOFT),
    ):
        assert numbers(recipe) == (3.0, 0.5)


def test_a_saved_recipe_keeps_its_numbers_until_its_kind_is_changed(tmp_path) -> None:
    old = {"kind": "soft", "temperature": 1.0, "weight": 0.5}  # what soft meant before
    assert numbers(Recipe.from_dict({"distillation": old})) == (1.0, 0.5)
    Recipe().save(tmp_path / "hard.yaml")
    assert numbers(Recipe.load(tmp_path / "hard.yaml")) == (1.0, 0.5)
    assert numbers(Recipe.load(tmp_path / "hard.yaml").with_settings(SOFT)) == (3.0, 0.1)


def test_the_binary_loss_is_taken_without_smoothing_unless_one_is_chosen() -> None:
    binary = Recipe().with_settings({"loss": "bce"})
    assert (binary.label_smoothing, Recipe(loss="bce").label_smoothing, Recipe().label_smoothing) == (0.0, 0.0, 0.1)
    assert binary.with_settings({"loss": "ce"}).label_smoothing == 0.1
    with pytest.raises(ValueError, match="label_smoothing must be 0"):
        Recipe().with_settings({"label_smoothing": 0.1}).with_settings({"loss": "bce"})


def test_a_recipe_without_the_newer_settings_is_read() -> None:
    values = Recipe().to_dict()
    for name in ("student", "config", "image_size", "partial_patches", "init", "teacher"):
        del values[name]
    assert Recipe.from_dict(values) == Recipe()


def test_teachers_are_given_as_text_or_as_a_list() -> None:
    assert Recipe().with_settings({"teacher": "a, b"}).teacher == ("a", "b")
    assert Recipe.from_dict({"teacher": ["a"]}).with_settings({"teacher": ""}).teacher == ()


def test_a_training_from_labels_does_not_drop_the_teacher_of_its_recipe(tmp_path) -> None:
    recipe = tiny.recipe().with_settings({"teacher": "somebody"})
    task = ClassificationTask(tiny.student(), tiny.processor())
    with pytest.raises(ValueError, match="learns from the teacher somebody, and ClassificationTask has none"):
        fit(task, tiny.data(), recipe, out=tmp_path / "run", device="cpu")


# --- learning rates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_recipes())
def test_published_schedules_are_as_they_were(name) -> None:
    """By hand, with the fixed ends of the paper's code."""
    recipe = named_recipe(name).recipe
    schedule, peak = recipe.schedule, recipe.learning_rate()
    rates = recipe.learning_rates()
    assert (rates.start, rates.peak, rates.end) == (schedule.warmup_lr, peak, min(schedule.min_lr, peak))
    epoch = schedule.epochs // 2
    if epoch > schedule.warmup_epochs:
        low = min(schedule.min_lr, peak)
        expected = low + (peak - low) * 0.5 * (1 + math.cos(math.pi * epoch / schedule.epochs))
        assert learning_rate(10 * epoch, steps_per_epoch=10, recipe=recipe) == expected


@pytest.mark.parametrize("name", list_recipes())
def test_a_batch_of_four_rises_and_falls_by_the_recipes_shares(name) -> None:
    recipe = named_recipe(name).recipe.with_settings({"batch_size": 4})
    rates, lr = recipe.learning_rates(), recipe.optimizer.lr
    assert rates.start < rates.peak
    assert rates.end < rates.peak or recipe.schedule.min_lr == lr  # the authors' own flat fine-tunings
    if recipe.schedule.min_lr >= rates.peak:
        assert rates.end == pytest.approx(recipe.schedule.min_lr / lr * rates.peak)
    text = " ".join(describe_rates(recipe, steps_per_epoch=10))
    assert ("schedule.min_lr=" in text) == (rates.end != recipe.schedule.min_lr)


def test_the_plan_tells_what_the_rates_will_really_be() -> None:
    recipe = Recipe(batch_size=512, schedule=Schedule(epochs=10, warmup_epochs=2))
    every = [learning_rate(step, steps_per_epoch=7, recipe=recipe) for step in range(70)]
    assert planned_rates(recipe, steps_per_epoch=7) == {"first": every[0], "highest": max(every), "last": every[-1]}
    late = Recipe(batch_size=512, schedule=Schedule(epochs=2, warmup_epochs=1, updates="original"))
    assert planned_rates(late, steps_per_epoch=3)["highest"] == 1e-6  # both epochs begin the warm-up
    assert "never reach the peak" in describe_rates(late, steps_per_epoch=3)[-1]
    flat = Recipe(optimizer=Optimizer(lr=1e-5, reference_batch_size=0))
    assert describe_rates(flat, steps_per_epoch=3) == [
        "Learning rate: from 1e-06 to 1e-05 in 5 epochs, then constant until epoch 300."
    ]


@pytest.mark.parametrize("setting", [{"schedule.min_lr": 1e-3}, {"schedule.warmup_lr": 1e-3}, {"optimizer.lr": 1e-6}])
def test_a_rate_that_goes_the_wrong_way_is_refused_before_a_folder_is_made(setting, tmp_path) -> None:
    task, recipe = ClassificationTask(tiny.student(), tiny.processor()), Recipe(batch_size=4).with_settings(setting)
    with pytest.raises(ValueError, match=r"must be at most optimizer\.lr, its peak"):
        fit(task, tiny.data(), recipe, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_fit_logs_the_plan(tmp_path, caplog) -> None:
    task = ClassificationTask(tiny.student(), tiny.processor())
    with caplog.at_level(logging.INFO, logger="deit.train.loop"):
        fit(task, tiny.data(), tiny.recipe(schedule=Schedule(epochs=1, warmup_epochs=0)), out=tmp_path / "run")
    assert any("Learning rate: " in message for message in caplog.messages)


def test_accumulation_changes_no_rate_and_layer_decay_multiplies_it() -> None:
    small = Recipe(batch_size=8)
    assert Recipe(batch_size=8, accumulate=4).learning_rates() == small.learning_rates()
    assert Recipe(batch_size=8, optimizer=Optimizer(layer_decay=0.5)).learning_rates() == small.learning_rates()


# --- the student of a recipe --------------------------------------------------------------------------


def test_python_builds_the_student_that_a_recipe_names() -> None:
    recipe = named_recipe("small-data-cpu").recipe
    student = build_student(None, ["a", "b"], recipe)
    assert (student.model.config.image_size, student.processor.output_size) == (112, (112, 112))
    with pytest.raises(ValueError, match="starts from the model that the recipe deit3-base makes"):
        build_student(None, ["a", "b"], named_recipe("deit3-base-finetune-384").recipe)


@pytest.mark.parametrize(("name", "grid"), [("deit3-huge", 11), ("deit3-huge-21k", 9)])
def test_the_huge_student_has_the_patches_of_the_authors_network(name, grid) -> None:
    timm = pytest.importorskip("timm")
    recipe = named_recipe(name).recipe
    with torch.device("meta"):
        student = build_student(None, ["a", "b"], recipe).model
        oracle = timm.create_model("deit3_huge_patch14_224", img_size=recipe.image_size, num_classes=2)
    positions = next(p for n, p in student.named_parameters() if n.endswith("pos_embed"))
    assert positions.shape == oracle.pos_embed.shape == (1, grid * grid, 1280)


def test_pixels_that_fill_no_patch_are_not_seen() -> None:
    config = variant_config("deit3-huge-patch14-224", image_size=160, num_hidden_layers=1, hidden_size=16,
                            num_attention_heads=2, intermediate_size=16)  # fmt: skip
    model = ViTModel(config).eval()
    images = torch.rand(1, 3, 160, 160)
    other = images.clone()
    other[..., 154:, :] = 0
    other[..., 154:] = 0
    with torch.inference_mode():
        assert torch.equal(model(images).last_hidden_state, model(other).last_hidden_state)
        assert model(images).last_hidden_state.shape[1] == 1 + 11 * 11


def test_published_settings_are_untouched_by_the_student_fields() -> None:
    assert differences(named_recipe("deit-tiny").recipe, Recipe().with_settings({"batch_size": 1024})) == [
        "student", "image_size", "augment.num_repeats",
    ]  # fmt: skip

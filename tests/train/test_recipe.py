import dataclasses

import pytest

from deit.train.recipe import Optimizer, Recipe, Schedule, differences


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe(batch_size=1024)
    assert recipe.learning_rate() == pytest.approx(1e-3)  # 5e-4 x 1024 / 512
    assert recipe.optimizer.weight_decay == 0.05
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (300, 5)
    assert (recipe.label_smoothing, recipe.drop_path_rate) == (0.1, 0.1)
    assert (recipe.augment.mixup_alpha, recipe.augment.cutmix_alpha) == (0.8, 1.0)
    assert (recipe.augment.rand_augment, recipe.augment.erase_rate) == ("rand-m9-mstd0.5-inc1", 0.25)


def test_a_reference_batch_size_of_zero_takes_the_learning_rate_as_it_is() -> None:
    recipe = Recipe(batch_size=64, optimizer=Optimizer(lr=0.002, reference_batch_size=0))
    assert recipe.learning_rate() == 0.002


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1  # type: ignore[misc]


def test_yaml_brings_back_the_same_recipe(tmp_path) -> None:
    recipe = Recipe(seed=7, optimizer=Optimizer(lr=1e-5, betas=(0.8, 0.95)), schedule=Schedule(epochs=9))
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optimizer.lr", "1e-3", 1e-3),
        ("schedule.epochs", "7", 7),
        ("augment.crop_scale", "0.5,1", (0.5, 1.0)),
        ("augment.crop_scale", [0.5, 1], (0.5, 1.0)),
        ("augment.rand_augment", "", ""),
        ("distillation.kind", "soft", "soft"),
    ],
)
def test_dotted_settings_are_converted_to_the_type_of_the_value(name, text, value) -> None:
    result = Recipe().with_settings({name: text})
    section, field = name.split(".")
    assert getattr(getattr(result, section), field) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer.lrr": 1}, "Did you mean 'optimizer.lr'"),
        ({"schedule.epochs": "many"}, "schedule.epochs must be like 300. Received: 'many'"),
        ({"schedule.epochs": "1.5"}, "schedule.epochs must be like 300"),
        ({"schedule.epochs": 0}, "epochs must be at least 1"),
        ({"optimizer.lr": -1}, "lr must be positive"),
        ({"batch_size": 5}, "batch_size must be even"),
        ({"distillation.kind": "firm"}, "distillation.kind must be one of"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"augment.crop": "square"}, "augment.crop must be"),
        ({"augment.crop_scale": "0.9,0.1"}, "crop_scale must be"),
    ],
)
def test_a_bad_setting_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe().with_settings(settings)


def test_an_odd_batch_is_fine_without_mixing() -> None:
    assert Recipe().with_settings({"augment.mix_rate": 0, "batch_size": 5}).batch_size == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {speed: 1}", "Unknown setting optimizer.'speed'"),
        ("optimizer: 3", "optimizer must hold settings"),
        ("- 1", "must hold the settings of a recipe"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, message) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path / "recipe.yaml")


def test_differences_are_named_with_dots() -> None:
    other = Recipe().with_settings({"seed": 1, "augment.flip_rate": 0})
    assert differences(Recipe(), other) == ["seed", "augment.flip_rate"]

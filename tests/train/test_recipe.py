import dataclasses

import pytest

from deit.train.recipes.recipe import Recipe, differences
from deit.train.recipes.sections import DataOptions, Optimizer, Schedule


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe(batch_size=1024)
    assert recipe.learning_rate() == pytest.approx(1e-3)  # 5e-4 x 1024 / 512
    assert recipe.optimizer.weight_decay == 0.05
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (300, 5)
    assert (recipe.label_smoothing, recipe.drop_path_rate) == (0.1, 0.1)
    assert (recipe.augment.mixup_alpha, recipe.augment.cutmix_alpha) == (0.8, 1.0)
    assert (recipe.augment.rand_augment, recipe.augment.erase_rate) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (recipe.optimizer.name, recipe.loss, recipe.drop_path_shape) == ("adamw", "ce", "linear")


def test_the_defaults_are_for_one_machine() -> None:
    recipe = Recipe()
    assert (recipe.augment.num_repeats, recipe.accumulate, recipe.compile) == (1, 1, False)
    assert (recipe.schedule.updates, recipe.student_mode, recipe.ema_use) == ("step", "train", "save")
    assert (recipe.optimizer.layer_decay, recipe.optimizer.decay_distillation_token) == (1.0, False)


def test_a_reference_batch_size_of_zero_takes_the_learning_rate_as_it_is() -> None:
    recipe = Recipe(batch_size=64, optimizer=Optimizer(lr=0.002, reference_batch_size=0))
    assert recipe.learning_rate() == 0.002


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1  # type: ignore[misc]


def test_yaml_brings_back_the_same_recipe(tmp_path) -> None:
    recipe = Recipe(
        seed=7,
        compile=True,
        optimizer=Optimizer(lr=1e-5, betas=(0.8, 0.95), name="lamb", decay_distillation_token=True),
        schedule=Schedule(epochs=9),
        data=DataOptions(strict=True, label_column="1"),
    )
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
        ("distillation.cache_top_k", "5", 5),
        ("data.strict", "true", True),
        ("data.strict", "1", True),
        ("data.strict", 1, True),
        ("data.strict", "False", False),
        ("data.strict", "0", False),
        ("data.label_column", "breed", "breed"),
        ("optimizer.decay_distillation_token", True, True),
        ("optimizer.layer_decay", "0.75", 0.75),
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
        ({"optimizer.name": "adam"}, "optimizer.name must be one of .* Received: 'adam'. Did you mean 'adamw'"),
        ({"optimizer.layer_decay": 0}, r"layer_decay must lie in \(0, 1\]"),
        ({"optimizer.momentum": 1}, r"momentum must lie in \[0, 1\)"),
        ({"optimizer.betas": "0.9,1"}, r"betas must lie in \[0, 1\)"),
        ({"optimizer.eps": 0}, "eps must be positive"),
        ({"schedule.updates": "batch"}, "schedule.updates must be one of"),
        ({"schedule.min_lr": -1}, "min_lr must be at least 0"),
        ({"distillation.cache_top_k": 0}, "cache_top_k must be at least 1"),
        ({"data.val_fraction": 1}, "data.val_fraction must lie between 0 and 1. Received: 1"),
        ({"data.problem_type": "many"}, "data.problem_type must be one of"),
        ({"data.strict": "maybe"}, "data.strict must be like False. Received: 'maybe'"),
        ({"data.strict": 2}, "data.strict must be like False"),
        ({"schedule.epochs": True}, "schedule.epochs must be like 300. Received: True"),
        ({"augment.rand_augment": False}, "augment.rand_augment must be like"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"accumulate": 3}, r"batch_size must be a multiple of accumulate \(3\). Received: 64"),
        ({"loss": "mse"}, "loss must be one of"),
        ({"loss": "bce", "label_smoothing": 0.1}, 'label_smoothing must be 0 with loss "bce", .* Received: 0.1'),
        ({"drop_path_shape": "round"}, "drop_path_shape must be one of"),
        ({"student_mode": "training"}, "student_mode must be one of .* Did you mean 'train'"),
        ({"ema_use": "drop"}, "ema_use must be one of"),
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
        ("a: [", "is damaged or is not a recipe"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, message) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path / "recipe.yaml")


def test_the_binary_loss_is_taken_without_smoothing() -> None:
    assert Recipe().with_settings({"loss": "bce", "label_smoothing": 0}).loss == "bce"


def test_settings_may_be_given_in_any_order() -> None:
    assert Recipe().with_settings({"accumulate": 3, "batch_size": 66}).accumulate == 3


def test_differences_are_named_with_dots() -> None:
    other = Recipe().with_settings({"seed": 1, "augment.flip_rate": 0})
    assert differences(Recipe(), other) == ["seed", "augment.flip_rate"]

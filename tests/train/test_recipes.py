"""The named recipes against the papers: these numbers come from their tables and commands, not from our code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from deit.cli.app import app
from deit.core.published import VARIANTS
from deit.train.loop import fit
from deit.train.recipes.catalog import list_recipes, named_recipe, open_recipe
from deit.train.recipes.named_recipe import NOT_PUBLISHED
from deit.train.recipes.recipe import Recipe, differences
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"

# Table 9, the column of DeiT-B, and the code's defaults.
TABLE_9 = {
    "batch_size": 1024, "optimizer.name": "adamw", "optimizer.lr": 5e-4, "optimizer.reference_batch_size": 512,
    "optimizer.weight_decay": 0.05, "optimizer.betas": (0.9, 0.999), "optimizer.eps": 1e-8, "optimizer.clip_grad": 0.0,
    "optimizer.layer_decay": 1.0, "optimizer.decay_distillation_token": False, "optimizer.momentum": 0.9,
    "schedule.epochs": 300, "schedule.warmup_epochs": 5, "schedule.warmup_lr": 1e-6, "schedule.min_lr": 1e-5,
    "schedule.updates": "step", "loss": "ce", "label_smoothing": 0.1, "drop_path_rate": 0.1,
    "drop_path_shape": "linear", "student_mode": "train", "ema_decay": 0.0, "ema_use": "save", "crop_ratio": 0.875,
    "distillation.kind": "hard", "distillation.weight": 0.5, "distillation.temperature": 1.0,
    "distillation.reduction": "batchmean",
    "augment.rand_augment": "rand-m9-mstd0.5-inc1", "augment.three_augment": False, "augment.color_jitter": 0.0,
    "augment.mixup_alpha": 0.8, "augment.cutmix_alpha": 1.0, "augment.mix_rate": 1.0, "augment.erase_rate": 0.25,
    "augment.num_repeats": 3, "augment.crop": "resized", "augment.crop_scale": (0.08, 1.0), "augment.flip_rate": 0.5,
}  # fmt: skip
# The command of DeiT III's first stage, written out against table 9.
REVENGE = {
    **TABLE_9, "batch_size": 2048, "optimizer.name": "lamb", "optimizer.reference_batch_size": 2048,
    "optimizer.clip_grad": 1.0, "schedule.epochs": 800, "loss": "bce", "label_smoothing": 0.0,
    "drop_path_shape": "constant", "crop_ratio": 1.0, "augment.rand_augment": "", "augment.three_augment": True,
    "augment.color_jitter": 0.3, "augment.erase_rate": 0.0,
}  # fmt: skip
REVENGE_FINE_TUNING = {
    **TABLE_9, "batch_size": 512, "optimizer.lr": 1e-5, "optimizer.reference_batch_size": 512,
    "optimizer.weight_decay": 0.1, "schedule.epochs": 20, "drop_path_shape": "constant", "crop_ratio": 1.0,
    "augment.erase_rate": 0.0, "augment.num_repeats": 1,
}  # fmt: skip
REVENGE_21K = {
    **REVENGE, "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.02, "loss": "ce", "label_smoothing": 0.1,
    "augment.mixup_alpha": 0.0, "augment.crop": "simple", "augment.num_repeats": 1,
}  # fmt: skip
SOFT = {**TABLE_9, "distillation.kind": "soft", "distillation.temperature": 3.0, "distillation.weight": 0.1}
LONG = {**TABLE_9, "schedule.epochs": 1000}
AT_384 = {
    **TABLE_9, "batch_size": 512, "optimizer.lr": 5e-6, "optimizer.weight_decay": 1e-8, "schedule.epochs": 30,
    "schedule.min_lr": 5e-6,
}  # fmt: skip
ISSUE_45 = {
    **TABLE_9, "batch_size": 768, "optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.reference_batch_size": 768,
    "optimizer.weight_decay": 1e-4, "schedule.epochs": 1000, "drop_path_rate": 0.0, "augment.erase_rate": 0.0,
}  # fmt: skip
ISSUE_105 = {
    **TABLE_9, "batch_size": 768, "optimizer.lr": 7.5e-5, "optimizer.reference_batch_size": 768,
    "schedule.epochs": 360, "augment.erase_rate": 0.1,
}  # fmt: skip


def at(lr: float, drop_path_rate: float, settings: dict[str, object], epochs: int = 0) -> dict[str, object]:
    changes = {"optimizer.lr": lr, "drop_path_rate": drop_path_rate}
    return {**settings, **changes, **({"schedule.epochs": epochs} if epochs else {})}


# Name: settings, peak learning rate at the published batch size, pixels, top-1.
PUBLISHED = {
    "deit-tiny": (TABLE_9, 1e-3, 224, 72.2),
    "deit-small": (TABLE_9, 1e-3, 224, 79.8),
    "deit-base": (TABLE_9, 1e-3, 224, 81.8),
    "deit-tiny-distilled": (TABLE_9, 1e-3, 224, 74.5),
    "deit-small-distilled": (TABLE_9, 1e-3, 224, 81.2),
    "deit-base-distilled": (TABLE_9, 1e-3, 224, 83.4),
    "deit-tiny-distilled-1000": (LONG, 1e-3, 224, 76.6),
    "deit-small-distilled-1000": (LONG, 1e-3, 224, 82.6),
    "deit-base-distilled-1000": (LONG, 1e-3, 224, 84.2),
    "deit-tiny-distilled-soft": (SOFT, 1e-3, 224, None),
    "deit-small-distilled-soft": (SOFT, 1e-3, 224, None),
    "deit-base-distilled-soft": (SOFT, 1e-3, 224, None),
    "deit-base-384": (AT_384, 5e-6, 384, 83.1),
    "deit-base-distilled-384": (AT_384, 5e-6, 384, 84.5),
    "deit3-small": (at(4e-3, 0.05, REVENGE), 4e-3, 224, 81.4),
    "deit3-base": (at(3e-3, 0.2, REVENGE), 3e-3, 192, 82.8),
    "deit3-large": (at(3e-3, 0.45, REVENGE), 3e-3, 192, 84.0),
    "deit3-huge": (at(3e-3, 0.6, REVENGE), 3e-3, 160, 83.5),
    "deit3-base-finetune-224": (at(1e-5, 0.2, REVENGE_FINE_TUNING), 1e-5, 224, 83.8),
    "deit3-large-finetune-224": (at(1e-5, 0.45, REVENGE_FINE_TUNING), 1e-5, 224, 84.9),
    "deit3-huge-finetune-224": (at(1e-5, 0.55, REVENGE_FINE_TUNING), 1e-5, 224, 85.2),
    "deit3-small-finetune-384": (at(1e-5, 0.0, REVENGE_FINE_TUNING), 1e-5, 384, 83.4),
    "deit3-base-finetune-384": (at(1e-5, 0.15, REVENGE_FINE_TUNING), 1e-5, 384, 85.0),
    "deit3-large-finetune-384": (at(1e-5, 0.4, REVENGE_FINE_TUNING), 1e-5, 384, 85.8),
    "deit3-small-21k": (at(1e-3, 0.05, REVENGE_21K, 240), 1e-3, 224, None),
    "deit3-base-21k": (at(1e-3, 0.1, REVENGE_21K, 240), 1e-3, 224, None),
    "deit3-large-21k": (at(1e-3, 0.3, REVENGE_21K, 240), 1e-3, 224, None),
    "deit3-huge-21k": (at(1e-3, 0.5, REVENGE_21K, 90), 1e-3, 128, None),
    "deit3-small-21k-finetune": (at(3e-4, 0.05, REVENGE_21K, 50), 3e-4, 224, 83.1),
    "deit3-base-21k-finetune": (at(3e-4, 0.15, REVENGE_21K, 50), 3e-4, 224, 85.7),
    "deit3-large-21k-finetune": (at(3e-4, 0.4, REVENGE_21K, 50), 3e-4, 224, 87.0),
    "deit3-huge-21k-finetune": (at(3e-4, 0.45, REVENGE_21K, 50), 3e-4, 224, 87.2),
    "cifar10": (ISSUE_45, 0.01, 224, 99.1),
    "cifar100": (ISSUE_45, 0.01, 224, 90.8),
    "flowers": (ISSUE_45, 0.01, 224, 98.4),
    "cars": (ISSUE_45, 0.01, 224, 92.1),
    "inaturalist18": (ISSUE_105, 7.5e-5, 224, 73.2),
    "inaturalist19": (ISSUE_105, 7.5e-5, 224, 77.7),
}
SIMMIM = ["simmim-100", "simmim-800", "simmim-fine-tune"]
OURS = ["small-data-cpu", "small-data-gpu", "fine-tune"]
START = {"student", "config", "image_size", "partial_patches", "init", "teacher"}
TEACHER = "timm/regnety_160.deit_in1k"


def flat(recipe: Recipe) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in recipe.to_dict().items():
        values.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return values


def test_the_recipes_are_these() -> None:
    assert list_recipes() == [*PUBLISHED, *SIMMIM, *OURS]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_has_the_published_values(name) -> None:
    settings, peak, pixels, top1 = PUBLISHED[name]
    named = named_recipe(name)
    received = flat(named.recipe)
    assert {key: received[key] for key in settings} == settings
    assert named.recipe.learning_rate() == pytest.approx(peak)
    assert (named.image_size, named.top1) == (pixels, top1)


def test_what_the_published_recipes_do_not_say_is_the_default() -> None:
    ours = {key for key in flat(Recipe()) if key not in TABLE_9}
    for name in PUBLISHED:
        assert not (ours - START) & set(differences(named_recipe(name).recipe, Recipe()))
    assert {key.split(".")[0] for key in ours} == {
        "accumulate", "seed", "initialization", "precision", "compile", "eval_epochs", "num_workers", "augment",
        "distillation", "data", "freeze", "class_weights", "keep", "keep_score", "keep_state",
        "kept_states", "state_steps", "max_skipped_steps", "masking", "pseudo_labels", "schedule", "token_merging",
        *START,
    }  # fmt: skip


def test_a_smaller_batch_gets_a_smaller_learning_rate_in_proportion() -> None:
    for name in PUBLISHED:
        recipe = named_recipe(name).recipe
        half = recipe.with_settings({"batch_size": recipe.batch_size // 2})
        assert half.learning_rate() == pytest.approx(recipe.learning_rate() / 2)


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("deit-tiny", "less than 3 days on 4 GPUs"),
        ("deit-small", "less than 3 days on 4 GPUs"),
        ("deit-base", "53 hours on 8 GPUs, 37 hours on 16"),
        ("deit-base-distilled", "20 % longer than deit-base"),
        ("deit-base-384", "20 hours on 8 GPUs for the paper's 25 epochs"),
        ("deit-base-distilled-1000", NOT_PUBLISHED),
        ("deit3-huge", NOT_PUBLISHED),
        ("inaturalist18", NOT_PUBLISHED),
    ],
)
def test_the_time_is_the_published_one_or_said_to_be_unknown(name, time) -> None:
    assert named_recipe(name).expected_time == time


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("deit-small", "4 GPUs x 256"),
        ("deit-base", "2 machines x 8 GPUs x 64"),
        ("deit-base-384", "2 machines x 8 GPUs x 32"),
        ("deit3-base", "1 machine x 8 GPUs x 256"),
        ("deit3-huge", "4 machines x 8 GPUs x 64"),
        ("deit3-base-finetune-224", "1 machine x 8 GPUs x 64"),
        ("deit3-huge-finetune-224", "2 machines x 8 GPUs x 32"),
        ("deit3-small-finetune-384", "1 machine x 8 GPUs x 64"),
        ("deit3-small-21k", "2 machines x 8 GPUs x 128"),
        ("deit3-base-21k-finetune", "4 machines x 8 GPUs x 64"),
    ],
)
def test_the_hardware_is_the_published_one_and_makes_up_the_batch(name, images) -> None:
    named = named_recipe(name)
    assert named.hardware.startswith(f"{images} images")
    product = 1
    for number in re.findall(r"\d+", images):
        product *= int(number)
    assert product == named.recipe.batch_size


def test_the_teacher_and_the_start_are_named_where_there_are_some() -> None:
    for name in list_recipes():
        named = named_recipe(name)
        assert named.teacher == (TEACHER if name.startswith("deit-") and "distilled" in name else None)
        starts = (
            "384" in name or "finetune" in name or "fine-tune" in name or named.summary.startswith("DeiT-base from")
        )
        assert (named.init is not None) is starts
    assert named_recipe("deit3-base-finetune-384").init == "DEIT3-BASE"


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_complete_and_its_command_can_be_typed(name) -> None:
    named = named_recipe(name)
    assert named.student in VARIANTS
    assert all((named.summary, named.hardware, named.expected_time, named.top1_note, named.source))
    assert (named.top1 is None) == (name in OURS + SIMMIM or name.endswith(("-21k", "-soft")))
    words = shlex.split(named.command)
    start = words.index(named.verb)
    assert words[start - 1] == "deit"
    command = typer.main.get_command(app).commands[named.verb]
    with command.make_context(named.verb, words[start + 1 :]) as context:
        given = context.params
    made_by = named.recipe.init_made_by
    assert (given["recipe"], given["init"]) == (name, made_by and made_by.upper())
    assert made_by is None or made_by in list_recipes()
    assert not any((given["student"], given.get("teacher"), given["image_size"]))  # the recipe has them
    assert named.recipe.batch_size % named.recipe.accumulate == 0


@pytest.mark.parametrize(
    "name", ["deit-tiny-original", "deit3-small", "deit3-base-21k", "cifar10-original", "fine-tune"]
)
def test_a_recipe_of_each_kind_can_be_trained_with(name, tmp_path) -> None:
    """Both optimizers and losses, all crops, layer decay, evaluation mode and the average that is only kept."""
    short = {"init": "", "batch_size": 4, "num_workers": 0, "schedule.epochs": 1, "schedule.warmup_epochs": 0}
    recipe = named_recipe(name).recipe.with_settings(short)
    task = ClassificationTask(
        tiny.student(), tiny.processor(), label_smoothing=recipe.label_smoothing, loss=recipe.loss
    )
    before = [parameter.clone() for parameter in task.student.parameters()]
    result = fit(task, tiny.data(), recipe, out=tmp_path / "run", device="cpu")
    assert 0 <= result.scores["both"].top1 <= 100
    assert all(not torch.equal(old, new) for old, new in zip(before, task.student.parameters(), strict=True))


# --- original -----------------------------------------------------------------------------------------


def test_the_original_of_deit_has_the_ways_of_its_code() -> None:
    plain, original = named_recipe("deit-base-distilled"), named_recipe("deit-base-distilled-original")
    assert differences(plain.recipe, original.recipe) == [
        "ema_decay", "ema_use", "optimizer.decay_distillation_token", "schedule.updates", "distillation.reduction",
    ]  # fmt: skip
    recipe = original.recipe
    assert (recipe.ema_decay, recipe.ema_use, recipe.schedule.updates) == (0.99996, "keep", "original")
    assert (recipe.optimizer.decay_distillation_token, recipe.distillation.reduction) == (True, "numel")
    assert "--recipe deit-base-distilled-original " in original.command
    assert (original.top1, original.name) == (plain.top1, "deit-base-distilled-original")


@pytest.mark.parametrize("name", ["deit-base-384", "cifar10", "inaturalist19"])
def test_the_original_of_fine_tuning_keeps_the_student_in_evaluation_mode(name) -> None:
    assert named_recipe(name).recipe.student_mode == "train"
    assert named_recipe(f"{name}-original").recipe.student_mode == "eval"


def test_the_original_of_deit_iii_trains_in_training_mode_without_an_average() -> None:
    for name in ("deit3-base", "deit3-small-finetune-384", "deit3-huge-21k"):
        original = named_recipe(f"{name}-original").recipe
        assert differences(named_recipe(name).recipe, original) == ["schedule.updates"]
        assert (original.student_mode, original.ema_decay) == ("train", 0.0)


@pytest.mark.parametrize("name", ["deit-base-distilled-384", *OURS])
def test_there_is_no_original_where_no_code_was_published(name) -> None:
    with pytest.raises(ValueError, match=f"recipe '{name}' has no original form"):
        named_recipe(f"{name}-original")


# --- opening ------------------------------------------------------------------------------------------


def test_a_recipe_is_opened_by_name_or_from_a_file(tmp_path, monkeypatch) -> None:
    assert open_recipe("deit3-small") == named_recipe("deit3-small").recipe
    file = tmp_path / "mine.yaml"
    named_recipe("cars").recipe.save(file)
    assert open_recipe(file) == open_recipe(str(file)) == named_recipe("cars").recipe
    monkeypatch.chdir(tmp_path)
    Recipe(seed=5).save(Path("deit3-small"))
    assert open_recipe("deit3-small").seed == 5  # a file of that name is meant


def test_what_cannot_be_opened_is_told_apart(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No recipe at .*mine\.yaml"):
        open_recipe(tmp_path / "mine.yaml")
    with pytest.raises(FileNotFoundError):
        open_recipe("folder/mine")
    with pytest.raises(
        ValueError, match=r"Unknown recipe 'deit-smal'\. Did you mean 'deit-small'\? `deit recipes` lists"
    ):
        open_recipe("deit-smal")
    with pytest.raises(ValueError, match="Did you mean 'deit-small'"):
        open_recipe("deit-smal-original")


@pytest.mark.parametrize("name", list_recipes())
def test_yaml_brings_back_the_same_recipe(name, tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(named_recipe(name).recipe.to_yaml())
    assert open_recipe(tmp_path / "a.yaml") == named_recipe(name).recipe


# --- documentation ------------------------------------------------------------------------------------


def rows_of_the_documentation() -> list[list[str]]:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]
    return [row for row in cells if len(row) == 7]


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    expected = []
    for name in list_recipes():
        named = named_recipe(name)
        top1 = "-" if named.top1 is None else f"{named.top1:.1f}"
        recipe = named.recipe
        columns = [recipe.schedule.epochs, named.image_size, recipe.batch_size, f"{recipe.learning_rate():g}"]
        expected.append([name, named.student, *map(str, columns), top1])
    assert rows_of_the_documentation() == expected

"""The task of a recipe: every setting that a task uses is the one that the run records, or the run is refused."""

from __future__ import annotations

import json

import pytest
import torch

from deit import build_task
from deit.core.config.config import DeiTConfig
from deit.data.sources import HeldOut
from deit.models.deit import DeiTForMaskedImageModeling
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe, differences
from deit.train.recipes.sections import Distillation, Masking, Schedule
from deit.train.students.deit import Student
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.masked_images import MaskedImageTask
from deit.train.teachers.teacher import Teacher
from tests.train import tiny

# Every field of `Recipe` that a task uses: another value, for each kind of task.
OTHERS = {
    "labels": {"label_smoothing": 0.3, "loss": "bce"},
    "teacher": {
        "label_smoothing": 0.3, "loss": "bce", "distillation.kind": "soft", "distillation.temperature": 2.0,
        "distillation.weight": 0.9, "distillation.reduction": "numel", "distillation.cache_top_k": 2,
        "distillation.intra_weight": 0.5, "distillation.flip_teacher": True,
        "distillation.guidance": 2.0,
    },
    "masks": {"masking.patch": 16, "masking.ratio": 0.25, "masking.picture_steps": 7, "masking.pictures": 2, "seed": 3},
}  # fmt: skip
CASES = [(kind, name) for kind, settings in OTHERS.items() for name in settings]
WITHOUT_EFFECT = {"distillation.temperature", "distillation.reduction", "distillation.cache_top_k",  # of soft alone
                  "distillation.intra_weight",  # of dist alone
                  "distillation.flip_teacher",  # this teacher ranks the same class first for both
                  "masking.picture_steps", "masking.pictures"}  # fmt: skip


def recipe_of(kind: str, **settings: object) -> Recipe:
    recipe = tiny.recipe(schedule=Schedule(epochs=1, warmup_epochs=0), augment=tiny.PLAIN, batch_size=12)
    masking = {"masking.patch": 4, "masking.ratio": 0.5} if kind == "masks" else {}
    return recipe.with_settings({**masking, **settings})


def student_of(kind: str) -> Student:
    model: torch.nn.Module = tiny.student()
    if kind == "masks":
        torch.manual_seed(0)
        model = DeiTForMaskedImageModeling(
            DeiTConfig(**{**tiny.SIZES, "image_size": 32}, patch_size=4, encoder_stride=4)
        )
        return Student(
            model=model, processor=tiny.evaluation_processor((32, 32), crop_ratio=1.0, mean=tiny.MEAN, std=tiny.STD)
        )
    return Student(model=model, processor=tiny.processor())


def teacher_of(kind: str) -> Teacher | None:
    torch.manual_seed(4)
    convnet = tiny.TinyConvnet()
    convnet.feature_info = [{"module": "conv", "reduction": 1}, {"module": "norm", "reduction": 2}]  # as timm's have
    return Teacher(convnet, name="tiny") if kind == "teacher" else None


def test_the_fields_are_all_that_tasks_use() -> None:
    fields = {"labels": {"label_smoothing", "loss"}, "masks": {"seed", "masking"},
              "teacher": {"label_smoothing", "loss", "distillation"}}  # fmt: skip
    for kind, settings in OTHERS.items():
        task = build_task(recipe_of(kind), student_of(kind), teacher_of(kind))
        assert set(task._settings) == fields[kind] == {name.split(".")[0] for name in settings}
    for section, cls in (("distillation", Distillation), ("masking", Masking)):
        used = {name.split(".")[1] for settings in OTHERS.values() for name in settings if name.startswith(section)}
        assert used == set(cls.__dataclass_fields__)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_field_is_trained_and_recorded(kind, name, tmp_path) -> None:
    losses = {}
    for which, settings in (("plain", {}), ("other", {name: OTHERS[kind][name]})):
        recipe = recipe_of(kind, **settings)
        task = build_task(recipe, student_of(kind), teacher_of(kind))
        result = fit(task, tiny.data(), recipe, out=tmp_path / which, device="cpu")
        losses[which] = result.history[0]["train_loss"]
        record = json.loads((tmp_path / which / "training.json").read_text())
        assert Recipe.from_dict(record["recipe"]) == Recipe.load(tmp_path / which / "recipe.yaml")
        field = name.split(".")[0]
        assert getattr(task, field) == getattr(Recipe.load(tmp_path / which / "recipe.yaml"), field)
        assert field not in record["unused_settings"]
    assert (losses["plain"] == losses["other"]) == (name in WITHOUT_EFFECT)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_field_in_which_task_and_recipe_disagree_is_refused(kind, name, tmp_path) -> None:
    given = recipe_of(kind, **{name: OTHERS[kind][name]})
    task = build_task(given, student_of(kind), teacher_of(kind))
    with pytest.raises(ValueError, match=f"recipe and the task disagree.*{name}"):
        fit(task, tiny.data(), recipe_of(kind), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_kind_of_task_follows_from_recipe_student_and_teacher() -> None:
    kinds = [type(build_task(recipe_of(kind), student_of(kind), teacher_of(kind))) for kind in OTHERS]
    assert kinds == [ClassificationTask, DistillationTask, MaskedImageTask]
    assert isinstance(build_task(recipe_of("labels"), student_of("labels"), cached=True), DistillationTask)
    with pytest.raises(ValueError, match=r"learns from the teacher somebody.*open_teachers"):
        build_task(recipe_of("labels", teacher="somebody"), student_of("labels"))
    recipe = recipe_of("labels", **{"data.problem_type": "regression"})
    with pytest.raises(ValueError, match="one class per image"):
        build_task(recipe, student_of("labels"), teacher_of("teacher"))
    convnet = Student(model=tiny.TinyConvnet(), processor=tiny.processor())
    with pytest.raises(ValueError, match="needs a student with a distillation head"):
        build_task(recipe_of("labels"), convnet, teacher_of("teacher"))


def test_labels_of_another_kind_than_the_recipe_s_are_refused(tmp_path) -> None:
    recipe = recipe_of("labels", **{"data.problem_type": "regression"})
    task = build_task(recipe, student_of("labels"))
    with pytest.raises(ValueError, match=r"The recipe has data\.problem_type=regression"):
        fit(task, tiny.data(), recipe, out=tmp_path / "run", device="cpu")


def test_the_division_of_the_data_is_recorded(tmp_path) -> None:
    data = tiny.data()
    divided = type(data)(train=data.train, val=data.val, held_out=HeldOut(val_fraction=0.25, seed=7))
    for name, given in (("divided", divided), ("as it came", data)):
        task = build_task(recipe_of("labels"), student_of("labels"))
        fit(task, given, recipe_of("labels"), out=tmp_path / name, device="cpu")
        record = json.loads((tmp_path / name / "training.json").read_text())
        assert ("held_out" not in record["data"]) == ("data.split_seed" in record["unused_settings"]) == (given is data)
    assert json.loads((tmp_path / "divided" / "training.json").read_text())["data"]["held_out"] == {
        "val_fraction": 0.25, "seed": 7,
    }  # fmt: skip
    written = Recipe.load(tmp_path / "divided" / "recipe.yaml")
    assert set(differences(written, Recipe.load(tmp_path / "as it came" / "recipe.yaml"))) == {
        "data.val_fraction", "data.split_seed",
    }  # fmt: skip

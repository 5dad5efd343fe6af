"""What a task was given, what the recipe says, and what is written down."""

import ast
import re
from types import SimpleNamespace

import pytest

from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import Teacher
from tests.train import tiny


def taught(**settings: object) -> DistillationTask:
    return DistillationTask(tiny.student(), Teacher(tiny.TinyConvnet(), name="tiny"), tiny.processor(), **settings)


def test_a_task_that_was_given_nothing_trains_as_the_recipe_says() -> None:
    recipe = Recipe().with_settings({"distillation.kind": "soft", "loss": "bce", "label_smoothing": 0.0})
    task = taught()
    settled = task.settle(recipe)
    assert task.distillation == Distillation(kind="soft", temperature=3.0, weight=0.1)
    assert (task.loss, task.label_smoothing, settled.distillation) == ("bce", 0.0, recipe.distillation)


def test_a_task_that_contradicts_its_recipe_is_refused_before_a_folder_is_made(tmp_path) -> None:
    how = Distillation(kind="hard", weight=0.9)
    recipe = tiny.recipe(distillation=Distillation(kind="soft"))
    with pytest.raises(ValueError, match=r"distillation\.kind=soft.*was given distillation\.kind=hard") as caught:
        fit(taught(distillation=how, label_smoothing=0.0), tiny.data(), recipe, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    remedy = ast.literal_eval(re.search(r"with_settings\((.*)\)\.$", str(caught.value))[1])
    recipe = recipe.with_settings(remedy)
    fit(taught(distillation=how, label_smoothing=0.0), tiny.data(), recipe, out=tmp_path / "run", device="cpu")
    written = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert (written.distillation, written.label_smoothing, written.teacher) == (how, 0.0, ("tiny",))


def test_labels_of_another_kind_are_refused() -> None:
    data = SimpleNamespace(problem_type="multi_label_classification", train=tiny.data().train)
    with pytest.raises(ValueError, match="one class per image"):
        taught().check(data, Recipe())
    task = ClassificationTask(tiny.student(), tiny.processor(), problem_type="regression")
    with pytest.raises(ValueError, match="Leave problem_type out"):
        task.check(data, Recipe())


def test_distillation_from_nobody_is_refused_before_a_folder_is_made(tmp_path) -> None:
    task = DistillationTask(tiny.student(), None, tiny.processor())
    with pytest.raises(ValueError, match="Received neither") as caught:
        fit(task, tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    assert not getattr(caught.value, "__notes__", [])

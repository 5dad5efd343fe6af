"""Training with token merging: the setting, what keeps it, what refuses it."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from deit.core.errors import UserError
from deit.models.classifier import open_classifier
from deit.models.deit import DeiTForImageClassificationWithTeacher
from deit.models.merging.blocks import MergingTransformer
from deit.models.merging.switch import merge_tokens
from deit.train.loop import fit
from deit.train.recipes.catalog import list_recipes, named_recipe
from deit.train.recipes.recipe import Recipe
from deit.train.run.identity import check_identity
from deit.train.students.deit import build_masked_student, build_student
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import Teacher
from tests.train import tiny

NAME = "deit-digits-distilled-patch8-32"  # 16 patches


def test_no_recipe_merges() -> None:
    assert Recipe().token_merging == 0
    assert not any(named_recipe(name).recipe.token_merging for name in list_recipes())


def test_the_setting_is_checked() -> None:
    assert Recipe().with_settings({"token_merging": "3"}).token_merging == 3
    with pytest.raises(ValueError, match="token_merging must lie between 0 and"):
        Recipe(token_merging=-1)
    with pytest.raises(ValueError, match="token_merging"):
        Recipe().with_settings({"token_merging": "1.5"})


def test_a_student_merges_as_the_recipe_says() -> None:
    plain, merging = (build_student(NAME, ["a", "b"], Recipe(token_merging=r)).model for r in (0, 3))
    assert merging.config.token_merging == {"r": 3}
    assert isinstance(merging.deit.trunk, MergingTransformer)
    assert not isinstance(plain.deit.trunk, MergingTransformer)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, merging.state_dict()[name])


def test_the_recipe_decides_about_a_checkpoint_and_says_so(tmp_path: Path) -> None:
    student = build_student(NAME, ["a", "b"], Recipe(token_merging=3))
    student.model.save_pretrained(tmp_path)
    for r in (0, 3):
        begun = build_student(None, ["a", "b"], Recipe(token_merging=r), init=tmp_path)
        assert begun.model.config.token_merging == ({"r": 3} if r else {})
        assert any("merges tokens" in note for note in begun.report.notes) == (not r)


def test_what_cannot_merge_is_refused_early() -> None:
    recipe = Recipe(token_merging=3)
    with pytest.raises(UserError, match=r"A training with masked images cannot merge tokens\. Pass token_merging=0"):
        build_masked_student(NAME, recipe)
    with pytest.raises(UserError, match="A student of timm cannot merge tokens"):
        build_student("timm/resnet18", ["a", "b"], recipe)


def convnet() -> Teacher:
    torch.manual_seed(1)
    names = [f"class {i}" for i in range(3)]
    return Teacher(tiny.TinyConvnet(), mean=tiny.MEAN, std=tiny.STD, image_size=(16, 16), name="net", label_names=names)


def run(out: Path, recipe: Recipe, *, r: int, cache: Any = None, teacher: Teacher | None = None) -> Any:
    model = merge_tokens(tiny.student(patch_size=4, encoder_stride=4, num_hidden_layers=3, drop_path_rate=0.1), r)
    task = DistillationTask(model, teacher, tiny.processor())
    return fit(task, tiny.data(), recipe, out=out, teacher_cache=cache)


def test_a_run_merges_and_its_model_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny.recipe()
    run(tmp_path / "merged", recipe, r=4, teacher=convnet(), cache=tmp_path / "cache")
    folder = tmp_path / "merged"
    assert json.loads((folder / "config.json").read_text())["token_merging"] == {"r": 4}
    assert json.loads((folder / "training.json").read_text())["recipe"]["token_merging"] == 4
    assert 'token_merging` of `config.json`: `{"r": 4}`' in (folder / "README.md").read_text()
    assert isinstance(open_classifier(folder).deit.trunk, MergingTransformer)

    # The teacher's answers do not depend on the student, so a run without merging reads the same cache.
    run(tmp_path / "plain", recipe, r=0, cache=tmp_path / "cache")
    assert "token_merging" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "merges" not in (tmp_path / "plain" / "README.md").read_text()

    with caplog.at_level(logging.WARNING):  # what was passed decides, and the log says so
        run(tmp_path / "passed", tiny.recipe(token_merging=2), r=0, cache=tmp_path / "cache")
    assert "The recipe has token_merging=2. Trains and records what was passed: none." in caplog.text


def test_a_state_from_before_the_setting_goes_on(tmp_path: Path) -> None:
    identity = {"student": {"hidden_size": 8, "token_merging": {}}}
    data = tiny.data()
    check_identity(identity, {"student": {"hidden_size": 8}}, data, tmp_path)
    with pytest.raises(UserError, match="token_merging"):
        check_identity({"student": {"token_merging": {"r": 2}}}, {"student": {}}, data, tmp_path)


def test_a_teacher_that_merges_has_another_fingerprint() -> None:
    model = tiny.student(patch_size=4, encoder_stride=4)
    names = [f"class {i}" for i in range(3)]

    def fingerprint(of: DeiTForImageClassificationWithTeacher) -> str:
        return Teacher(of, mean=tiny.MEAN, std=tiny.STD, image_size=(16, 16), label_names=names).fingerprint()

    before = fingerprint(model)
    assert fingerprint(merge_tokens(copy.deepcopy(model), 3)) != before
    assert fingerprint(merge_tokens(copy.deepcopy(model), 0)) == before

"""Every named recipe through the command: it starts with what it names, or says what it needs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import deit.cli.terminal.planned
import deit.cli.training.pretrain
import deit.cli.training.train
import deit.train.students.deit
import deit.train.trial
from deit.core.published import VARIANTS
from deit.planning import make_plan
from deit.planning.facts import Speed
from deit.train.recipes.catalog import list_recipes, named_recipe
from deit.train.recipes.recipe import Recipe
from deit.train.students import start
from deit.train.teachers import teacher
from tests.cli.conftest import RATE, SHORT, VARIANT, deit as command, is_refused, succeeds

DOCS = Path(__file__).parents[2] / "docs"
FAST = Speed(step=0.01, light_view=0.001, strong_view=0.001, evaluation=0.001)
START = ("student", "config", "image_size", "partial_patches", "init", "teacher")


class Started(Exception):  # noqa: N818  # not an error: the training would begin here
    """Where the first step would be taken."""


@pytest.fixture
def dry(monkeypatch, tmp_path) -> Any:
    """Runs a command up to its first step, without hub and without memory for the weights."""
    found: dict[str, Any] = {}

    def stop(task: Any, images: Any, recipe: Any, *_: Any, **__: Any) -> None:
        found.update(task=task, recipe=recipe)
        raise Started

    def without_hub(function: Any) -> Any:
        def opened(names: Any, *args: Any) -> Any:
            if any(
                str(name).startswith(("facebook/", "timm/")) for name in ([names] if isinstance(names, str) else names)
            ):
                raise OSError("The hub cannot be reached.")
            return function(names, *args)

        return opened

    monkeypatch.setattr(start, "open_checkpoint", without_hub(start.open_checkpoint))
    monkeypatch.setattr(teacher, "open_teachers", without_hub(teacher.open_teachers))
    for name in ("build_student", "build_masked_student"):
        build = getattr(deit.train.students.deit, name)

        def on_meta(*args: Any, build: Any = build, **options: Any) -> Any:
            with torch.device("meta"):
                return build(*args, **options)

        for module in (deit.train.students.deit, deit.train.trial):
            monkeypatch.setattr(module, name, on_meta)
    monkeypatch.setattr(deit.cli.training.train, "run_fit", stop)
    monkeypatch.setattr(deit.cli.terminal.planned, "run_fit", stop)
    monkeypatch.setattr(make_plan, "measure", lambda *_, **__: FAST)
    monkeypatch.setattr(deit.cli.training.pretrain, "run_fit", stop)

    def run(*arguments: object) -> dict[str, Any]:
        found.clear()
        result = command(*arguments, "--out", tmp_path / "run")
        return {"result": result, **found}

    return run


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_starts_with_what_it_names_or_says_what_it_needs(name, dry, photos) -> None:
    named = named_recipe(name)
    run = dry(named.verb, photos, "--recipe", name)
    if named.init or named.teacher:
        assert "task" not in run
        needed = named.recipe.init_made_by or named.recipe.init or named.recipe.teacher[0]
        assert run["result"].exit_code == 2
        last = run["result"].stderr.strip().splitlines()[-1]
        assert last.startswith("Error: The recipe ")
        assert needed in last
        assert "Checking images" not in run["result"].output
        assert ("--init" if named.init else "--teacher") in last
        return
    assert isinstance(run["result"].exception, Started), run["result"].output
    assert {key: getattr(run["recipe"], key) for key in START} == {key: getattr(named.recipe, key) for key in START}
    config, variant = run["task"].student.config, VARIANTS[named.student]
    assert (config.hidden_size, config.num_hidden_layers, config.model_type) == (
        variant.hidden_size, variant.depth, variant.model_type,
    )  # fmt: skip
    assert config.image_size == named.image_size
    assert run["task"].processor.output_size == (named.image_size,) * 2
    assert f"Student: {named.student}." in " ".join(run["result"].output.split())
    assert f"Input: {named.image_size} x {named.image_size} pixels" in run["result"].output


@pytest.mark.parametrize("name", ["deit-tiny-distilled", "deit-base-distilled-384"])
def test_a_teacher_can_be_done_without_by_name_alone(name, dry, photos) -> None:
    run = dry("train", photos, "--recipe", name, "--set", "teacher=", "--set", "init=")
    assert isinstance(run["result"].exception, Started)
    assert (run["recipe"].teacher, run["recipe"].init, run["task"].teacher) == ((), "", None)


def test_options_win_over_the_recipe(dry, photos) -> None:
    student = ("--student", VARIANT)
    run = dry("train", photos, "--recipe", "small-data-cpu", *student)
    assert (run["recipe"].student, run["recipe"].image_size) == (VARIANT, 32)  # of another size: it brings its own
    run = dry("train", photos, "--recipe", "small-data-cpu", "--student", "deit-small-distilled-patch16-224")
    assert run["recipe"].image_size == 112
    run = dry("train", photos, "--recipe", "small-data-cpu", "--image-size", 64)
    assert run["task"].student.config.image_size == 64
    run = dry("train", photos, "--recipe", "small-data-cpu", "--student", "timm/test_resnet")
    assert (run["recipe"].image_size, run["task"].processor.output_size) == (112, (112, 112))


def test_a_size_that_leaves_pixels_over_is_the_recipes_alone(dry, photos) -> None:
    run = dry("train", photos, "--recipe", "deit3-huge", "--image-size", 160)
    is_refused(run["result"], "--image-size 160 is not a multiple of patch_size 14")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--recipe", "fine-tune", "--student", VARIANT), ("starts from facebook/deit-small", "another architecture")),
        (("--recipe", "deit-tiny-distilled", "--student", "deit-tiny-patch16-224"), ("distillation head",)),
        (("--recipe", "simmim-100"), ("simmim-100 is a recipe of deit pretrain",)),
        (("--set", "optimizer.lr=5e-6"), ("schedule.min_lr", "must be at most optimizer.lr")),
        (("--set", "schedule.min_lr=1e-3"), ("schedule.min_lr", "must be at most optimizer.lr")),
        (("--set", "schedule.epochs=3"), ("warmup_epochs must lie in [0, 3]",)),
    ],
    ids=str,
)
def test_what_cannot_go_together_is_refused_before_images_are_read(options, parts, dry, tmp_path) -> None:
    run = dry("train", tmp_path / "no-images-here", *options)
    is_refused(run["result"], *parts)


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_recipe_of_a_run_repeats_it_and_an_old_one_still_resumes(photos, teacher, student, tmp_path) -> None:
    options = ("--init", student, "--teacher", teacher, *SHORT, "--set", "distillation.kind=soft")
    succeeds("train", photos, *options, "--out", tmp_path / "one")
    saved = yaml.safe_load((tmp_path / "one/recipe.yaml").read_text())
    assert saved["distillation"] | {"temperature": 3.0, "weight": 0.1} == saved["distillation"]
    assert (saved["init"], saved["teacher"]) == (str(student), [str(teacher)])
    printed = succeeds("train", photos, "--recipe", tmp_path / "one/recipe.yaml", "--out", tmp_path / "two").output
    assert "Distillation: soft, temperature 3, weight 0.1." in printed
    assert same_weights(tmp_path / "one", tmp_path / "two")
    # A run of before: its recipe does not say what it started from.
    for name in START:
        del saved[name]
    (tmp_path / "one/recipe.yaml").write_text(yaml.safe_dump(saved))
    shutil.rmtree(sorted((tmp_path / "one/state").glob("step-*"))[-1])
    (tmp_path / "one/model.safetensors").unlink()
    succeeds("train", photos, *options, "--out", tmp_path / "one", "--resume")
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert Recipe.load(tmp_path / "one/recipe.yaml").student == ""


def test_a_flat_rate_of_a_small_batch_is_scaled_said_and_recorded(photos, tmp_path) -> None:
    options = ("--student", VARIANT, "--epochs", 2, "--batch-size", 4)
    printed = " ".join(succeeds("train", photos, *options, "--out", tmp_path / "run").output.split())
    assert "Learning rate: from 1e-06 to 3.91e-06 in 0.2 epochs, then a cosine to 7.81e-08 until epoch 2." in printed
    assert "schedule.min_lr=1e-05 is not below the peak of batches of 4" in printed
    record = json.loads((tmp_path / "run/training.json").read_text())["learning_rate"]
    assert record["peak"] == pytest.approx(5e-4 * 4 / 512)
    assert record["end"] == pytest.approx(0.02 * record["peak"])
    assert record["first"] == record["start"] == 1e-6
    assert record["last"] < record["highest"] <= record["peak"]


@pytest.mark.parametrize("page", ["recipes.md", "training.md"])
def test_every_command_of_the_page_goes_on_to_its_first_step(page, dry, photos, teacher, monkeypatch, tmp_path) -> None:
    """As it stands, in a folder with the files that it names; a recipe of ImageNet is shown what it asks for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "DATA")
    shutil.copytree(photos, "IMAGES")
    shutil.copytree(teacher, "TEACHER")
    shutil.copytree(teacher, "teacher")
    blocks = re.findall(r"^```bash\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").strip().splitlines()]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line.replace("VARIANT", VARIANT).replace("1%", "50%"), comments=True)
        for letter in "AB":  # students of the page
            words = [VARIANT if word == letter else word for word in words]
        assert words.pop(0) == "deit"
        if words[0] == "recipes":
            to = words[words.index(">") + 1] if ">" in words else None
            text = succeeds(*(words[: words.index(">")] if to else words)).output
            if to:
                Path(to).write_text(text)
            continue
        assert words[words.index("--out") + 1]
        del words[words.index("--out") : words.index("--out") + 2]
        extra = ("--image-size", 32, *RATE) if VARIANT in words else ()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)  # a planned training begins with its plan
        run = dry(*words, *extra)
        if "--plan" in words:
            assert run["result"].exit_code == 0, run["result"].output
            continue
        assert isinstance(run["result"].exception, Started), f"{line}\n{run['result'].output}"

"""`deit recipes`: the list, one recipe, and settings to edit."""

from __future__ import annotations

import json

import pytest

from deit.train.recipes.catalog import list_recipes, named_recipe, open_recipe
from deit.train.recipes.recipe import Recipe
from tests.cli.conftest import deit, is_refused, succeeds


def test_the_list_has_each_recipe_in_a_line_with_nothing_cut():
    lines = succeeds("recipes").output.splitlines()
    assert lines[0].split() == ["name", "epochs", "pixels", "top-1", "student"]
    assert [line.split()[0] for line in lines[1:-1]] == list_recipes()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert rows["deit-small-distilled-1000"] == ["1000", "224", "82.6", "deit-small-distilled-patch16-224"]
    assert rows["deit3-base"] == ["800", "192", "82.8", "deit3-base-patch16-224"]
    assert rows["fine-tune"][2] == "-"
    assert max(map(len, lines)) <= 80  # of a terminal
    assert "deit recipes NAME" in lines[-1]


def test_one_recipe_is_shown_with_command_hardware_time_number_and_settings():
    text = succeeds("recipes", "deit-base").output
    for part in (
        "53 hours on 8 GPUs, 37 hours on 16",
        "2 machines x 8 GPUs x 64 images",
        "deit train DATA --recipe deit-base --out OUT",
        "81.8 %",
        "table",
        "deit-base-original: schedule.updates=original",
        "batch_size: 1024",
    ):
        assert part in text


def test_the_settings_alone_are_a_file_that_train_can_read(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(succeeds("recipes", "deit3-large-original", "--yaml").output)
    assert open_recipe(file) == named_recipe("deit3-large-original").recipe


def test_json_holds_every_recipe_and_every_fact():
    listed = json.loads(succeeds("recipes", "--json").output)
    assert [item["name"] for item in listed] == list_recipes()
    one = json.loads(succeeds("recipes", "cars", "--json").output)
    assert one in listed
    assert (one["top1"], one["init"]) == (92.1, "facebook/deit-base-patch16-224")
    assert Recipe.from_dict(one["recipe"]) == named_recipe("cars").recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deit-smal"], "Unknown recipe 'deit-smal'. Did you mean 'deit-small'?"),
        (["--yaml"], "--yaml needs the name of a recipe"),
        (["deit-small", "--yaml", "--json"], "Received both"),
        (["fine-tune-original"], "has no original form"),
    ],
    ids=lambda v: v if isinstance(v, str) else "_".join(v),
)
def test_a_mistake_is_one_line(arguments, message):
    is_refused(deit("recipes", *arguments), message)

"""Recipes from outside: read within limits, refused in one line."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from deit.core.errors import DamagedFileError
from deit.train.recipes.recipe import Recipe


def laughs(depth: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join([*lines, f"seed: *a{depth - 1}"])


HOSTILE = {
    "anchors": (laughs(30), r"uses an alias \(\*a0\)"),
    "an anchor inside itself": ("seed: &a [*a]", "uses an alias"),
    "merged keys": ("a: &a {x: 1}\nb: {<<: *a}", "uses an alias"),
    "deep": ("seed: " + "[" * 50_000, "nested more than 20 levels deep"),
    "indented": ("".join(" " * i + "a:\n" for i in range(200)), "nested more than 20 levels deep"),
    "code": ('seed: !!python/object/apply:os.system ["touch executed"]', "is damaged or is not a recipe"),
    "digits": ("seed: " + "9" * 5000, "a value of 5000 characters"),
    "base 60": ("seed: " + "1:" * 5000 + "1", "a value of 10001 characters"),
    "large": ("a: 1\n" * 100_000, "more than 262144"),
    "cut": ("a: [1,", "is damaged or is not a recipe"),
    "no mapping": ("- 1", "Received: list"),
    "nothing": ("", "Received: NoneType"),
    "a date": ("seed: 2020-99-99", "is damaged or is not a recipe"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_in_one_line(tmp_path, kind):
    text, message = HOSTILE[kind]
    (tmp_path / "recipe.yaml").write_text(text)
    tracemalloc.start()
    with pytest.raises(DamagedFileError, match=message) as error:
        Recipe.load(tmp_path / "recipe.yaml")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
    assert not os.path.exists("executed")


def test_a_long_value_is_named_by_its_beginning(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"seed: '{'x' * 100_000}'")
    with pytest.raises(ValueError, match="seed must be like") as error:
        Recipe.load(tmp_path / "recipe.yaml")
    assert len(str(error.value)) < 600


def test_a_recipe_as_it_is_written_is_read(tmp_path):
    Recipe().save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe()

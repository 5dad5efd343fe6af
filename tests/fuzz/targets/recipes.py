"""Recipes in YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tests.fuzz.changes import of_bytes, of_values
from tests.fuzz.driver import Target


def _read(data: bytes, folder: Path) -> None:
    from deit.cli.terminal.settings import open_named_recipe
    from deit.train.recipes.recipe import Recipe, differences

    path = folder / "recipe.yaml"
    path.write_bytes(data)
    recipe = open_named_recipe(str(path), "train")
    recipe.save(path)
    changed = differences(recipe, Recipe.load(path))
    assert not changed, f"A recipe is another one when it was saved: {changed}"


def _change(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    import yaml

    if random.randrange(5):
        try:
            return yaml.safe_dump(of_values(random, yaml.safe_load(data))).encode("utf-8", "surrogatepass")
        except Exception:  # noqa: BLE001  # no YAML any more, or a value that it cannot write
            pass
    return of_bytes(random, data, others)


def _seeds() -> Mapping[str, bytes]:
    from deit.train.recipes.catalog import list_recipes, named_recipe

    names = list_recipes()
    chosen = [names[0], names[len(names) // 2], names[-1]]
    short = {"short": b"batch_size: 8\naugment: {mixup_alpha: 0.5}\n"}
    return {name: named_recipe(name).recipe.to_yaml().encode() for name in chosen} | short


TARGETS = (Target(name="recipes", read=_read, change=_change, seeds=_seeds),)

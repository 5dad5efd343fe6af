"""Finds recipes by name. To add one, add a `NamedRecipe` to the `RECIPES` of a file in this folder.

The table of `docs/recipes.md` lists the same recipes; a test compares the two.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path

from deit.core.errors import UserError
from deit.train.recipes import deit, deit3, simmim, small_data
from deit.train.recipes.named_recipe import NamedRecipe
from deit.train.recipes.recipe import Recipe

ORIGINAL = "-original"

_ALL = (*deit.RECIPES, *deit3.RECIPES, *deit.TRANSFER_RECIPES, *simmim.RECIPES, *small_data.RECIPES)
_BY_NAME = {named.name: named for named in _ALL}


def list_recipes() -> list[str]:
    """Returns the names of the recipes. Most also exist with `-original` appended; see `named_recipe`.

    Examples:
        >>> list_recipes()[:3]
        ['deit-tiny', 'deit-small', 'deit-base']
    """
    return list(_BY_NAME)


def named_recipe(name: str) -> NamedRecipe:
    """Returns a named recipe.

    Args:
        name: One of `list_recipes()`. With `-original` appended, the recipe reproduces the paper's code,
            including its mistakes; see `NamedRecipe.original`.

    Raises:
        ValueError: The recipe does not exist, or no original code exists for it.

    Examples:
        >>> named_recipe("deit-small").recipe.batch_size
        1024
    """
    plain = name.removesuffix(ORIGINAL)
    if plain not in _BY_NAME:
        near = difflib.get_close_matches(plain, _BY_NAME, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"Unknown recipe {name!r}.{hint} `deit recipes` lists all of them.")
    found = _BY_NAME[plain]
    if plain == name:
        return found
    if not found.original:
        raise UserError(f"The recipe {plain!r} has no original form: it has no published code. Received: {name!r}.")
    return dataclasses.replace(
        found,
        name=name,
        summary=f"{found.summary} Reproduces the original code.",
        recipe=found.recipe.with_settings(found.original),
    )


def open_recipe(name_or_path: str | Path) -> Recipe:
    """Returns a named recipe, or reads a recipe from a YAML file.

    Args:
        name_or_path: A YAML file, or a name that `named_recipe` knows. A file takes precedence.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The name is unknown, or the file does not hold a recipe.
    """
    if is_recipe_file(name_or_path):
        return Recipe.load(Path(name_or_path))
    return named_recipe(str(name_or_path)).recipe


def is_recipe_file(name_or_path: str | Path) -> bool:
    """Returns True if a text is a path, not the name of a recipe."""
    text, path = str(name_or_path), Path(name_or_path)
    return path.is_file() or path.suffix in (".yaml", ".yml") or os.sep in text or "/" in text

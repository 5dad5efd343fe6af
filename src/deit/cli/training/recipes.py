"""`deit recipes`: lists the training recipes, or shows one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deit.cli.terminal.console import reports_errors, say, say_json, say_lines
from deit.core.errors import UserError

if TYPE_CHECKING:
    from deit.train.recipes.named_recipe import NamedRecipe


@reports_errors
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Recipe to show. Without it, all are listed.")
    ] = None,
    yaml: Annotated[bool, typer.Option("--yaml", help="Print the settings of NAME as YAML.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the training recipes, or show one.

    To write your own: deit recipes NAME --yaml > my.yaml, edit it, then deit train DATA --recipe my.yaml
    """
    from deit.train.recipes.catalog import list_recipes, named_recipe

    if yaml and as_json:
        raise UserError("--yaml and --json cannot both be printed. Received both. Leave one out.")
    if name is None:
        if yaml:
            raise UserError("--yaml needs the name of a recipe. Received none. Use: deit recipes NAME --yaml.")
        _list([named_recipe(each) for each in list_recipes()], as_json=as_json)
        return
    found = named_recipe(name)
    if yaml:
        say_lines(found.recipe.to_yaml())
    elif as_json:
        say_json(found.to_dict())
    else:
        _show(found)


def _list(found: list[NamedRecipe], *, as_json: bool) -> None:
    if as_json:
        say_json([named.to_dict() for named in found])
        return
    rows = [("name", "epochs", "pixels", "top-1", "student")]
    for n in found:
        top1 = "-" if n.top1 is None else f"{n.top1:.1f}"
        rows.append((n.name, str(n.recipe.schedule.epochs), str(n.image_size), top1, n.student))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # plain text: a table that fits the terminal would cut names that are there to be copied
        name, *numbers, student = [
            text.rjust(w) if 0 < i < 4 else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        say(f"{name}  {' '.join(numbers)}  {student}".rstrip())
    say("Details: deit recipes NAME. Top-1 in %, as published; not measured here.")


def _show(named: NamedRecipe) -> None:
    top1 = "none" if named.top1 is None else f"{named.top1} %"
    facts = [
        ("name", named.name),
        ("summary", named.summary),
        ("student", f"{named.student}, {named.image_size} pixels"),
        ("starts from", named.init or "random weights"),
        ("teacher", named.teacher or "none"),
        ("command", named.command),
        ("hardware", named.hardware),
        ("time", named.expected_time),
        ("top-1", f"{top1}. {named.top1_note}"),
        ("source", named.source),
        *(("note", note) for note in named.notes),
    ]
    if named.original and not named.name.endswith("-original"):
        changes = ", ".join(f"{key}={value}" for key, value in named.original.items())
        facts.append(("as the original", f"{named.name}-original: {changes}"))
    for label, text in facts:
        say(f"{label + ':':<17}{text}")
    say_lines(f"settings:\n\n{named.recipe.to_yaml()}")

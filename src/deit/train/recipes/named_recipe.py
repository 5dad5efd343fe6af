"""A recipe with a name, its facts and its command; `deit.train.recipes.recipe_table` lists them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deit.core.published import VARIANTS
from deit.train.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class NamedRecipe:
    """A recipe with all that is known about it.

    Attributes:
        name: As `deit train --recipe` or `deit pretrain --recipe` takes it.
        summary: What it trains, in a line.
        recipe: The hyper-parameters, with student, image size, weights to begin with and teacher.
        command: What to type. DATA and OUT are yours, HOST is the first of several machines. The batch size is the
            total, so that another number of GPUs gives the same training.
        hardware: What the published number was trained on, or what the recipe is meant for.
        expected_time: Published training time, or that there is none.
        top1: Published top-1 accuracy in percent; None where there is none.
        top1_note: What was measured, or why there is no number.
        source: Where the facts come from.
        notes: What was not published and what we chose; what else to know.
        verb: "train", or "pretrain" for masked images.
        original: Settings that bring back how the original code behaved; empty where there is no such code.
    """

    name: str
    summary: str
    recipe: Recipe
    command: str
    hardware: str
    expected_time: str
    top1: float | None
    top1_note: str
    source: str
    notes: tuple[str, ...] = ()
    verb: str = "train"
    original: Mapping[str, Any] = field(default_factory=dict)

    @property
    def student(self) -> str:
        """What is trained: a variant of this package."""
        return self.recipe.student

    @property
    def image_size(self) -> int:
        """Side of the training images in pixels."""
        return self.recipe.image_size

    @property
    def init(self) -> str | None:
        """The weights it starts from; None for random ones. In capitals: the model that another recipe makes."""
        made_by = self.recipe.init_made_by
        return made_by.upper() if made_by else self.recipe.init or None

    @property
    def teacher(self) -> str | None:
        """The teacher; None for labels alone."""
        return ", ".join(self.recipe.teacher) or None

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values."""
        start = {name: getattr(self, name) for name in ("student", "image_size", "init", "teacher")}
        return {**dataclasses.asdict(self), **start}


def _command(name: str, recipe: Recipe, *, verb: str, gpus: int, nodes: int) -> str:
    start = f"deit {verb}"
    if gpus > 1:
        others = f"--nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HOST " if nodes > 1 else ""
        start = f"torchrun {others}--nproc-per-node {gpus} -m deit {verb}"
    made_by = recipe.init_made_by
    given = [f"--init {made_by.upper()}"] if made_by else []
    return " ".join([start, "DATA", f"--recipe {name}", *given, "--out OUT"])


def name_recipe(
    name: str,
    student: str,
    settings: Mapping[str, Any],
    *,
    gpus: int = 1,
    nodes: int = 1,
    image_size: int = 0,
    init: str = "",
    teacher: str = "",
    verb: str = "train",
    **facts: Any,
) -> NamedRecipe:
    """Returns a named recipe, with its command, of a student, settings and facts.

    Args:
        name: Of the recipe.
        student: A variant of this package.
        settings: Dotted names; what they leave out is the default of `Recipe`.
        gpus: Of one machine, in the command.
        nodes: Machines, in the command.
        image_size: In pixels; 0 for the variant's own.
        init: See `Recipe`.
        teacher: See `Recipe`.
        verb: "train" or "pretrain".
        **facts: The other fields of `NamedRecipe`.
    """
    variant = VARIANTS[student]
    side = image_size or variant.image_size
    start = {"student": student, "image_size": side, "init": init, "teacher": teacher,
             "partial_patches": side % variant.patch_size > 0}  # fmt: skip
    recipe = Recipe().with_settings({**settings, **start})
    command = _command(name, recipe, verb=verb, gpus=gpus, nodes=nodes)
    return NamedRecipe(verb=verb, name=name, command=command, recipe=recipe, **facts)

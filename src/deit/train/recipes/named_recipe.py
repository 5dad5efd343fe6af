"""Defines `NamedRecipe`: a recipe with a name, the facts about it and the command that runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deit.core.published import VARIANTS
from deit.train.recipes.recipe import Recipe

NOT_PUBLISHED = "not published"


@dataclass(frozen=True, kw_only=True)
class NamedRecipe:
    """A recipe and the facts about it. `deit.train.recipes.catalog` lists all of them.

    Attributes:
        name: Name for `deit train --recipe` or `deit pretrain --recipe`.
        summary: One line: what it trains.
        recipe: The hyper-parameters, with student, image size, initial weights and teacher; see `recipe_of`.
        gpus: GPUs in each machine, for the command. The batch size is the total over all GPUs, so another number of
            GPUs gives the same training.
        nodes: Machines, for the command.
        hardware: The hardware behind the published number, or the hardware that the recipe is meant for.
        expected_time: Published training time.
        top1: Published top-1 accuracy in percent; None if there is none.
        top1_note: What `top1` was measured on, or why there is no number.
        source: Source of the facts.
        notes: Settings that were not published and what stands in for them; other remarks.
        verb: "train", or "pretrain" for masked images.
        original: Settings that reproduce the original code; empty if there is no such code.
    """

    name: str
    summary: str
    recipe: Recipe
    gpus: int = 1
    nodes: int = 1
    hardware: str = NOT_PUBLISHED
    expected_time: str = NOT_PUBLISHED
    top1: float | None = None
    top1_note: str
    source: str
    notes: tuple[str, ...] = ()
    verb: str = "train"
    original: Mapping[str, Any] = field(default_factory=dict)

    @property
    def student(self) -> str:
        """Variant of this package that is trained."""
        return self.recipe.student

    @property
    def image_size(self) -> int:
        """Side of the training images in pixels."""
        return self.recipe.image_size

    @property
    def init(self) -> str | None:
        """Initial weights; None for random ones. A name in capitals stands for the model of another recipe."""
        made_by = self.recipe.init_made_by
        return made_by.upper() if made_by else self.recipe.init or None

    @property
    def teacher(self) -> str | None:
        """Teacher; None if the student learns from labels alone."""
        return ", ".join(self.recipe.teacher) or None

    @property
    def command(self) -> str:
        """Command to type. DATA and OUT stand for your paths, HOST for the first of several machines."""
        start = f"deit {self.verb}"
        if self.gpus > 1:
            others = f"--nnodes {self.nodes} --rdzv-backend c10d --rdzv-endpoint HOST " if self.nodes > 1 else ""
            start = f"torchrun {others}--nproc-per-node {self.gpus} -m {start}"
        given = f" --init {self.init}" if self.recipe.init_made_by else ""
        return f"{start} DATA --recipe {self.name}{given} --out OUT"

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values."""
        worked_out = ("student", "image_size", "init", "teacher", "command")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in worked_out}}


def recipe_of(
    student: str, settings: Mapping[str, Any], *, image_size: int = 0, init: str = "", teacher: str = ""
) -> Recipe:
    """Returns the recipe of a named recipe.

    Args:
        student: A variant of this package.
        settings: Dotted names and values; all others are the defaults of `Recipe`.
        image_size: In pixels; 0 takes the variant's.
        init: See `Recipe`.
        teacher: See `Recipe`.
    """
    variant = VARIANTS[student]
    side = image_size or variant.image_size
    start = {"student": student, "image_size": side, "init": init, "teacher": teacher,
             "partial_patches": side % variant.patch_size > 0}  # fmt: skip
    return Recipe().with_settings({**settings, **start})

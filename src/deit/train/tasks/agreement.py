"""Makes the recipe of a training name what was passed to it: the student, the teacher and the division of the data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from deit.core.processing.image_processor import DeiTImageProcessor, evaluation_processor
from deit.core.published import VARIANTS
from deit.core.scores.metrics import MULTI_LABEL, SINGLE_LABEL
from deit.core.variants import closest_variant, fits_variant
from deit.data.sources import Data
from deit.models.pretrained import PreTrainedModel
from deit.train.recipes.recipe import Recipe
from deit.train.teachers.teacher import Teacher, TeacherEnsemble

logger = logging.getLogger(__name__)


def with_student(recipe: Recipe, student: nn.Module) -> Recipe:
    """Returns a recipe that names a student of this package: its variant, size, token merging and initial weights."""
    if not isinstance(student, PreTrainedModel):
        return recipe
    merged = student.config.token_merging.get("r", 0)
    if isinstance(merged, int) and merged != recipe.token_merging:  # a list is in the configuration alone
        recipe = _recorded(recipe, {"token_merging": merged})
    if recipe.config or recipe.partial_patches:
        return recipe
    begun_with = "" if recipe.init else student.name_or_path
    if begun_with or (recipe.init and not recipe.student):  # the architecture is that of the weights
        return _recorded(recipe, {"init": begun_with} if begun_with else {})
    config = student.config
    named = VARIANTS.get(recipe.student)
    settings: dict[str, Any] = {}
    if not (named and fits_variant(config.to_dict(), recipe.student)):
        settings["student"] = closest_variant(config.to_dict()) or ""
        named = VARIANTS.get(settings["student"])
    height, width = config.grid_image_size
    if named and height == width and height != (recipe.image_size or named.image_size):
        settings["image_size"] = height
    return _recorded(recipe, settings)


def with_teacher(recipe: Recipe, teacher: Teacher | TeacherEnsemble | None) -> Recipe:
    """Returns a recipe that names the teachers."""
    if teacher is None:
        return recipe
    members = teacher.teachers if isinstance(teacher, TeacherEnsemble) else (teacher,)
    names = tuple(member.name for member in members)
    same = [str(Path(name)) for name in recipe.teacher] == [str(Path(name)) for name in names]
    return recipe if same else _recorded(recipe, {"teacher": names})


def with_division(recipe: Recipe, data: Data) -> Recipe:
    """Returns a recipe with the share and the seed of the validation images that were held out of the data."""
    held_out = data.held_out
    if held_out is None:
        return recipe
    return _recorded(recipe, {"data.val_fraction": held_out.val_fraction, "data.split_seed": held_out.seed})


def _recorded(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Returns the recipe with settings of what was passed. Logs a note for each that the recipe had otherwise."""
    changed = recipe.with_settings(settings)
    for name in settings:
        old, new = recipe.setting(name), changed.setting(name)
        if old and old != new:
            logger.warning("The recipe has %s=%s. Trains and records what was passed: %s.", name, old, new or "none")
    return changed


def unused_settings(recipe: Recipe, student: nn.Module, processor: DeiTImageProcessor, data: Data) -> list[str]:
    """Returns the settings that a training does not use, because what was passed decides them.

    Args:
        recipe: Recipe of the training.
        student: Drop path and random weights of models of other libraries are their own.
        processor: Its crop is used; `crop_ratio` is unused if it gives another.
        data: Data that came divided have no share to hold out; `loss` is for one class per image.
    """
    ours = isinstance(student, PreTrainedModel)
    unused = [] if ours else ["drop_path_rate", "drop_path_shape"]
    if recipe.token_merging and not ours:
        unused.append("token_merging")
    if recipe.init or not ours:
        unused.append("initialization")
    expected = evaluation_processor(
        processor.output_size, crop_ratio=recipe.crop_ratio, mean=processor.channel_mean, std=processor.channel_std
    )
    names = ("size", "crop_size", "do_resize", "do_center_crop")
    if any(getattr(expected, name) != getattr(processor, name) for name in names):
        unused.append("crop_ratio")
    if data.problem_type != SINGLE_LABEL:  # see `problem_loss`; Mixup smooths several labels
        smoothed = data.problem_type == MULTI_LABEL and recipe.augment.mixes
        unused += ["loss"] if smoothed else ["loss", "label_smoothing"]
    if data.held_out is None:
        unused += ["data.val_fraction", "data.split_seed"]
    return unused

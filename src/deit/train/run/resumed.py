"""What may be another when a run goes on: what cannot change what was done, and how long it goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deit.core.errors import UserError
from deit.core.file_names import RECIPE_NAME
from deit.train.optimization import learning_rate
from deit.train.recipes.recipe import Recipe, differences, read_settings
from deit.train.recipes.values import flat

logger = logging.getLogger(__name__)

# Names of what a training state knows better: it has the student's sizes and weights, and the teacher's fingerprint.
_BY_CONTENT = {"student", "config", "image_size", "partial_patches", "init", "teacher"}
# No number of a run follows from these; the images that may become unreadable do not count backwards.
_FREE = {"num_workers", "keep_state", "data.max_bad_images", "masking.picture_steps", "masking.pictures"}
_EPOCHS = "schedule.epochs"

Changes = dict[str, list[Any]]  # name of a setting: what it was, what it is


def changed_settings(out: Path, recipe: Recipe) -> Changes:
    """Returns in which settings a recipe differs from that of the run in a folder; in none where there is no run.

    Raises:
        ValueError: In others than may change.
    """
    if not (out / RECIPE_NAME).is_file():
        return {}
    began = Recipe.load(out / RECIPE_NAME)
    # A setting that the file does not name came into being after the run began.
    compared = flat(read_settings(out / RECIPE_NAME)).keys() - _BY_CONTENT
    if "data.split_seed" not in compared:  # older files have the recipe's share and kind of labels, not the data's
        compared -= {"data.val_fraction", "data.problem_type"}
    other = [name for name in differences(began, recipe) if name in compared]
    refused = [name for name in other if name not in _FREE and name != _EPOCHS]
    if refused:
        raise UserError(
            f"The run in {out} has other settings: {', '.join(refused)}. Resume it with the same ones. What may change "
            f"is {_EPOCHS} and what no result follows from ({', '.join(sorted(_FREE))})."
        )
    old, new = flat(began.to_dict()), flat(recipe.to_dict())
    return {name: [old[name], new[name]] for name in other}


@dataclass
class Resumed:
    """Changes of settings in a run that goes on.

    Attributes:
        changes: All of them, each with the step after which it came, for records.
    """

    changes: list[dict[str, Any]] = field(default_factory=list)

    def take(self, out: Path, recipe: Recipe, *, step: int, steps_per_epoch: int) -> None:
        """Takes what is another now, tells what it does, and writes it into the recipe of the run.

        Args:
            out: Folder of the run.
            recipe: That it goes on with.
            step: Steps done.
            steps_per_epoch: Of the run.

        Raises:
            ValueError: The run is longer already; or see `changed_settings`.
        """
        new = changed_settings(out, recipe)
        if not new:
            return
        for name, (old, value) in new.items():
            if name == _EPOCHS:
                logger.warning("%s", _other_length(old, value, recipe, step, steps_per_epoch))
            else:
                logger.warning("The run goes on with %s=%s, %s before; no result follows from it.", name, value, old)
        self.changes.append({"after_step": step, "settings": new})
        recipe.save(out / RECIPE_NAME)


def _other_length(old: int, new: int, recipe: Recipe, step: int, steps_per_epoch: int) -> str:
    if step > new * steps_per_epoch:
        raise UserError(
            f"The run has done {step} steps of {steps_per_epoch} an epoch, more than {_EPOCHS}={new} has. Pass "
            f"{-(-step // steps_per_epoch)} or more."
        )
    before, after = (
        learning_rate(step, steps_per_epoch=steps_per_epoch, recipe=recipe.with_settings({_EPOCHS: epochs}))
        for epochs in (old, new)
    )
    return (
        f"The run goes on to epoch {new} in place of {old}. What was done stays; from step {step} on the learning rate "
        f"is that of the other schedule ({after:.3g}, {before:.3g} before), whose warm-up of "
        f"{recipe.schedule.warmup_epochs:g} stays as the run began with it. So the result is not that of a run which "
        f"was meant for {new} from its beginning."
    )

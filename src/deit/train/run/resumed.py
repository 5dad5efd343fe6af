"""What may be another when a run goes on: what cannot change what was done, and how long it goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from deit.core.errors import DamagedFileError, UserError, shown
from deit.core.file_names import RECIPE_NAME, STATE_NAME
from deit.runtime.auto_precision import TRAINING, PrecisionChoice, choose_precision
from deit.runtime.devices import AUTO, PRECISIONS, cpu_features
from deit.train.optimization import learning_rate
from deit.train.recipes.recipe import Recipe, differences, read_settings
from deit.train.recipes.values import flat
from deit.train.run.state import newest_values

logger = logging.getLogger(__name__)

# Names of what a training state knows better: it has the student's sizes and weights, and the teacher's fingerprint.
_BY_CONTENT = {"student", "config", "image_size", "partial_patches", "init", "teacher"}
# No number of a run follows from these; the images that may become unreadable do not count backwards.
_FREE = {
    "num_workers", "keep_state", "kept_states", "data.max_bad_images", "masking.picture_steps", "masking.pictures",
}  # fmt: skip
_EPOCHS = "schedule.epochs"
_ENDS = ("schedule.patience", "schedule.stop_epoch")  # what else decides how long a run goes on

PRECISION = "precision"  # in a state and in training.json: what the recipe's stands for

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
    refused = [name for name in other if name not in _FREE and name != _EPOCHS and name not in _ENDS]
    old, new = flat(began.to_dict()), flat(recipe.to_dict())
    if refused:
        listed = ", ".join(f"{name} ({shown(old[name])}, now {shown(new[name])})" for name in refused)
        raise UserError(
            f"The run in {out} has other settings: {listed}. Resume it with the same ones. What may change "
            f"is {_EPOCHS}, {', '.join(_ENDS)} and what no result follows from ({', '.join(sorted(_FREE))})."
        )
    return {name: [old[name], new[name]] for name in other}


def precision_of_run(out: Path, recipe: Recipe, device: torch.device, *, resume: bool) -> PrecisionChoice:
    """Returns what the recipe's precision stands for; a run that goes on keeps what it began with, on any machine.

    Processes that work together must take the answer of the first one.

    Args:
        out: Folder of the run.
        recipe: Of the run.
        device: Where it computes.
        resume: Whether the run goes on.

    Raises:
        DamagedFileError: The state holds no precision but something else in its place.
        UserError: See `choose_precision`.
    """
    choice = _precision_of_run(out, recipe, device, resume=resume)
    logger.info("%s", choice.describe())
    return choice


def _precision_of_run(out: Path, recipe: Recipe, device: torch.device, *, resume: bool) -> PrecisionChoice:
    values = newest_values(out / STATE_NAME) if resume and recipe.precision == AUTO else {}
    if not values:
        return choose_precision(recipe.precision, device, TRAINING)
    if PRECISION not in values:  # of an older version, which knew these two
        fast = device.type == "cuda" or (device.type == "cpu" and "amx_bf16" in cpu_features())
        return PrecisionChoice(precision="bf16" if fast else "fp32", reason="by an older version", source="run")
    began = values[PRECISION]
    if not isinstance(began, dict) or began.get("precision") not in PRECISIONS[1:]:
        raise DamagedFileError(f"A training state in {out} names no precision. Received: {shown(began)}.")
    known = {each.name for each in fields(PrecisionChoice)}
    return PrecisionChoice(
        **{"reason": "", **{name: value for name, value in began.items() if name in known}, "source": "run"}
    )


@dataclass
class Resumed:
    """Changes of settings in a run that goes on.

    Attributes:
        changes: All of them, each with the step after which it came, for records.
        note: For the file of the recipe, see `Recipe.save`.
    """

    note: str = ""
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
        _refuse_shorter(recipe, step, steps_per_epoch)
        for name, (old, value) in new.items():
            if name == _EPOCHS:
                logger.warning("%s", _other_length(old, value, recipe, step, steps_per_epoch))
            elif name in _ENDS:
                logger.warning("The run goes on with %s=%s, %s before; what was done stays.", name, value, old)
            else:
                logger.warning("The run goes on with %s=%s, %s before; no result follows from it.", name, value, old)
        self.changes.append({"after_step": step, "settings": new})
        recipe.save(out / RECIPE_NAME, note=self.note)


def _refuse_shorter(recipe: Recipe, step: int, steps_per_epoch: int) -> None:
    last = recipe.schedule.last_epoch
    if step > last * steps_per_epoch:
        name = "schedule.stop_epoch" if recipe.schedule.stop_epoch else _EPOCHS
        raise UserError(
            f"The run has done {step} steps of {steps_per_epoch} an epoch, more than {name}={last} has. Pass "
            f"{-(-step // steps_per_epoch)} or more."
        )


def _other_length(old: int, new: int, recipe: Recipe, step: int, steps_per_epoch: int) -> str:
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

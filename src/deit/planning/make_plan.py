"""Makes a plan: looks at images and machine, measures a few real steps, chooses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from deit.core.errors import UserError
from deit.data.loader import default_workers
from deit.data.sources import Data
from deit.planning.choice import Measured, choose, guided, has_time_to_spare, minutes_for, rounded_up, views
from deit.planning.designs import Design, designs
from deit.planning.facts import DataFacts, Wishes
from deit.planning.look import look_at_data, look_at_machine, look_for_weights
from deit.planning.plan import Forecast, Plan
from deit.planning.speed import measure
from deit.planning.timing import Timing
from deit.runtime.auto_precision import TRAINING, choose_precision
from deit.runtime.devices import resolve
from deit.runtime.random_state import random_state_kept
from deit.train.recipes.fitting import NO_WARMUP, other_length
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.values import flat
from deit.train.teachers.teacher import Teacher, TeacherEnsemble, open_teachers

_MEASURING_SHARE = 0.06  # of the time, for all that is measured
_LONGEST_MEASURING = 20.0  # seconds


def plan(
    data: Data,
    settings: Mapping[str, Any] | None = None,
    *,
    minutes: float | None = None,
    device: str | torch.device | None = None,
    started: float | None = None,
    processes: int = 1,
    teachers: Teacher | TeacherEnsemble | None = None,
) -> Plan:
    """Chooses a training for images, this machine and a time. Trains a few steps to measure their speed.

    Args:
        data: The images, from `open_data`.
        settings: Settings of the recipe that stay as they are: dotted names and values, such as
            `{"student": "deit-tiny-distilled-patch16-224", "batch_size": 32}`.
        minutes: Time for all of the training, a teacher's included. None chooses by the number of images: 5 to 30 on a
            CPU, 3 to 20 on a GPU.
        device: Where the training will run; None takes the GPU if there is one.
        started: `time.monotonic()` of the moment from which the minutes count; None for now.
        processes: Processes that will share each step.
        teachers: The teacher in the settings, from `open_teachers`; None opens it.

    Raises:
        UserError: The images cannot be learnt from, the time is too short, or there is too little memory.

    Examples:
        >>> chosen = plan(open_data("photos"), minutes=5)
        >>> fit_plan(chosen, open_data("photos"), out="model")
    """
    began = time.monotonic() if started is None else started
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"minutes must be a positive number. Received: {minutes}.")
    facts = look_at_data(data)
    kept = Recipe().with_settings({**NO_WARMUP, **(settings or {})})
    machine = look_at_machine(device, kept.precision, processes)
    typed = flat(kept.to_dict())  # settings of the command line are texts
    wishes = Wishes(settings={name: typed[name] for name in settings or {}}, minutes=minutes)
    found = designs(facts, machine, wishes, look_for_weights(kept.init))
    budget = 60 * minutes_for(facts, machine, wishes)
    seconds = min(_MEASURING_SHARE * budget, _LONGEST_MEASURING) / len(found)
    place = resolve(device, kept.precision).device
    given = teachers or (open_teachers(list(kept.teacher)) if kept.teacher else None)
    measured: list[Measured] = []
    measured_with = {**NO_WARMUP, **wishes.settings, "precision": machine.precision}
    with random_state_kept():
        for design in found:
            measured.append(_measured(design, facts, data, place, measured_with, seconds, given))
            wishes = replace(wishes, spent=time.monotonic() - began)
            if not has_time_to_spare(facts, machine, wishes, measured[-1]):
                break
    return choose(facts, machine, wishes, measured)


def _measured(
    design: Design,
    facts: DataFacts,
    data: Data,
    device: torch.device,
    settings: Mapping[str, Any],
    seconds: float,
    given: Teacher | TeacherEnsemble | None,
) -> Measured:
    """Measures a student with the given teacher; or with the design's, whose training it measures too."""
    base = Recipe().with_settings(
        {
            **guided(design, settings),
            **settings,
            "student": design.student,
            "init": design.init,
            "image_size": design.image_size,
            "batch_size": min(design.batch_size, facts.labelled),
            "freeze": design.freeze,
        }
    )
    own = {name: value for name, value in settings.items() if name.startswith("augment.")}
    light, strong = (
        base.with_settings({**views(facts, design.image_size, strong=strong), **own}).augment
        for strong in (False, True)
    )
    if not design.teacher:
        speed = measure(base, data, device, light=light, strong=strong, seconds=seconds, teacher=given)
        return Measured(design=design, speed=speed)
    teacher = base.with_settings(
        {
            "student": design.teacher,
            "image_size": design.teacher_size,
            "batch_size": min(design.teacher_batch_size, facts.labelled),
            "init": design.teacher_init,
            "freeze": "",
        }
    )
    of_teacher = measure(teacher, data, device, light=light, strong=strong, seconds=seconds / 2)
    speed = measure(base, data, device, light=light, strong=strong, seconds=seconds / 2, teacher=teacher)
    return Measured(design=design, speed=speed, of_teacher=of_teacher)


def in_minutes(
    recipe: Recipe,
    data: Data,
    minutes: float | None,
    *,
    device: str | torch.device | None = None,
    started: float | None = None,
    teachers: Teacher | TeacherEnsemble | None = None,
) -> tuple[Recipe, Forecast]:
    """Returns a recipe with the number of epochs that a time allows by the measured speed, and the forecast.

    Args:
        recipe: With its student; all but the epochs and the warm-up stays.
        data: The images.
        minutes: Time for the training; None keeps the epochs.
        device: See `plan`.
        started: See `plan`.
        teachers: The teacher that is asked in each step; None where none is, or where a cache holds its answers.

    Raises:
        UserError: The time is too short for one pass.
    """
    began = time.monotonic() if started is None else started
    place = resolve(device, recipe.precision).device
    seconds = _LONGEST_MEASURING if minutes is None else min(_MEASURING_SHARE * 60 * minutes, _LONGEST_MEASURING)
    with random_state_kept():
        precision = choose_precision(recipe.precision, place, TRAINING).precision
        timed = recipe.with_settings({"precision": precision})
        shown = {"light": recipe.augment, "strong": recipe.augment}
        speed = measure(timed, data, place, **shown, seconds=seconds, teacher=teachers)
    timing = Timing(
        speed=speed,
        images=len(data.train.labels),
        val_images=len(data.val.labels),
        batch_size=recipe.batch_size,
        workers=default_workers(gpu=place.type == "cuda"),
        averaged=bool(recipe.ema_decay) and recipe.ema_use == "save",
        evaluated_each=recipe.eval_epochs,
    )
    spent = time.monotonic() - began
    epochs = recipe.schedule.epochs
    if minutes is not None:
        epochs = timing.epochs_in(60 * minutes - spent)
        if epochs < 1:
            least = rounded_up((timing.seconds(1) + spent) / 60)
            raise UserError(
                f"--minutes {minutes:g} is too short for one pass over the images. Pass --minutes {least:g} or more."
            )
        recipe = recipe.with_settings(other_length(recipe, epochs))
    return recipe, Forecast(planning=spent, student=timing.seconds(epochs), memory=speed.memory)

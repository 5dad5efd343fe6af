"""Chooses the recipe of a training from measured designs, with a reason for each choice. A pure function."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deit.core.errors import UserError
from deit.core.printable import counted
from deit.core.scores.metrics import SINGLE_LABEL
from deit.planning.designs import THUMBNAIL, Design
from deit.planning.facts import DataFacts, MachineFacts, Speed, Wishes
from deit.planning.plan import Forecast, Plan
from deit.planning.timing import Timing
from deit.train.recipes.recipe import Recipe

OFTEN = 40  # an image that is shown more often than this is varied strongly,
STEPS_FOR_STRONG = 4000  # if there are so many steps: shorter trainings learn less from strong views (docs/results.md)
_OFTEN_FOR_CONVNETS = 100  # a convnet gets strong views from here on, however few its steps (docs/results.md)
LEAST_EPOCHS = 3  # fewer teach nothing that a plan could stand behind
TEACHER_SHARE = 0.5  # of the time
_LEAST_EPOCHS_TAUGHT, _LEAST_STEPS_TAUGHT = 10, 1500  # of teacher and student; one of the two is enough
_PASSES = 8  # over images without a label: a plan uses no more of them than the time allows so many passes over,
_LEAST_UNLABELLED = 0.25  # but at least so many for each image with a label
_WANTED_STEPS = 2000  # of a student; a larger one is taken where it gets so many
_FEW = 5  # images of a class; fewer are worth a word
_OTHER_KIND = 1.5  # times as large
_UNEVEN = 3  # times as many images in the largest class as in the smallest
_LEAST_FOR_BEST = 500  # validation images; fewer choose an evaluation by chance (docs/results.md)
_ONE_SIDED = 0.15  # share of images that resemble mirror images; with less, left and right mean something
_LARGER = 2.0  # the next larger student costs about so many times as much
_WARM_UP = 0.1  # of the epochs

LIGHT: dict[str, Any] = {"augment.rand_augment": "", "augment.erase_rate": 0.0, "augment.mix_rate": 0.0}
STRONG: dict[str, Any] = {"augment.mixup_alpha": 0.0, "augment.mix_rate": 0.5}
_CROP_OF_THUMBNAILS, _CROP_OF_PHOTOS = (0.5, 1.0), (0.35, 1.0)
_RANDOM: dict[str, Any] = {
    "drop_path_rate": 0.0,
    "optimizer.reference_batch_size": 0,
    "optimizer.clip_grad": 1.0,
    "optimizer.lr": 1e-3,
}
_SCRATCH: dict[str, Any] = {**_RANDOM, "initialization": "mimetic"}
_CONVNET: dict[str, Any] = {**_RANDOM, "optimizer.lr": 2e-3}
_FINE_TUNED: dict[str, Any] = {
    "drop_path_rate": 0.0,
    "optimizer.reference_batch_size": 0,
    "optimizer.clip_grad": 1.0,
    "optimizer.lr": 2e-4,
    "optimizer.layer_decay": 0.75,
    "schedule.min_lr": 1e-6,
}
_PROBE = _RANDOM
_BEST: dict[str, Any] = {"keep": "best"}
_SOFT: dict[str, Any] = {
    "distillation.kind": "soft",
    "distillation.temperature": 1.0,
    "distillation.weight": 0.8,
}
# Of a student with a teacher of the plan: the convnet guides its patches, and answers to mixed images as well.
_GUIDED: dict[str, Any] = {"distillation.guidance": 10.0}
_MIXED: dict[str, Any] = {"augment.mix_rate": 0.5}
# Of a guided student that sees no image more often than _SELDOM times: larger steps.
_SELDOM = 25
_FASTER: dict[str, Any] = {"optimizer.lr": 2e-3}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A design with its speed.

    Attributes:
        design: The design.
        speed: Of the student's training.
        of_teacher: Of the teacher's training; None without a teacher.
    """

    design: Design
    speed: Speed
    of_teacher: Speed | None = None


def default_minutes(data: DataFacts, machine: MachineFacts) -> float:
    """Returns the minutes that a training may take where nobody said: 5 to 30 on a CPU, 3 to 20 on a GPU."""
    if machine.device == "cpu":
        return float(min(max(round(data.images / 200), 5), 30))
    return float(min(max(round(data.images / 2500), 3), 20))


def minutes_for(data: DataFacts, machine: MachineFacts, wishes: Wishes) -> float:
    """Returns the minutes that the user allows, else the default."""
    return default_minutes(data, machine) if wishes.minutes is None else wishes.minutes


def choose(
    data: DataFacts,
    machine: MachineFacts,
    wishes: Wishes,
    measured: Sequence[Measured],
) -> Plan:
    """Chooses a training.

    Args:
        data: The images.
        machine: The machine.
        wishes: What the user has chosen; it stays.
        measured: What was measured, from the smallest student to the largest.

    Returns:
        The plan. It sets what the wishes leave open.

    Raises:
        UserError: The time is too short to learn anything.
    """
    minutes = minutes_for(data, machine, wishes)
    left = 60 * minutes - wishes.spent
    best = next((each for each in reversed(measured) if _gets_steps(data, machine, left, each)), measured[0])
    design, speed, of_teacher = best.design, best.speed, best.of_teacher
    taught = _pays(data, machine, best, left)
    is_asked = taught or bool(wishes.settings.get("teacher"))
    if not is_asked:
        speed = dataclasses.replace(speed, step=speed.step - speed.answers, answers=0.0)
    reasons = [*_on_images(data), _on_design(data, machine, design)]
    teacher_recipe, teacher_seconds = None, 0.0
    if taught and of_teacher is not None:
        for_teacher = TEACHER_SHARE * left
        teacher_recipe, teacher_seconds, told = _teacher(data, machine, wishes, design, of_teacher, for_teacher)
        reasons.append(told)
    elif design.teacher:
        reasons.append(f"No teacher: {_duration(left)} are too few to train one first.")
    recipe, seconds, more = _student(data, machine, wishes, design, speed, left - teacher_seconds, taught=is_asked)
    if recipe.distillation.guidance and "distillation.guidance" not in wishes.settings:
        more.append("Guidance: the convnet's feature maps show the student's patches what belongs together.")
    memory = max(speed.memory, of_teacher.memory if of_teacher else 0)
    return Plan(
        recipe=recipe,
        teacher_recipe=teacher_recipe,
        reasons=(*reasons, *more),
        forecast=Forecast(planning=wishes.spent, teacher=teacher_seconds, student=seconds, memory=memory),
        minutes=minutes,
    )


def guided(design: Design, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings by which a student learns from the feature maps of the plan's teacher; none without one."""
    return {} if not design.teacher or wishes.get("token_merging") else _GUIDED


def has_time_to_spare(data: DataFacts, machine: MachineFacts, wishes: Wishes, measured: Measured) -> bool:
    """Whether a design gets so many steps that a larger student is worth measuring."""
    left = 60 * minutes_for(data, machine, wishes) - wishes.spent
    return _gets_steps(data, machine, left, measured, times=_LARGER)


def _gets_steps(data: DataFacts, machine: MachineFacts, left: float, measured: Measured, *, times: float = 1) -> bool:
    """Whether the student gets enough steps in its share of the time."""
    has_teacher = measured.of_teacher is not None
    timing = _timing(data, machine, measured.design.batch_size, measured.speed)
    share = 1 - TEACHER_SHARE if has_teacher else 1.0
    return timing.epochs_in(share * left) * timing.steps_per_epoch >= times * _WANTED_STEPS


def _pays(data: DataFacts, machine: MachineFacts, measured: Measured, left: float) -> bool:
    """Whether there is time for a teacher: it and the student get enough epochs of labeled images, or steps.

    With less, all of the time is worth more to the student: see docs/results.md, "What a plan chooses".
    """
    if measured.of_teacher is None:
        return False
    design, share = measured.design, TEACHER_SHARE * left
    teacher = _timing(data, machine, design.teacher_batch_size, measured.of_teacher)
    student = _timing(data, machine, design.batch_size, measured.speed)
    return all(
        epochs >= LEAST_EPOCHS and (epochs >= _LEAST_EPOCHS_TAUGHT or epochs * steps >= _LEAST_STEPS_TAUGHT)
        for epochs, steps in (
            (teacher.epochs_in(share), teacher.steps_per_epoch),
            (student.epochs_in(left - share), student.steps_per_epoch),
        )
    )


def _timing(data: DataFacts, machine: MachineFacts, batch: int, speed: Speed) -> Timing:
    """Returns the timing of a training on the labeled images."""
    return Timing(
        speed=speed, images=data.labelled, val_images=data.val_images, batch_size=batch, workers=machine.workers
    )


def _with_unlabelled(timing: Timing, data: DataFacts, wishes: Wishes, seconds: float) -> tuple[Timing, int]:
    """Returns the timing with as many images without a label as the time allows some passes over, and that number."""
    passes = _passes(wishes)

    def of(count: int) -> Timing:
        return dataclasses.replace(timing, images=data.labelled + count)

    def fits(count: int) -> bool:
        return dataclasses.replace(of(count), strong=False).epochs_in(seconds) >= passes

    if "data.max_unlabelled_images" in wishes.settings:  # the data have no more
        return of(data.unlabelled), data.unlabelled
    low = min(math.ceil(_LEAST_UNLABELLED * data.labelled), data.unlabelled)
    count = max(bisect.bisect_left(range(data.unlabelled), True, key=lambda i: not fits(i + 1)), low)
    return of(count), count


def _passes(wishes: Wishes) -> int:
    """Returns the passes that the time must allow over images without a label."""
    passes: int = wishes.settings.get("schedule.epochs", _PASSES)
    return passes


def _epochs(
    timing: Timing, seconds: float, minutes_spent: float, *, convnet: bool, wished: int = 0
) -> tuple[Timing, int]:
    """Returns the timing with the views that fit the number of epochs, and that number: `wished`, unless it is 0."""
    epochs = wished or timing.epochs_in(seconds)
    has_steps = epochs * timing.steps_per_epoch >= STEPS_FOR_STRONG
    if (convnet and epochs > _OFTEN_FOR_CONVNETS) or (epochs > OFTEN and has_steps):
        return timing, epochs
    timing = dataclasses.replace(timing, strong=False)
    if wished:
        return timing, wished
    epochs = timing.epochs_in(seconds)
    if has_steps:
        epochs = min(epochs, OFTEN)
    if epochs < LEAST_EPOCHS:
        least = (timing.seconds(LEAST_EPOCHS) + minutes_spent) / 60
        raise UserError(
            f"The time is too short: {counted(timing.images, 'image')} take {timing.epoch:.1f} s a pass here, and "
            f"{LEAST_EPOCHS} passes are the least that is useful. Pass --minutes {rounded_up(least):g} or more."
        )
    return timing, epochs


def rounded_up(minutes: float) -> float:
    """Returns minutes with a fifth more, rounded up to a number that can be typed."""
    scale = 10 if minutes < 10 else 1
    return math.ceil(minutes * 1.2 * scale) / scale


def _teacher(
    data: DataFacts, machine: MachineFacts, wishes: Wishes, design: Design, speed: Speed, seconds: float
) -> tuple[Recipe, float, str]:
    base = _timing(data, machine, design.teacher_batch_size, speed)
    timing, epochs = _epochs(base, seconds, wishes.spent, convnet=True)
    own = {"student": design.teacher, "image_size": design.teacher_size, "init": design.teacher_init}
    shared = {
        name: value
        for name, value in wishes.settings.items()
        if name.startswith(("data.", "augment.")) or name in ("seed", "precision", "num_workers")
    }
    settings = {
        **(_FINE_TUNED if design.teacher_init else _CONVNET),
        **_schedule(timing, epochs),
        **views(data, design.teacher_size, strong=timing.strong),
        "batch_size": design.teacher_batch_size,
        "precision": machine.precision,
        **_class_weights(data),
        **shared,
        **own,
    }
    told = (
        f"Teacher: {design.teacher} at {design.teacher_size} pixels, trained first for {counted(epochs, 'epoch')} "
        f"({'strong' if timing.strong else 'light'} views). A convnet learns more from few images, and its answers "
        "teach the student."
    )
    return Recipe().with_settings(settings), timing.seconds(epochs), told


def _student(
    data: DataFacts,
    machine: MachineFacts,
    wishes: Wishes,
    design: Design,
    speed: Speed,
    seconds: float,
    *,
    taught: bool,
) -> tuple[Recipe, float, list[str]]:
    batch = design.batch_size
    is_convnet = design.student.startswith("timm/")
    timing, unlabelled = _timing(data, machine, batch, speed), 0
    if taught:
        timing, unlabelled = _with_unlabelled(timing, data, wishes, seconds)
    wished = wishes.settings.get("schedule.epochs", 0)
    timing, epochs = _epochs(timing, seconds, wishes.spent, convnet=is_convnet, wished=wished)
    kind = _PROBE if design.freeze == "trunk" else _FINE_TUNED if design.init else _CONVNET if is_convnet else _SCRATCH
    if design.init and design.teacher and taught:  # what the convnet knows is far from such a start
        kind = _RANDOM
    guidance = guided(design, wishes.settings) if taught else {}
    settings: dict[str, Any] = {
        **kind,
        **_schedule(timing, epochs),
        **views(data, design.image_size, strong=timing.strong),
        **(_SOFT if taught else {}),
        **guidance,
        **(_MIXED if guidance else {}),
        **(_FASTER if guidance and epochs <= _SELDOM else {}),
        **({"data.max_unlabelled_images": unlabelled} if 0 < unlabelled < data.unlabelled else {}),
        "student": design.student,
        "init": design.init,
        "image_size": design.image_size,
        "batch_size": batch,
        "freeze": design.freeze,
        "precision": machine.precision,
        **_class_weights(data),
        **(_BEST if data.val_images >= _LEAST_FOR_BEST else {}),
    }
    recipe = Recipe().with_settings({**settings, **wishes.settings})
    reasons = _on_training(data, wishes, recipe, timing, epochs, seconds)
    kept = [name for name in wishes.settings if name in settings or not name.startswith("data.")]
    if kept:
        reasons.append(f"Kept as you set them: {', '.join(sorted(kept))}.")
    return recipe, timing.seconds(epochs), reasons


def _schedule(timing: Timing, epochs: int) -> dict[str, Any]:
    return {
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": round(_WARM_UP * epochs, 3),
        "eval_epochs": timing.eval_epochs(epochs),
        "crop_ratio": 1.0,
    }


def _class_weights(data: DataFacts) -> dict[str, Any]:
    """Returns the weights of uneven classes: square roots, which cost frequent classes little."""
    if data.problem_type != SINGLE_LABEL or data.largest_class < _UNEVEN * max(data.smallest_class, 1):
        return {}
    return {"class_weights": "sqrt"}


def views(data: DataFacts, side: int, *, strong: bool) -> Mapping[str, Any]:
    """Returns the settings of the views for an input of a size, light or strong."""
    flips = {"augment.flip_rate": 0.0} if _is_one_sided(data) else {}
    crop = _CROP_OF_THUMBNAILS if data.side <= max(THUMBNAIL, side) else _CROP_OF_PHOTOS
    return {**(STRONG if strong else LIGHT), "augment.crop_scale": crop, **flips}


def _is_one_sided(data: DataFacts) -> bool:
    return data.mirrored < _ONE_SIDED


def _on_images(data: DataFacts) -> list[str]:
    more = f", {data.unlabelled} more without a label" if data.unlabelled else ""
    told = [
        f"{counted(data.labelled, 'training image')} of {counted(data.classes, 'class', 'classes')}{more}, typically "
        f"{data.side} pixels on the shorter side."
    ]
    if data.unlabelled and max(data.side, data.unlabelled_side) > _OTHER_KIND * min(data.side, data.unlabelled_side):
        told.append(
            f"Images without a label are of another kind: typically {data.unlabelled_side} pixels. They are brought to "
            "the same input size. --set data.labelled_share=0.5 shows them less."
        )
    if data.problem_type == SINGLE_LABEL and data.smallest_class < _FEW:
        told.append(f"The smallest class has {counted(data.smallest_class, 'training image')}: expect little of it.")
    return told


def _on_training(
    data: DataFacts, wishes: Wishes, recipe: Recipe, timing: Timing, epochs: int, seconds: float
) -> list[str]:
    """Returns what a plan says of a training. Says nothing of `keep` and `class_weights` where the user set them."""
    steps, own = timing.steps_per_epoch, wishes.settings
    why = "as you set them," if "schedule.epochs" in own else f"what {_duration(seconds)} allow"
    yours = ", apart from what you set" if any(name.startswith("augment.") for name in own) else ""
    light = "crops and flips" if recipe.augment.flip_rate else "crops"
    light += ", every other batch mixed" if recipe.augment.mix_rate == _MIXED["augment.mix_rate"] else ""
    reasons = [
        f"{counted(epochs, 'epoch')} of {counted(steps, 'step')} in batches of {recipe.batch_size}: {why} "
        f"at {1000 * timing.epoch / steps:.0f} ms a step, measured here.",
        f"Views: {'strong (RandAugment, erasing, CutMix)' if timing.strong else f'light ({light})'}{yours}, because "
        f"each image is shown {counted(epochs, 'time')}, in {counted(epochs * steps, 'step')}.",
    ]
    used = recipe.data.max_unlabelled_images
    if 0 < used < data.unlabelled:
        reasons.append(
            f"Uses {used} of the {data.unlabelled} images without a label: more would be shown fewer than "
            f"{_passes(wishes)} times in this time. --set data.max_unlabelled_images=N sets another number."
        )
    if _is_one_sided(data) and not recipe.augment.flip_rate:
        reasons.append(
            f"No mirror images: only {100 * data.mirrored:.0f} % of a sample resemble a mirrored image most, so left "
            "and right mean something. --set augment.flip_rate=0.5 shows them."
        )
    if "class_weights" not in own and _class_weights(data):
        reasons.append(
            f"Class weights: {recipe.class_weights}, because classes have {data.smallest_class} to "
            f"{data.largest_class} images."
        )
    if "keep" not in own:
        best = recipe.keep == "best"
        reasons.append(
            f"The model will be that of the {'best evaluation' if best else 'last step'}: "
            f"{counted(data.val_images, 'validation image')} can{'' if best else 'not'} tell evaluations apart."
        )
    return reasons


def _on_design(data: DataFacts, machine: MachineFacts, design: Design) -> str:
    size = f" at {design.image_size} pixels" if design.image_size else ""
    start = f"starts from {design.init}" if design.init else "starts from random weights"
    where = f"{counted(machine.cores, 'core')}, {machine.precision}" if machine.device == "cpu" else machine.name
    return f"Student: {design.student or 'that of the weights'}{size}, which {start}. Machine: {where}."


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"

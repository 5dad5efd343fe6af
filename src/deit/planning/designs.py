"""Lists the trainings that are worth measuring: student, size of images, batch and teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deit.core.errors import UserError
from deit.core.published import VARIANTS
from deit.core.scores.metrics import SINGLE_LABEL
from deit.planning.facts import DataFacts, MachineFacts, Reachable, Wishes
from deit.planning.memory import training_memory

THUMBNAIL = 48  # pixels; images up to this size are trained at 32, where a patch of 16 would see almost nothing
_THUMBNAILS = ("deit-mini-distilled-patch4-32", "deit-micro-distilled-patch4-32")
_THUMBNAILS_GPU = ("deit-micro-distilled-patch4-32", "deit-tiny-distilled-patch4-32")
_PHOTOS = ("deit-mini-distilled-patch8-64", "deit-micro-distilled-patch8-64")
_PHOTOS_GPU = ("deit-tiny-distilled-patch16-224",)
_TEACHER, _TEACHER_GPU = "timm/resnet10t", "timm/resnet18"
# Small batches make many steps of few images. On a CPU they cost a student no more for each image (docs/training.md).
_BATCHES = (16, 32, 64)
_BATCHES_GPU = (32, 64, 128, 256)
_STEPS_PER_EPOCH = 40  # of a convnet, and of a student on a GPU
_STEPS_OF_STUDENT = 80  # on a CPU
_LEAST_BATCH = 8  # with fewer than four of the smallest batch
_MEMORY_SHARE = 0.7  # of what is free
_PUBLISHED_ON_CPU = 25_000_000  # parameters; larger published models are left to GPUs


@dataclass(frozen=True, kw_only=True)
class Design:
    """One training to be measured.

    Attributes:
        student: A variant of this package or `timm/NAME`; empty where the weights bring their architecture.
        init: Weights to start from; empty for random ones.
        image_size: Side of the input in pixels; 0 for the student's own.
        batch_size: Images in a step.
        teacher: `timm/NAME` of a convnet that is trained first; empty for none.
        teacher_size: Side of its input in pixels.
        teacher_batch_size: Images in a step of its training.
        teacher_init: Weights that it starts from; empty for random ones.
        freeze: See `Recipe`.
    """

    student: str
    init: str = ""
    image_size: int = 0
    batch_size: int = 64
    teacher: str = ""
    teacher_size: int = 0
    teacher_batch_size: int = 64
    teacher_init: str = ""
    freeze: str = ""


def designs(data: DataFacts, machine: MachineFacts, wishes: Wishes, reachable: Reachable) -> list[Design]:
    """Returns the trainings that are worth measuring, those of the smallest student first.

    Args:
        data: The images.
        machine: The machine.
        wishes: What the user has chosen.
        reachable: Published weights that are here.

    Raises:
        UserError: A batch of two images does not fit into memory.
    """
    chosen, on_gpu = wishes.settings, machine.device != "cpu"
    student, init, size = chosen.get("student", ""), chosen.get("init", ""), chosen.get("image_size", 0)
    of_teacher, batch = (
        chosen.get("batch_size") or _batch(data, machine, steps)
        for steps in (_STEPS_PER_EPOCH, _STEPS_PER_EPOCH if on_gpu else _STEPS_OF_STUDENT)
    )
    if init or student.startswith("timm/"):
        starts = [(student, init, size)]
    elif student:
        own = VARIANTS[student].image_size if student in VARIANTS else 0
        starts = [(student, "", size or _size_for(own, data.side, student))]
    elif "init" not in chosen and (published := _published(data, reachable, on_gpu)):
        starts = [(name, VARIANTS[name].source or "", size) for name in published]
    else:
        starts = [
            (name, "", size or _size_for(VARIANTS[name].image_size, data.side, name)) for name in _scratch(data, on_gpu)
        ]
    found = []
    for name, weights, side in starts:
        seen = side or (VARIANTS[name].image_size if name in VARIANTS else reachable.taught_side if weights else 0)
        teacher = _teacher(name, weights, seen, data, wishes, reachable, on_gpu)
        fitting = batch if "batch_size" in chosen else fitting_memory(name, side, batch, machine)
        found.append(
            Design(
                student=name, init=weights, image_size=side, batch_size=fitting, teacher=teacher,
                teacher_size=(seen or data.side) if teacher else 0,  # the student's: both see the same pixels
                teacher_batch_size=of_teacher if fitting == batch else min(of_teacher, fitting),
                teacher_init=teacher if teacher in reachable.convnets else "",
                freeze=chosen.get("freeze", ""),
            )
        )  # fmt: skip
    return found


def _batch(data: DataFacts, machine: MachineFacts, steps: int) -> int:
    """Returns a batch size of which an epoch has so many, within limits; even, and a multiple of the processes.

    On a CPU the epoch is that of the labeled images, however many others a teacher labels: see docs/results.md, "Few
    labels in two minutes". The teacher sees the labeled images alone, so no batch is larger than their number.
    """
    sizes, images = (_BATCHES, data.labelled) if machine.device == "cpu" else (_BATCHES_GPU, data.images)
    fitting = [size for size in sizes if images >= size * steps]
    size = max(fitting, default=sizes[0] if images >= 4 * sizes[0] else _LEAST_BATCH)
    multiple = math.lcm(2, machine.processes)
    return max(min(size, data.labelled) // multiple, 1) * multiple


def _size_for(own: int, side: int, student: str) -> int:
    """Returns the size at which a new student is trained: its own, or half where the images are no larger."""
    patch = VARIANTS[student].patch_size if student in VARIANTS else 16
    if not own or not side or side >= own:
        return own
    return max(-(-side // patch) * patch, 4 * patch)


def _published(data: DataFacts, reachable: Reachable, on_gpu: bool) -> list[str]:
    """Returns the published variants that are here and fit, the smallest first; thumbnails have no use for them."""
    if data.side <= THUMBNAIL:
        return []
    sizes = [n for n in reachable.students if on_gpu or (VARIANTS[n].parameters or 0) <= _PUBLISHED_ON_CPU]
    distilled = [name for name in sizes if VARIANTS[name].distilled]
    return distilled or sizes


def _scratch(data: DataFacts, on_gpu: bool) -> tuple[str, ...]:
    if data.side <= THUMBNAIL:
        return _THUMBNAILS_GPU if on_gpu else _THUMBNAILS
    return _PHOTOS_GPU if on_gpu else _PHOTOS


def _teacher(
    student: str, init: str, side: int, data: DataFacts, wishes: Wishes, reachable: Reachable, on_gpu: bool
) -> str:
    """Returns the convnet to train first, or "" for none.

    Weights that know photos need none. Those of a model for thumbnails know less than a convnet learns: see
    docs/results.md, "A start of one's own".
    """
    if "teacher" in wishes.settings or student.startswith("timm/") or data.problem_type != SINGLE_LABEL:
        return ""
    knows_photos = max(data.side, side) > THUMBNAIL or not reachable.taught_side
    if init and (knows_photos or wishes.settings.get("freeze")):
        return ""
    if student in VARIANTS and not VARIANTS[student].distilled:
        return ""
    if reachable.convnets:
        return reachable.convnets[0]
    return _TEACHER_GPU if on_gpu else _TEACHER


def fitting_memory(student: str, side: int, batch_size: int, machine: MachineFacts) -> int:
    """Returns a batch size whose training fits into memory: the one wished for, halved as often as needed.

    Raises:
        UserError: Two images are too many.
    """
    if student not in VARIANTS or not machine.memory:
        return batch_size
    size = batch_size
    while training_memory(student, size, side=side).total > _MEMORY_SHARE * machine.memory:
        if size <= 2:
            free, needed = machine.memory / 2**30, training_memory(student, 2, side=side).total / 2**30
            raise UserError(
                f"There is too little memory to train {student} at {side or VARIANTS[student].image_size} pixels: "
                f"{needed:.1f} GB are needed for 2 images and {free:.1f} GB are free. "
                "Pass a smaller --student or --image-size."
            )
        size //= 2
    return size

"""Trains a small DeiT on handwritten digits, from labels alone and with a convnet teacher, and compares the two.

The images are scikit-learn's handwritten digits, 1,797 scans of 8 x 8 pixels. Few labels, strong augmentation and a
small transformer show why the paper uses a teacher: a convnet has locality built in, a transformer must learn it from
examples, and here it has 10 of each digit. Distillation is soft: in few steps, the teacher's probabilities carry more
information than its first choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.files import replaced_file
from deit.core.scores.metrics import Scores
from deit.data.augment import Augmentation
from deit.data.sources import ArraySource, Data, Subset
from deit.inference.predictor import Classified, Predictor
from deit.train.build_task import build_task
from deit.train.loop import fit
from deit.train.progress import FitResult, StepEvent
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import DataOptions, Distillation, Optimizer, Schedule
from deit.train.students.deit import Student, build_student
from deit.train.teachers.teacher import Teacher, open_teacher

LABELS_PER_CLASS = 10
_DATA = DataOptions(labels_per_class=LABELS_PER_CLASS)
TEACHER = "timm/resnet10t"
STUDENT = "deit-digits-distilled-patch8-32"
IMAGE_SIZE = 32

OnStep = Callable[[str, StepEvent], None]


@dataclass(frozen=True, kw_only=True)
class Journey:
    """Results of the demo.

    Attributes:
        out: Folder with the three models.
        data: The labeled images and the test images.
        teacher: The convnet.
        alone: The student trained on labels.
        distilled: The same student, trained on labels and the teacher.
        held_out: The test image that was saved as a file and classified.
        held_out_label: Its true class.
        answer: The prediction of the saved model for it.
    """

    out: Path
    data: Data
    teacher: FitResult
    alone: FitResult
    distilled: FitResult
    held_out: Path
    held_out_label: str
    answer: Classified

    def table(self) -> list[tuple[str, str, float, float]]:
        """Returns rows of model, head, top-1 accuracy in percent and loss."""
        runs = (
            ("teacher", self.teacher),
            ("student, labels alone", self.alone),
            ("student, distilled", self.distilled),
        )
        return [(name, head, s.top1, s.loss) for name, run in runs for head, s in _in_reading_order(run.scores)]


def _in_reading_order(scores: dict[str, Scores]) -> list[tuple[str, Scores]]:
    return [(head, scores[head]) for head in ("class", "distillation", "both") if head in scores]


def demo_recipe(epochs: int, *, seed: int) -> Recipe:
    """Returns the recipe of both students and the teacher: the paper's, shortened, for 100 small images.

    Three settings differ. RandAugment has magnitude 6 and crops keep at least 60 %, because stronger views destroy a
    digit. There is no flip, because a mirrored 5 is no digit. There is no mixing, because blends of 8 x 8 scans teach
    little in a thousand steps.
    """
    return Recipe(
        batch_size=50,
        seed=seed,
        precision="fp32",  # the same on every machine
        drop_path_rate=0.0,
        crop_ratio=1.0,
        eval_epochs=max(epochs // 10, 1),
        num_workers=0,
        augment=Augmentation(crop_scale=(0.6, 1.0), flip_rate=0.0, rand_augment="rand-m6-mstd0.5-inc1", mix_rate=0.0),
        optimizer=Optimizer(lr=1.5e-3, reference_batch_size=0),
        schedule=Schedule(epochs=epochs, warmup_epochs=min(5, epochs)),
        distillation=Distillation(kind="soft", temperature=3.0, weight=0.5),
        data=_DATA,
    )


def digits_data(options: DataOptions = _DATA) -> Data:
    """Returns the digits: `options.labels_per_class` of each to learn from, all others to test on.

    `options.label_seed` chooses them; the recipe of the demo records both.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images: npt.NDArray[np.uint8] = np.round(digits.images * (255 / 16)).astype(np.uint8)
    source = ArraySource(images, digits.target)
    count, random = options.labels_per_class, np.random.default_rng(options.label_seed)
    order = [random.permutation(np.flatnonzero(source.labels == label)) for label in range(10)]
    labelled = np.sort(np.concatenate([members[:count] for members in order]))
    test = np.sort(np.concatenate([members[count:] for members in order]))
    return Data(train=Subset(source, labelled), val=Subset(source, test))


def run_journey(
    out: Path, *, seed: int = 0, teacher_epochs: int = 100, student_epochs: int = 500, on_step: OnStep | None = None
) -> Journey:
    """Trains teacher and students, saves them, and classifies one held-out image with the saved model.

    Both students have equal initial values, images in equal order, and equal steps.

    Args:
        out: New or empty folder.
        seed: Random seed of everything except the choice of the labeled images.
        teacher_epochs: Epochs of the teacher.
        student_epochs: Epochs of each student.
        on_step: Called after every step with the name of the run.

    Raises:
        FileExistsError: `out` holds files already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds files already. Pass a new folder.")
    recipe = demo_recipe(student_epochs, seed=seed)
    data = digits_data(recipe.data)
    classes = data.train.classes

    def train(name: str, recipe: Recipe, student: Student, teacher: Teacher | None = None) -> FitResult:
        watch = None if on_step is None else lambda event: on_step(name, event)
        task = build_task(recipe, student, teacher)
        return fit(task, data, recipe, out=out / name, device="cpu", on_step=watch)

    for_teacher = demo_recipe(teacher_epochs, seed=seed)
    convnet = build_student(TEACHER, classes, for_teacher, image_size=IMAGE_SIZE)
    taught = train("teacher", for_teacher, convnet)
    alone = train("student-alone", recipe, build_student(STUDENT, classes, recipe))
    distilled = train("student-distilled", recipe, build_student(STUDENT, classes, recipe), open_teacher(taught.out))

    held_out, label = _save_held_out(data, out, seed)
    answer = next(iter(Predictor.open(distilled.out, engine="torch").classify_each([held_out], top_k=3)))
    return Journey(
        out=out,
        data=data,
        teacher=taught,
        alone=alone,
        distilled=distilled,
        held_out=held_out,
        held_out_label=label,
        answer=answer,
    )


def _save_held_out(data: Data, out: Path, seed: int) -> tuple[Path, str]:
    index = int(np.random.default_rng(seed).integers(len(data.val.labels)))
    label = data.val.classes[int(data.val.labels[index])]
    path = out / f"held-out-digit-{label}.png"
    with replaced_file(path) as temporary:
        data.val.image(index).save(temporary, "PNG")
    return path, label

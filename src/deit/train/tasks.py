"""What is being learnt: a task holds the student and turns a batch into losses. The loop knows nothing else.

A task works in two steps. `prepare` turns what the loader gives into the tensors of a batch, once; `forward` turns
them, or an equal part of each, into losses, and is what may be compiled or shared among processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.core.images.reading import ImageError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.published import VARIANTS
from deit.core.scores.metrics import SINGLE_LABEL, evaluate
from deit.core.variants import closest_variant, fits_variant
from deit.data.few_labels import count_unlabelled
from deit.data.loader import EvaluationBatches
from deit.data.sources import Data, Source
from deit.models.classifier import CLASS, DISTILLATION, head_logits
from deit.models.losses import classification_loss, distillation_loss, label_weights, problem_loss
from deit.models.pretrained import PreTrainedModel
from deit.runtime.processes import Processes, current_processes
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation
from deit.train.teachers.cache import BatchPlace, TeacherCache
from deit.train.teachers.teacher import Teacher, TeacherEnsemble

logger = logging.getLogger(__name__)


class Task(nn.Module):
    """What the loop asks of a task; the answers here are those of a classifier that learns from labels.

    Args:
        student: Any module from pixels to outputs.
        processor: The preprocessing of the student: evaluation uses it whole, training its mean, std and size.

    Attributes:
        teacher: Whom the student learns from, if anyone.
        cache: Where the teacher's answers are recorded and read; None asks the teacher every time.
        picture_steps: Steps between two pictures; 0 for none but the last.
        left_out: Number of a validation image -> why this process could not read it when it scored last.
    """

    picture_steps = 0

    def __init__(self, student: nn.Module, processor: DeiTImageProcessor) -> None:
        super().__init__()
        self.student = student
        self.processor = processor
        self.teacher: Teacher | TeacherEnsemble | None = None
        self.cache: TeacherCache | None = None
        self.left_out: dict[int, str] = {}

    def settle(self, recipe: Recipe) -> Recipe:
        """Makes task and recipe say the same before a training.

        Takes from the recipe what the task was not given. Where the task was given something else, that is used, a
        note says so, and the recipe that is returned holds it, as it holds the student and the teacher that are here.

        Raises:
            ValueError: The settings of both do not fit together.
        """
        return recipe.with_settings({**_settings_of_student(self.student, recipe), **_names_of(self.teacher, recipe)})

    def check(self, data: Data, recipe: Recipe) -> None:
        """Checks, before a training, that the task can learn from the data in the way of the recipe.

        Raises:
            ValueError: It cannot.
        """
        if recipe.teacher:  # it would be left out without a word
            raise UserError(
                f"The recipe learns from the teacher {', '.join(recipe.teacher)}, and {type(self).__name__} has none. "
                'Pass a DistillationTask, or recipe.with_settings({"teacher": ()}) to learn from labels alone.'
            )
        unlabelled = count_unlabelled(data.train)
        if unlabelled:
            raise UserError(
                f"{unlabelled} of {len(data.train.labels)} training images have no label, and without a teacher "
                "nothing can be learnt from them. Pass a teacher, or leave them out."
            )

    def prepare(self, pixels: Tensor, targets: Tensor, place: BatchPlace | None = None) -> tuple[Tensor, ...]:
        """Returns the tensors of a batch, each (B, ...), in the order of `forward`'s arguments.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, (B, K) probabilities or marks, or (B,) numbers to regress.
            place: Which batch this is; the first of a training when None.
        """
        return pixels, targets

    def score(
        self,
        student: nn.Module,
        data: Data,
        device: torch.device,
        *,
        batch_size: int = 64,
        processes: Processes | None = None,
    ) -> dict[str, Any]:
        """Scores a student on the validation images that can be read, each head apart, in evaluation mode.

        Args:
            student: The task's own, or an average of it.
            data: Its validation images are used.
            device: Where the student is.
            batch_size: Images in a batch; the scores do not depend on it.
            processes: Those that share the images; each gets the scores of all.

        Raises:
            ImageError: None of them can be read.
        """
        processes = Processes() if processes is None else processes
        batches = EvaluationBatches(
            data.val, self.processor, batch_size, rank=processes.rank, world_size=processes.world_size
        )
        self.left_out = batches.left_out
        with evaluation_mode(student), torch.inference_mode():
            try:
                return self._score(student, batches, data.problem_type, device, processes)
            except UserError as error:  # no image was counted, which all processes find
                if not processes.any(bool(batches.left_out))[0]:
                    raise
                reason = next(iter(batches.left_out.values()), "another process says why")
                raise ImageError(f"No validation image can be read any more; the first: {reason}") from error

    def _score(
        self,
        student: nn.Module,
        batches: EvaluationBatches,
        problem_type: str,
        device: torch.device,
        processes: Processes,
    ) -> dict[str, Any]:
        def predict(pixels: Any) -> dict[str, Any]:
            heads = head_logits(student, torch.from_numpy(pixels).to(device))
            return {name: logits.float().cpu().numpy() for name, logits in heads.items()}

        return evaluate(predict, batches, problem_type=problem_type, combine=processes.sum)

    def draw(self, student: nn.Module, images: Source, device: torch.device, folder: Path, step: int | None) -> None:
        """Draws what the student makes of some images, where a picture says more than scores; a classifier: nothing.

        Args:
            student: The task's own, or an average of it.
            images: For validation.
            device: Where the student is.
            folder: Of the run.
            step: How many were done; None at the end.
        """


def _settings_of_student(student: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Returns what a recipe must say to build this student, where it says otherwise; nothing of other libraries'."""
    if not isinstance(student, PreTrainedModel) or recipe.config or recipe.partial_patches:
        return {}
    begun_with = "" if recipe.init else student.name_or_path
    if begun_with or (recipe.init and not recipe.student):  # the architecture is that of the weights
        return {"init": begun_with} if begun_with else {}
    config = student.config
    named = VARIANTS.get(recipe.student)
    settings: dict[str, Any] = {}
    if not (named and fits_variant(config.to_dict(), recipe.student)):
        settings["student"] = closest_variant(config.to_dict()) or ""
        named = VARIANTS.get(settings["student"])
    height, width = config.grid_image_size
    if named and height == width and height != (recipe.image_size or named.image_size):
        settings["image_size"] = height
    return {name: value for name, value in settings.items() if value != getattr(recipe, name)}


def _names_of(teacher: Teacher | TeacherEnsemble | None, recipe: Recipe) -> dict[str, Any]:
    """Returns the teachers that a recipe must name, where it names none or others."""
    if teacher is None:
        return {}
    members = teacher.teachers if isinstance(teacher, TeacherEnsemble) else (teacher,)
    names = tuple(member.name for member in members)
    same = [str(Path(name)) for name in recipe.teacher] == [str(Path(name)) for name in names]
    return {} if same else {"teacher": names}


def chosen(name: str, given: Any, in_recipe: Any) -> Any:
    """Returns a setting of a task: what it was given, else the recipe's; says so where they differ."""
    if given is None:
        return in_recipe
    if given != in_recipe:
        logger.warning("The task's %s is used (%s), not the recipe's (%s).", name, given, in_recipe)
    return given


@contextlib.contextmanager
def evaluation_mode(student: nn.Module) -> Iterator[None]:
    """Switches off what a student does in training alone, for a block."""
    was_training = student.training
    student.eval()
    try:
        yield
    finally:
        student.train(was_training)


class ClassificationTask(Task):
    """Learns from labels. Of a student with two heads both learn them, so that their mean can be used.

    Args:
        student: A DeiT classifier, or any module from pixels to logits.
        processor: The preprocessing of the student: evaluation uses it whole, training its mean, std and size.
        label_smoothing: Share of the target mass spread over all classes; targets that Mixup has made probabilities of
            are taken as they are. None takes the recipe's, outside of `fit` the paper's 0.1.
        loss: "ce", or "bce" as in DeiT III; see `classification_loss`. None takes the recipe's, outside of `fit` "ce".
        problem_type: Of the data, by transformers' names; see `problem_loss`. None takes that of the data, outside of
            `fit` one class per image.
    """

    def __init__(
        self,
        student: nn.Module,
        processor: DeiTImageProcessor,
        *,
        label_smoothing: float | None = None,
        loss: str | None = None,
        problem_type: str | None = None,
    ) -> None:
        super().__init__(student, processor)
        self._given = {"label_smoothing": label_smoothing, "loss": loss, "problem_type": problem_type}
        self.label_smoothing = 0.1 if label_smoothing is None else label_smoothing
        self.loss = "ce" if loss is None else loss
        self.problem_type = SINGLE_LABEL if problem_type is None else problem_type

    def settle(self, recipe: Recipe) -> Recipe:
        """Takes label smoothing and loss from the recipe; see `Task.settle`."""
        self.label_smoothing = chosen("label_smoothing", self._given["label_smoothing"], recipe.label_smoothing)
        self.loss = chosen("loss", self._given["loss"], recipe.loss)
        return super().settle(recipe.with_settings({"label_smoothing": self.label_smoothing, "loss": self.loss}))

    def check(self, data: Data, recipe: Recipe) -> None:
        """Takes the kind of labels from the data; see `Task.check`.

        Raises:
            ValueError: The task was made for labels of another kind.
        """
        super().check(data, recipe)
        if self._given["problem_type"] not in (None, data.problem_type):
            raise UserError(
                f"The task was made for problem_type={self.problem_type!r}, and the labels of the data are "
                f"{data.problem_type!r}. Leave problem_type out: the data's is taken."
            )
        self.problem_type = data.problem_type

    def forward(self, pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a batch: "loss" is the one to minimize.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, (B, K) probabilities or marks, or (B,) numbers to regress.
        """
        heads = head_logits(self.student, pixels)
        losses = [self._from_labels(heads[name], targets) for name in (CLASS, DISTILLATION) if name in heads]
        return {"loss": sum(losses[1:], losses[0]) / len(losses)}

    def _from_labels(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.problem_type != SINGLE_LABEL:
            return problem_loss(logits.float(), targets, self.problem_type)
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0
        return classification_loss(logits.float(), targets, label_smoothing=smoothing, loss=self.loss)


class DistillationTask(Task):
    """Learns from labels with the class head and from a teacher with the distillation head (paper, section 4).

    The loss is (1 - w) x cross-entropy(class head, labels) + w x distillation(distillation head, teacher).

    Args:
        student: A model with two heads.
        teacher: Fixed; it sees the student's pixels, see `Teacher`. None when `cache` holds all its answers.
        processor: See `ClassificationTask`.
        distillation: Kind, temperature, weight w and reduction. None takes the recipe's, outside of `fit` the paper's.
        label_smoothing: See `ClassificationTask`; the teacher's labels are never smoothed.
        loss: See `ClassificationTask`; of the class head.

    Attributes:
        partly_labelled: Whether some images have no label (`NO_LABEL`): of them the teacher alone speaks. The class
            loss is the mean over the labelled images of a step, on all processes; of images mixed from both kinds each
            counts with its labelled share, see `label_weights`. `check` sets it.

    Raises:
        ValueError: At the first batch: the student has one head, or the teacher another number of classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | TeacherEnsemble | None,
        processor: DeiTImageProcessor,
        *,
        distillation: Distillation | None = None,
        label_smoothing: float | None = None,
        loss: str | None = None,
    ) -> None:
        super().__init__(student, processor)
        self.teacher = teacher
        self._given = {"distillation": distillation, "label_smoothing": label_smoothing, "loss": loss}
        self.distillation = Distillation() if distillation is None else distillation
        self.label_smoothing = 0.1 if label_smoothing is None else label_smoothing
        self.loss = "ce" if loss is None else loss
        self.partly_labelled = False

    def settle(self, recipe: Recipe) -> Recipe:
        """Takes distillation, label smoothing and loss from the recipe; see `Task.settle`."""
        self.distillation = chosen("distillation", self._given["distillation"], recipe.distillation)
        self.label_smoothing = chosen("label_smoothing", self._given["label_smoothing"], recipe.label_smoothing)
        self.loss = chosen("loss", self._given["loss"], recipe.loss)
        settings = {"label_smoothing": self.label_smoothing, "loss": self.loss}
        how = {f"distillation.{name}": value for name, value in dataclasses.asdict(self.distillation).items()}
        return super().settle(recipe.with_settings({**settings, **how}))

    def check(self, data: Data, recipe: Recipe) -> None:
        """Looks whether all images have labels; a teacher does without.

        Raises:
            ValueError: The labels are not one class per image.
        """
        if data.problem_type != SINGLE_LABEL:
            raise UserError(
                f"Distillation is for one class per image. Received: data of {data.problem_type}. Take a "
                "ClassificationTask."
            )
        self.partly_labelled = count_unlabelled(data.train) > 0

    def prepare(self, pixels: Tensor, targets: Tensor, place: BatchPlace | None = None) -> tuple[Tensor, ...]:
        """Returns the tensors of a batch: pixels, targets, the teacher's answers; weights if some have no label.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, or (B, K) probabilities.
            place: Which batch this is; the cache needs it.

        Raises:
            ValueError: The cache lacks this batch and there is no teacher, or its views were others.
        """
        prepared = pixels, targets, self._answers(pixels, place)
        if not self.partly_labelled:
            return prepared
        parts = 1 if place is None else place.parts
        return *prepared, label_weights(targets, total=current_processes().sum_tensor, parts=parts)

    def _answers(self, pixels: Tensor, place: BatchPlace | None) -> Tensor:
        if self.cache is None or place is None:
            return self._ask(pixels)
        answers = self.cache.read(place)
        if answers is None:
            if self.teacher is None:
                raise UserError(
                    f"The teacher cache {self.cache.folder} has nothing about step {place.step}. Pass the teacher as "
                    "well: it is asked for what is missing."
                )
            answers = self.cache.write(place, self._ask(pixels))
        return answers.to(pixels.device)

    def _ask(self, pixels: Tensor) -> Tensor:
        if self.teacher is None:
            raise UserError("Distillation needs a teacher, or a cache of what one said.")
        return self.teacher(pixels, mean=self.processor.channel_mean, std=self.processor.channel_std)

    def forward(
        self, pixels: Tensor, targets: Tensor, answers: Tensor | None = None, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the losses of a batch: "loss" is the one to minimize, the others are its parts before weighting.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, or (B, K) probabilities.
            answers: The teacher's logits (B, K), or for hard distillation its classes (B,); asked for when None.
            weights: (B,), of the class loss; see `classification_loss`.
        """
        if answers is None:
            answers = self._ask(pixels)
        heads = head_logits(self.student, pixels)
        if DISTILLATION not in heads:
            raise UserError(
                "Distillation needs a student with a distillation head. Take DeiTForImageClassificationWithTeacher."
            )
        settings = self.distillation
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0
        class_loss = classification_loss(
            heads[CLASS].float(),
            targets,
            label_smoothing=smoothing,
            loss=self.loss,
            weights=weights,
        )
        teacher_loss = distillation_loss(
            heads[DISTILLATION].float(),
            answers.float() if answers.is_floating_point() else answers,
            kind=settings.kind,
            temperature=settings.temperature,
            reduction=settings.reduction,
        )
        return {
            "loss": (1 - settings.weight) * class_loss + settings.weight * teacher_loss,
            "class_loss": class_loss,
            "distillation_loss": teacher_loss,
        }

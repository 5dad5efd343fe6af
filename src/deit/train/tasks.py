"""What is being learnt: a task holds the student and turns a batch into losses. The loop knows nothing else.

A task works in two steps. `prepare` turns what the loader gives into the tensors of a batch, once; `forward` turns
them, or an equal part of each, into losses, and is what may be compiled or shared among processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.image_processor import DeiTImageProcessor
from deit.core.images import ImageError
from deit.core.metrics import SINGLE_LABEL, evaluate
from deit.data.distributed import Processes, current_processes
from deit.data.few_labels import count_unlabelled
from deit.data.loader import EvaluationBatches
from deit.data.sources import Data, Source
from deit.models.classifier import CLASS, DISTILLATION, head_logits
from deit.models.losses import classification_loss, distillation_loss, label_weights, problem_loss
from deit.train.recipe import Distillation, Recipe
from deit.train.teacher import Teacher, TeacherEnsemble
from deit.train.teacher_cache import BatchPlace, TeacherCache


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

    def check(self, data: Data, recipe: Recipe) -> None:
        """Checks, before a training, that the task can learn from the data in the way of the recipe.

        Raises:
            ValueError: It cannot.
        """
        if recipe.teacher:  # it would be left out without a word
            raise ValueError(
                f"The recipe learns from the teacher {', '.join(recipe.teacher)}, and {type(self).__name__} has none. "
                'Pass a DistillationTask, or recipe.with_settings({"teacher": ()}) to learn from labels alone.'
            )
        unlabelled = count_unlabelled(data.train)
        if unlabelled:
            raise ValueError(
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
            except ValueError as error:  # no image was counted, which all processes find
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
            are taken as they are.
        loss: "ce", or "bce" as in DeiT III; see `classification_loss`.
        problem_type: Of the data, by transformers' names; see `problem_loss`.
    """

    def __init__(
        self,
        student: nn.Module,
        processor: DeiTImageProcessor,
        *,
        label_smoothing: float = 0.1,
        loss: str = "ce",
        problem_type: str = SINGLE_LABEL,
    ) -> None:
        super().__init__(student, processor)
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.problem_type = problem_type

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
        distillation: Kind, temperature, weight w and reduction.
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
        label_smoothing: float = 0.1,
        loss: str = "ce",
    ) -> None:
        super().__init__(student, processor)
        self.teacher = teacher
        self.distillation = Distillation() if distillation is None else distillation
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.partly_labelled = False

    def check(self, data: Data, recipe: Recipe) -> None:
        """Looks whether all images have labels; a teacher does without."""
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
                raise ValueError(
                    f"The teacher cache {self.cache.folder} has nothing about step {place.step}. Pass the teacher as "
                    "well: it is asked for what is missing."
                )
            answers = self.cache.write(place, self._ask(pixels))
        return answers.to(pixels.device)

    def _ask(self, pixels: Tensor) -> Tensor:
        if self.teacher is None:
            raise ValueError("Distillation needs a teacher, or a cache of what one said.")
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
            raise ValueError(
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

"""Defines `DistillationTask`: a student learns from labels and from a teacher (paper, section 4)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from deit.core.errors import UserError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.few_labels import count_unlabelled
from deit.data.sources import Data
from deit.models.classifier import CLASS, DISTILLATION, head_logits
from deit.models.losses import classification_loss, label_weights
from deit.runtime.processes import current_processes
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation
from deit.train.tasks.class_weights import weights_of_classes
from deit.train.tasks.guidance import feature_maps, guidance_loss, guided_trunk, stages, tokens_of_blocks, useful_maps
from deit.train.tasks.pseudo_labels import check_pseudo_labels
from deit.train.tasks.task import Task
from deit.train.tasks.teacher_losses import teacher_loss
from deit.train.teachers.cache import BatchPlace
from deit.train.teachers.teacher import Teacher, TeacherEnsemble, log_mean_probability


class DistillationTask(Task):
    """Learns from labels with the class head and from a teacher with the distillation head (paper, section 4).

    The loss is (1 - w) x cross-entropy(class head, labels) + w x distillation(distillation head, teacher). With
    `distillation.guidance` g, g x `guidance_loss` is added.

    Args:
        student: A model with two heads.
        teacher: A frozen teacher; it sees the student's pixels, see `Teacher`. None if `cache` holds all its answers.
        processor: See `ClassificationTask`.
        distillation: Kind, temperature, weight w and reduction. None takes the recipe's; without `fit`, the paper's.
        label_smoothing: See `ClassificationTask`; the teacher's labels are never smoothed.
        loss: See `ClassificationTask`; the loss of the class head.

    Attributes:
        partly_labelled: True if some images have no label (`NO_LABEL`). They learn from the teacher alone. The class
            loss is then the mean over the labeled images of a step, on all processes; an image mixed from both kinds
            counts with its labeled share, see `label_weights`. `check` sets it. False with pseudo-labels, whose step
            has its own weights.

    Raises:
        ValueError: At the first batch: the student has one head, or the teacher another number of classes.
    """

    unused: ClassVar[tuple[str, ...]] = ("masking",)
    distillation: Distillation
    label_smoothing: float
    loss: str

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
        settings = {"distillation": distillation, "label_smoothing": label_smoothing, "loss": loss}
        super().__init__(student, processor, settings)
        self.teacher = teacher
        self.partly_labelled = False

    def check(self, data: Data, recipe: Recipe, teacher_cache: str | Path | None = None) -> None:
        """Finds out whether all images have labels; see `Task.check`.

        Raises:
            ValueError: The labels are not one class per image, or there is neither a teacher nor a cache.
        """
        if data.problem_type != SINGLE_LABEL:
            raise UserError(
                f"Distillation is for one class per image. Received: data of {data.problem_type}. Use "
                'build_task without a teacher, and recipe.with_settings({"teacher": ()}).'
            )
        if self.teacher is None and teacher_cache is None:
            raise UserError("Distillation needs a teacher, or a cache of its answers. Received neither.")
        if self.distillation.guidance:
            self._check_guidance(teacher_cache)
        check_pseudo_labels(recipe, data, teacher_cache)
        self.partly_labelled = count_unlabelled(data.train) > 0 and not recipe.pseudo_labels.weight
        self.class_weights = weights_of_classes(data, recipe)

    def _check_guidance(self, teacher_cache: str | Path | None) -> None:
        if teacher_cache is not None:
            raise UserError(
                "distillation.guidance needs the teacher's feature maps, which no cache holds. Leave out the teacher "
                f"cache, or set distillation.guidance=0. Received: {teacher_cache}."
            )
        guided_trunk(self.student)
        stages(self.teacher)

    def prepare(self, pixels: Tensor, targets: Tensor, place: BatchPlace | None = None) -> tuple[Tensor, ...]:
        """Returns pixels, targets, the teacher's answers, its maps with guidance; and weights if some have no label.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, or (B, K) probabilities.
            place: Step and share of the batch; the cache needs it.

        Raises:
            ValueError: The cache lacks this batch and there is no teacher, or it was recorded for other views.
        """
        with feature_maps(self.teacher if self.distillation.guidance else None) as maps:
            prepared: tuple[Tensor, ...] = pixels, targets, self._answers(pixels, place)
        if maps:
            prepared = *prepared, *useful_maps(maps.values())
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
                    f"The teacher cache {self.cache.folder} has nothing about step {place.step}. Pass the teacher "
                    "as well: it gives the missing answers."
                )
            answers = self.cache.write(place, self._ask(pixels))
        return answers.to(pixels.device)

    def _ask(self, pixels: Tensor) -> Tensor:
        if self.teacher is None:
            raise UserError("Distillation needs a teacher, or a cache of its answers.")
        views = [pixels, pixels.flip(-1)] if self.distillation.flip_teacher else [pixels]
        mean, std = self.processor.channel_mean, self.processor.channel_std
        answers = [self.teacher(view, mean=mean, std=std) for view in views]
        return answers[0] if len(answers) == 1 else log_mean_probability(answers)

    def forward(
        self, pixels: Tensor, targets: Tensor, answers: Tensor | None = None, *more: Tensor
    ) -> dict[str, Tensor]:
        """Returns the losses of a batch: "loss" is the one to minimize, the others are its parts before weighting.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, or (B, K) probabilities.
            answers: The teacher's logits (B, K), or for hard distillation its classes (B,). None asks the teacher.
            more: The teacher's feature maps (B, C, h, w), with guidance; (B,) weights of the class loss, see
                `classification_loss`.
        """
        if answers is None:
            _, _, answers, *asked = self.prepare(pixels, targets)
            more = (*asked, *more)
        maps = [each for each in more if each.ndim > 1]
        weights = next((each for each in more if each.ndim == 1), None)
        with tokens_of_blocks(guided_trunk(self.student) if maps else None) as tokens:
            heads = head_logits(self.student, pixels)
        if DISTILLATION not in heads:
            raise UserError(
                "Distillation needs a student with a distillation head, such as DeiTForImageClassificationWithTeacher."
            )
        settings = self.distillation
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0
        class_loss = classification_loss(
            heads[CLASS].float(),
            targets,
            label_smoothing=smoothing,
            loss=self.loss,
            weights=weights,
            class_weights=self.class_weights,
        )
        from_teacher = teacher_loss(
            heads[DISTILLATION].float(), answers.float() if answers.is_floating_point() else answers, settings
        )
        losses = {
            "loss": (1 - settings.weight) * class_loss + settings.weight * from_teacher,
            "class_loss": class_loss,
            "distillation_loss": from_teacher,
        }
        if maps:
            guidance = guidance_loss(tokens, maps, guided_trunk(self.student))
            losses |= {"loss": losses["loss"] + settings.guidance * guidance, "guidance_loss": guidance}
        return losses

"""Defines `ClassificationTask`: a student learns from labels alone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from deit.core.errors import UserError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.sources import Data
from deit.models.classifier import CLASS, DISTILLATION, head_logits
from deit.models.losses import classification_loss, problem_loss
from deit.train.recipes.recipe import Recipe
from deit.train.tasks.class_weights import weights_of_classes
from deit.train.tasks.task import Task


class ClassificationTask(Task):
    """Learns from labels. Both heads of a student with two heads learn them, so that their mean can be used.

    Args:
        student: A DeiT classifier, or any module from pixels to logits.
        processor: The preprocessing of the student. Evaluation uses all of it, training its mean, std and size.
        label_smoothing: Share of the target mass spread over all classes. Not applied to the probabilities that Mixup
            makes, which have it already. None takes the recipe's; without `fit`, the paper's 0.1.
        loss: "ce", or "bce" as in DeiT III; see `classification_loss`. None takes the recipe's; without `fit`, "ce".
        problem_type: Kind of labels, by transformers' names; see `problem_loss`. None takes that of the data; without
            `fit`, one class per image.
    """

    label_smoothing: float
    loss: str

    def __init__(
        self,
        student: nn.Module,
        processor: DeiTImageProcessor,
        *,
        label_smoothing: float | None = None,
        loss: str | None = None,
        problem_type: str | None = None,
    ) -> None:
        super().__init__(student, processor, {"label_smoothing": label_smoothing, "loss": loss})
        self._made_for = problem_type
        self.problem_type = SINGLE_LABEL if problem_type is None else problem_type

    def check(self, data: Data, recipe: Recipe, teacher_cache: str | Path | None = None) -> None:
        """Takes the kind of labels from the data; see `Task.check`.

        Raises:
            ValueError: The task was made for labels of another kind; or see `Task.check`.
        """
        if self._made_for not in (None, data.problem_type):
            raise UserError(
                f"The task was made for problem_type={self.problem_type!r}, and the labels of the data are "
                f"{data.problem_type!r}. Leave problem_type out: the data's is taken."
            )
        super().check(data, recipe, teacher_cache)
        self.problem_type = data.problem_type
        self.class_weights = weights_of_classes(data, recipe)

    def forward(self, pixels: Tensor, targets: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the losses of a batch: "loss" is the one to minimize.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, (B, K) probabilities or marks, or (B,) numbers to regress.
            weights: (B,) weights of the images, of one class each; see `classification_loss`.
        """
        heads = head_logits(self.student, pixels)
        losses = [self._from_labels(heads[name], targets, weights) for name in (CLASS, DISTILLATION) if name in heads]
        return {"loss": sum(losses[1:], losses[0]) / len(losses)}

    def _from_labels(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        if self.problem_type != SINGLE_LABEL:
            return problem_loss(logits.float(), targets, self.problem_type)
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0
        return classification_loss(
            logits.float(),
            targets,
            label_smoothing=smoothing,
            loss=self.loss,
            weights=weights,
            class_weights=self.class_weights,
        )

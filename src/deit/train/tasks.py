"""What is being learnt: a task holds the student and turns a batch into losses. The loop knows nothing else."""

from __future__ import annotations

from torch import Tensor, nn

from deit.core.image_processor import DeiTImageProcessor
from deit.models.classifier import CLASS, DISTILLATION, head_logits
from deit.models.losses import classification_loss, distillation_loss
from deit.train.recipe import Distillation
from deit.train.teacher import Teacher


class ClassificationTask(nn.Module):
    """Learns from labels. Of a student with two heads both learn them, so that their mean can be used.

    Args:
        student: A DeiT classifier, or any module from pixels to logits.
        processor: The preprocessing of the student: evaluation uses it whole, training its mean, std and size.
        label_smoothing: Share of the target mass spread over all classes; targets that Mixup has made probabilities of
            are taken as they are.
    """

    def __init__(self, student: nn.Module, processor: DeiTImageProcessor, *, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.student = student
        self.processor = processor
        self.label_smoothing = label_smoothing

    def forward(self, pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a batch: "loss" is the one to minimize.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, or (B, K) probabilities.
        """
        heads = head_logits(self.student, pixels)
        losses = [_from_labels(heads[name], targets, self) for name in (CLASS, DISTILLATION) if name in heads]
        return {"loss": sum(losses[1:], losses[0]) / len(losses)}


class DistillationTask(nn.Module):
    """Learns from labels with the class head and from a teacher with the distillation head (paper, section 4).

    The loss is (1 - w) x cross-entropy(class head, labels) + w x distillation(distillation head, teacher).

    Args:
        student: A model with two heads.
        teacher: Fixed; it sees the student's pixels, see `Teacher`.
        processor: See `ClassificationTask`.
        distillation: Kind, temperature, weight w and reduction.
        label_smoothing: See `ClassificationTask`; the teacher's labels are never smoothed.

    Raises:
        ValueError: At the first batch: the student has one head, or the teacher another number of classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        processor: DeiTImageProcessor,
        *,
        distillation: Distillation | None = None,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.processor = processor
        self.distillation = Distillation() if distillation is None else distillation
        self.label_smoothing = label_smoothing

    def forward(self, pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns the losses of a batch: "loss" is the one to minimize, the others are its parts before weighting.

        Args:
            pixels: (B, 3, H, W).
            targets: (B,) true classes, or (B, K) probabilities.
        """
        teacher_logits = self.teacher(pixels, mean=self.processor.channel_mean, std=self.processor.channel_std)
        heads = head_logits(self.student, pixels)
        if DISTILLATION not in heads:
            raise ValueError(
                "Distillation needs a student with a distillation head. Take DeiTForImageClassificationWithTeacher."
            )
        settings = self.distillation
        class_loss = _from_labels(heads[CLASS], targets, self)
        teacher_loss = distillation_loss(
            heads[DISTILLATION].float(),
            teacher_logits.float(),
            kind=settings.kind,
            temperature=settings.temperature,
            reduction=settings.reduction,
        )
        return {
            "loss": (1 - settings.weight) * class_loss + settings.weight * teacher_loss,
            "class_loss": class_loss,
            "distillation_loss": teacher_loss,
        }


Task = ClassificationTask | DistillationTask


def _from_labels(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    smoothing = task.label_smoothing if targets.ndim == 1 else 0.0
    return classification_loss(logits.float(), targets, label_smoothing=smoothing)

"""Losses of classification and distillation (paper, section 4).

They sit beside the models because `DeiTForImageClassificationWithTeacher.forward` returns them; training
imports them from here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deit.core.config.following_defaults import REDUCTIONS, check_distillation_kind
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.labels import NO_LABEL, problem_type_of


def classification_loss(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    loss: str = "ce",
    weights: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """How far logits are from the true classes.

    * "ce": cross-entropy, mean over the batch (DeiT).
    * "bce": a yes or no for each class, mean over batch and classes (DeiT III). Every class with a target above 0
      counts as fully present: an image mixed of two has two classes, whatever their shares.

    Args:
        logits: (B, K).
        target: (B,) class numbers, -100 for images without a label; or (B, K) class probabilities, as Mixup gives.
        label_smoothing: Share of the target mass spread over all K classes (0.1 in the paper). Probabilities are
            smoothed as well, so leave it at 0 when Mixup has smoothed them already. It must be 0 with "bce", where it
            would make every class present; for the same reason Mixup must not smooth either.
        loss: "ce" or "bce".
        weights: (B,), of the images; see `label_weights`. The loss is the mean over the batch of weight times term. An
            image without a label has the term 0, one mixed of two of which one has a label a term of that one's share.
            None is the mean over the images that have a label.
        class_weights: (K,), of the terms of each class in the cross-entropy. The mean is over images, not over their
            weights as PyTorch's, so that the parts of a batch add up to the whole.

    Returns:
        A scalar; 0 when no image has a label.

    Raises:
        ValueError: An unknown loss, or label smoothing or class weights with "bce".
        IndexError: A class number is out of range (RuntimeError with "bce").
    """
    if loss == "bce":
        if label_smoothing:
            raise UserError(f'label_smoothing must be 0 with the loss "bce". Received: {label_smoothing}.')
        if class_weights is not None:
            raise UserError('class_weights are for the loss "ce". Received: the loss "bce".')
        terms = _binary_terms(logits, target, by_share=weights is not None)
    elif loss == "ce":
        terms = F.cross_entropy(
            logits,
            target.long() if target.ndim == 1 else target,
            weight=class_weights,
            label_smoothing=label_smoothing,
            reduction="none",
        )
    else:
        raise UserError(f"loss must be 'ce' or 'bce'. Received: {loss!r}.")
    if weights is not None:
        return (terms * weights).mean()
    return terms.mean() if target.ndim == 2 else terms.sum() / (target != NO_LABEL).sum().clamp(min=1)


def label_weights(target: Tensor, *, total: Callable[[Tensor], Tensor] | None = None, parts: int = 1) -> Tensor:
    """Weights with which the parts of a batch that is only partly labeled give the class loss of the whole.

    With B images in the batch, of which N have a label, each is B / N: the mean over any equal parts of their weighted
    means is then the mean over the labeled images. Of images mixed of two, N counts the labeled shares. Where N is
    below 1 it is 1.

    Args:
        target: (b,) class numbers, -100 for none, or (b, K) probabilities that sum up to the share with a label.
        total: Sums a scalar over all parts; None where `target` is all of the batch.
        parts: Equal parts of the batch, B = b x parts.

    Returns:
        (b,) float32.
    """
    labelled = (target != NO_LABEL).sum() if target.ndim == 1 else target.sum()
    labelled = labelled.to(torch.float32)
    if total is not None:
        labelled = total(labelled)
    return (len(target) * parts / labelled.clamp(min=1)).expand(len(target))


def _binary_terms(logits: Tensor, target: Tensor, *, by_share: bool) -> Tensor:
    if target.ndim == 2:
        one_hot = (target > 0).to(logits.dtype)
        terms = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").mean(dim=1)
        return terms * target.sum(dim=1) if by_share else terms
    labelled = target != NO_LABEL  # (B,)
    one_hot = F.one_hot(target.long().where(labelled, 0), logits.shape[1]).to(logits.dtype)  # (B, K)
    terms = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").mean(dim=1)  # (B,)
    return terms.where(labelled, 0.0)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str = "hard",
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> Tensor:
    """How far the distillation head is from the teacher (paper, equations 2 and 3).

    * "hard": cross-entropy to the class the teacher ranks first, without smoothing; mean over the batch.
    * "soft": KL divergence from the teacher's distribution to the student's, both softened by the temperature T,
      times T squared, so that gradients keep their size.

    Where libraries differ: the paper's code divides the sum of the soft loss by B x K ("numel"), which makes it K
    times smaller than the mean over images that this package and timm use ("batchmean").

    Args:
        student_logits: (B, K), of the distillation head.
        teacher_logits: (B, K); with "hard" the teacher's first classes (B,) as 64-bit integers will do.
        kind: "hard" or "soft".
        temperature: T of the soft loss; the hard loss ignores it.
        reduction: "batchmean" or "numel", of the soft loss.

    Raises:
        ValueError: An unknown kind or reduction, the numbers of classes or images differ, or class numbers came where
            the soft loss needs logits.
        IndexError: A class number is out of range.
    """
    if teacher_logits.dtype == torch.int64:
        return _loss_to_teacher_labels(student_logits, teacher_logits, kind)
    check_teacher_logits(student_logits, teacher_logits)
    check_distillation_kind(kind)
    if kind == "hard":
        return F.cross_entropy(student_logits, teacher_logits.argmax(dim=1))
    if kind != "soft":
        raise NotImplementedError(kind)
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction must be 'batchmean' or 'numel'. Received: {reduction!r}.")
    divergence = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="sum",
        log_target=True,
    )
    count = student_logits.shape[0] if reduction == "batchmean" else student_logits.numel()
    return divergence * temperature**2 / count


def check_teacher_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Checks that teacher and student speak of the same images and classes.

    Raises:
        ValueError: They do not.
    """
    if student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"Teacher and student must have the same number of classes. Received: teacher "
            f"{tuple(teacher_logits.shape)}, student {tuple(student_logits.shape)}."
        )


def _loss_to_teacher_labels(student_logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    if kind != "hard":
        raise UserError(
            f"A teacher's classes suffice for hard distillation alone. Received: {kind!r}. Pass its logits."
        )
    if labels.shape != student_logits.shape[:1]:
        raise UserError(
            f"There must be one class of the teacher for each image. Received: teacher {tuple(labels.shape)}, "
            f"student {tuple(student_logits.shape)}."
        )
    # Every image has an answer of the teacher: -100 is a mistake here and must not pass as "has no class".
    return F.cross_entropy(student_logits, labels, ignore_index=-(2**62))


def problem_loss(
    logits: Tensor, labels: Tensor, problem_type: str, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of a classification model by problem type, as transformers defines them.

    Args:
        logits: (B, K).
        labels: (B,) class numbers, (B, K) zeros and ones, or (B,) or (B, K) numbers to regress.
        problem_type: "regression", "single_label_classification" or "multi_label_classification".
        num_items_in_batch: The sum is divided by this number in place of the number of labels here, so that the losses
            of the parts of a large batch add up to its mean. (transformers forgets it unless there is one label.)

    Returns:
        A scalar, mean over the batch.

    Raises:
        ValueError: The shapes disagree.
        IndexError: A class number is out of range.
    """
    classes = logits.shape[-1]
    reduction = "mean" if num_items_in_batch is None else "sum"
    if problem_type == "single_label_classification":
        if classes == 1:
            _warn_of_one_class()
        loss = F.cross_entropy(logits.view(-1, classes), labels.view(-1).long(), reduction=reduction)
    else:
        if problem_type == "regression" and classes == 1 and labels.numel() == logits.numel():
            labels = labels.reshape(logits.shape)
        if labels.shape != logits.shape:  # PyTorch would spread them to a common shape
            raise UserError(
                f"Targets of the problem type {problem_type!r} must have the shape {tuple(logits.shape)}. "
                f"Received: {tuple(labels.shape)}."
            )
        function = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
        loss = function(logits, labels.to(logits.dtype), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _warn_of_one_class() -> None:
    if not torch.compiler.is_compiling():  # a warning would break the graph
        warnings.warn(
            "With one label the loss is always 0 and nothing is learned. Set num_labels to 2 or more, or "
            "problem_type='regression'.",
            stacklevel=2,
        )


def configured_loss(
    labels: Tensor, logits: Tensor, config: VisionTransformerConfig, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of a classifier by the problem type of its configuration, with the arguments of transformers.

    A problem type that is not set is inferred and kept in the configuration.

    Args:
        labels: See `problem_loss`.
        logits: (B, K).
        config: Of the model.
        num_items_in_batch: See `problem_loss`.
    """
    if config.problem_type is None:
        config.problem_type = infer_problem_type(labels, config.num_labels)
    return problem_loss(logits, labels.to(logits.device), config.problem_type, num_items_in_batch)


def infer_problem_type(labels: Tensor, num_labels: int) -> str:
    """Infers the problem type from labels; see `deit.core.labels.problem_type_of`."""
    return problem_type_of(str(labels.dtype).removeprefix("torch."), num_labels)

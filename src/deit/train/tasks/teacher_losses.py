"""Losses between the distillation head and a teacher that only a training has; hard and soft are in `models/losses.py`.

B images, K classes; z are logits, p and q probabilities of teacher and student, T the temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deit.core.config.following_defaults import DISTILLATION_KINDS
from deit.core.errors import UserError
from deit.models.losses import check_teacher_logits, distillation_loss
from deit.runtime.processes import Processes, current_processes
from deit.train.recipes.sections import Distillation
from deit.train.whole_batch_norm import summed

_SMALLEST_DEVIATION = 0.01  # below it, slopes would outgrow the rest of a training
_SMALLEST_NORM = 1e-8  # as in the authors' code


def teacher_loss(student_logits: Tensor, answers: Tensor, settings: Distillation) -> Tensor:
    """Returns the loss of the distillation head by `settings.kind`; a scalar, mean over the batch.

    * "hard", "soft": see `distillation_loss`.
    * "standardized", "wttm", "dist": see the functions of these names here.

    Args:
        student_logits: (B, K), of the distillation head.
        answers: The teacher's logits (B, K); for "hard" its classes (B,) as well.
        settings: Kind, temperature and reduction.

    Raises:
        ValueError: Teacher and student have other numbers of classes, or class numbers came where logits are needed.
    """
    temperature = settings.temperature
    if settings.kind in DISTILLATION_KINDS:
        return distillation_loss(
            student_logits, answers, kind=settings.kind, temperature=temperature, reduction=settings.reduction
        )
    if answers.dtype == torch.int64:
        raise UserError(
            f"A teacher's classes suffice for hard distillation alone. Received: {settings.kind!r}. Pass its logits."
        )
    check_teacher_logits(student_logits, answers)
    if settings.kind == "standardized":
        return standardized(student_logits, answers, temperature)
    if settings.kind == "wttm":
        return wttm(student_logits, answers, temperature)
    if settings.kind == "dist":
        return dist(student_logits, answers, temperature, settings.intra_weight, current_processes())
    raise NotImplementedError(settings.kind)


def standardized(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Soft distillation of standardized logits: each image's logits get mean 0 and standard deviation 1 first.

    The student then has to match the relations of the teacher's logits and not their size. Sun et al., "Logit
    Standardization in Knowledge Distillation", CVPR 2024 (arXiv 2403.01427): T = 2.

    Where sources differ: the standard deviation divides by K - 1, as the authors' code does; the paper writes K. A
    deviation below 0.01 counts as 0.01.
    """
    return distillation_loss(
        _standardized(student_logits), _standardized(teacher_logits), kind="soft", temperature=temperature
    )


def _standardized(logits: Tensor) -> Tensor:
    centered = logits - logits.mean(dim=1, keepdim=True)
    variance = centered.square().sum(dim=1, keepdim=True) / max(logits.shape[1] - 1, 1)
    return centered / variance.clamp(min=_SMALLEST_DEVIATION**2).sqrt()


def wttm(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 5.0) -> Tensor:
    """Weighted transformed teacher matching: the temperature softens the teacher and not the student.

    The mean over the images of U x KL(p' || q) with p' = p**(1/T) / U and U = sum of p**(1/T), which weighs an image
    more the less certain the teacher is. Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching",
    ICLR 2024 (arXiv 2402.11148). The authors write an exponent in place of 1/T, and use 0.1 and 0.2 for CIFAR-100.
    """
    powers = F.log_softmax(teacher_logits, dim=1) / temperature
    weights = torch.logsumexp(powers, dim=1)  # logarithm of U
    log_q = F.log_softmax(student_logits, dim=1)
    divergences = F.kl_div(log_q, powers - weights[:, None], reduction="none", log_target=True).sum(dim=1)
    return (weights.exp() * divergences).mean()


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    intra_weight: float = 1.0,
    processes: Processes | None = None,
) -> Tensor:
    """Correlation with the teacher: over the classes of each image, and over the images of the batch for each class.

    T**2 x ((1 - mean over images of the Pearson correlation of p and q) + `intra_weight` x (1 - mean over classes of
    the correlation of their columns)). Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    (arXiv 2205.10536), with both parts twice as heavy as the labels.

    The second part looks at the images of all processes, which have equally many: it is that of the whole batch. Where
    a row or column is constant its correlation is 0.
    """
    q = F.softmax(student_logits / temperature, dim=1)
    p = F.softmax(teacher_logits / temperature, dim=1)
    loss = 1.0 - _correlations(q, p, 1, Processes()).mean()
    if intra_weight:
        loss = loss + intra_weight * (1.0 - _correlations(q, p, 0, processes or Processes()).mean())
    return temperature**2 * loss


def _correlations(one: Tensor, two: Tensor, dim: int, processes: Processes) -> Tensor:
    """Returns Pearson's correlations along a dimension, of which each process has a part."""

    def total(values: Tensor) -> Tensor:
        return summed(values, processes) if processes.world_size > 1 else values

    count = one.shape[dim] * processes.world_size
    means = total(torch.stack([one.sum(dim), two.sum(dim)])) / count
    one, two = one - means[0].unsqueeze(dim), two - means[1].unsqueeze(dim)
    sums = total(torch.stack([(one * two).sum(dim), one.square().sum(dim), two.square().sum(dim)]))
    norms = sums[1:].clamp(min=torch.finfo(sums.dtype).tiny).sqrt()  # the square root has no slope at 0
    return sums[0] / (norms[0] * norms[1] + _SMALLEST_NORM)

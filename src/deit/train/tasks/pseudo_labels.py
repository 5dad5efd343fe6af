"""Pseudo-labels: the running average of a student's weights labels images that have none (Semi-ViT).

Cai et al., "Semi-supervised Vision Transformers at Scale", NeurIPS 2022 (arXiv 2208.05688).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.core.labels import NO_LABEL
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.augment import BatchMixer, ViewTransform, build_transform
from deit.data.few_labels import count_unlabelled
from deit.data.sources import Data
from deit.models.classifier import head_logits
from deit.runtime.processes import Processes
from deit.train.recipes.recipe import Recipe


def check_pseudo_labels(recipe: Recipe, data: Data, teacher_cache: str | Path | None) -> None:
    """Checks that a training can use its pseudo-labels; a recipe without them passes.

    Raises:
        ValueError: The labels are not one class per image, no image lacks a label, no image has one, or a teacher cache
            is to record mixed images that depend on the student.
    """
    if not recipe.pseudo_labels.weight:
        return
    if data.problem_type != SINGLE_LABEL:
        raise UserError(
            f"Pseudo-labels are for one class per image. Received: data of {data.problem_type}. "
            "Pass pseudo_labels.weight=0."
        )
    unlabelled, count = count_unlabelled(data.train), len(data.train.labels)
    if unlabelled in (0, count):
        raise UserError(
            f"Pseudo-labels need images with and without a label. Received: {count - unlabelled} with one, "
            f"{unlabelled} without. Pass pseudo_labels.weight=0, or other images."
        )
    if teacher_cache is not None and recipe.pseudo_labels.mixup:
        raise UserError(
            "With pseudo_labels.mixup the teacher's images depend on the student, so its answers cannot be kept. "
            f"Received: a teacher cache ({teacher_cache}). Leave it out, or pass pseudo_labels.mixup=false."
        )


def training_transform(recipe: Recipe, processor: DeiTImageProcessor) -> ViewTransform:
    """Returns the transform of training images; with pseudo-labels it has a second, weak one: crop and flip alone."""
    size, mean, std = processor.output_size, processor.channel_mean, processor.channel_std
    transform = build_transform(recipe.augment, size, mean, std)
    if recipe.pseudo_labels.weight:
        weak = dataclasses.replace(
            recipe.augment, rand_augment="", three_augment=False, color_jitter=0.0, erase_rate=0.0
        )
        transform.weak = build_transform(weak, size, mean, std)
    return transform


class LabelledImages(NamedTuple):
    """Images of a step with targets and weights.

    Attributes:
        pixels: (b, 3, H, W).
        targets: (b, K) probabilities; zeros for an image that gives no loss.
        weights: (b,) weights of the class loss, see `classification_loss`.
    """

    pixels: Tensor
    targets: Tensor
    weights: Tensor


class PseudoLabeller:
    """Labels the unlabeled images of a step by the average of the weights, and mixes them.

    The average sees a weak view of an image, the student a strong one. The class with the largest probability becomes
    the image's label where that probability reaches the threshold. With mixup, each unlabeled image i is mixed with its
    mirror j among the unlabeled images of the step, pixels and labels alike: c_i / (c_i + c_j) of i and the rest of j,
    c being the largest probabilities; the larger of the two decides about the threshold. Labeled images are mixed among
    themselves as the recipe says. Labels are smoothed in both groups.

    The loss of a step is the mean over its labeled images plus `weight` times the mean over its unlabeled images, of
    which those below the threshold count 0. All processes mix the whole step alike and keep their share.

    Args:
        average: Running average of the student's weights.
        recipe: Its pseudo-labels, augmentation, label smoothing and seed.
        num_classes: K.
        processes: Those that share a step.
    """

    def __init__(self, average: nn.Module, recipe: Recipe, num_classes: int, processes: Processes) -> None:
        self._average, self._settings, self._processes = average, recipe.pseudo_labels, processes
        self._num_classes, self._smoothing = num_classes, recipe.label_smoothing
        self._mixer = BatchMixer(recipe.augment, num_classes, recipe.label_smoothing, recipe.seed)

    def __call__(self, pixels: Tensor, targets: Tensor, weak: Tensor, step: int) -> LabelledImages:
        """Labels and mixes this process's share of a step.

        Args:
            pixels: (b, 3, H, W) strong views.
            targets: (b,) classes, `NO_LABEL` for none.
            weak: (b, 3, H, W) weak views of the same images.
            step: Number of the step.
        """
        classes, sure = self._ask(weak.to(pixels.device, non_blocking=True), targets)
        pixels, targets, classes, sure = (self._whole(tensor) for tensor in (pixels, targets, classes, sure))
        known, guessed = (targets != NO_LABEL).nonzero()[:, 0], (targets == NO_LABEL).nonzero()[:, 0]
        shown, count = pixels.clone(), len(pixels)
        dense = torch.zeros(count, self._num_classes, device=pixels.device)
        weights = torch.zeros(count, device=pixels.device)
        if len(known):
            shown[known], dense[known] = self._mix_known(pixels[known], targets[known], step)
            weights[known] = count / len(known)
        if len(guessed):
            labels, sure = self._smooth(classes[guessed]), sure[guessed]
            views = pixels[guessed]
            if self._settings.mixup:
                views, labels, sure = mixed_by_confidence(views, labels, sure)
            shown[guessed] = views
            dense[guessed] = labels * (sure >= self._settings.threshold)[:, None]
            weights[guessed] = self._settings.weight * count / len(guessed)
        own = slice(self._processes.rank, None, self._processes.world_size)
        return LabelledImages(shown[own], dense[own], weights[own])

    @torch.no_grad()
    def _ask(self, weak: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the class of each image without a label, (b,), and its probability; zeros for the others."""
        classes = torch.zeros_like(targets)
        sure = torch.zeros(len(targets), device=targets.device)
        guessed = targets == NO_LABEL
        if bool(guessed.any()):
            with evaluation_mode(self._average):
                logits = next(iter(head_logits(self._average, weak[guessed]).values()))
            sure[guessed], classes[guessed] = logits.float().softmax(dim=1).max(dim=1)
        return classes, sure

    def _whole(self, tensor: Tensor) -> Tensor:
        """Returns the rows of all processes: image i of this process is image rank + i x world_size of the step."""
        processes = self._processes
        if processes.world_size == 1:
            return tensor
        whole = tensor.new_zeros(len(tensor) * processes.world_size, *tensor.shape[1:])
        whole[processes.rank :: processes.world_size] = tensor
        return processes.sum_tensor(whole)

    def _mix_known(self, pixels: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        count = len(pixels)
        if count % 2:  # the mixer pairs images; the last one gets a copy of itself, which is dropped again
            pixels, targets = torch.cat([pixels, pixels[-1:]]), torch.cat([targets, targets[-1:]])
        pixels, dense = self._mixer(pixels, targets, step)
        return pixels[:count], dense[:count]

    def _smooth(self, classes: Tensor) -> Tensor:
        one_hot = F.one_hot(classes, self._num_classes).float()
        return one_hot * (1.0 - self._smoothing) + self._smoothing / self._num_classes


def mixed_by_confidence(pixels: Tensor, labels: Tensor, sure: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mixes images with their mirror in the batch, each in proportion to how sure its label is.

    Args:
        pixels: (B, 3, H, W).
        labels: (B, K).
        sure: (B,) probabilities of the labels, above 0.

    Returns:
        Mixed pixels, mixed labels, and (B,) the larger probability of each pair.
    """
    share = sure / (sure + sure.flip(0))
    wide = share[:, None, None, None].to(pixels.dtype)
    mixed = pixels * wide + pixels.flip(0) * (1 - wide)
    return mixed, labels * share[:, None] + labels.flip(0) * (1 - share[:, None]), torch.maximum(sure, sure.flip(0))


@contextlib.contextmanager
def evaluation_mode(student: nn.Module) -> Iterator[None]:
    """Puts a student into evaluation mode for a block."""
    was_training = student.training
    student.eval()
    try:
        yield
    finally:
        student.train(was_training)

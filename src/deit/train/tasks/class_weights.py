"""Weights classes in the loss, where some have many more images than others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deit.core.errors import UserError
from deit.core.labels import NO_LABEL
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.sources import Data
from deit.train.recipes.recipe import Recipe


def weights_of_classes(data: Data, recipe: Recipe) -> Tensor | None:
    """Returns the weight of each class in the loss, (K,) float32, or None where all count the same.

    * "balanced": N / (K n) for a class of n of the N labeled training images, as in scikit-learn: all classes have the
      same share of the loss.
    * "sqrt": The square roots of those, halfway between no weights and "balanced".

    The mean of the weights over the labeled images is 1, so the learning rate keeps its meaning. A class without a
    training image has the weight 1; nothing asks for it.

    Args:
        data: Data of the training.
        recipe: Its `class_weights` is used.

    Raises:
        UserError: Images do not have one class each.
    """
    if recipe.class_weights == "none":
        return None
    if data.problem_type != SINGLE_LABEL:
        raise UserError(
            f"class_weights are for one class per image. Received: class_weights={recipe.class_weights} and "
            f"data.problem_type={data.problem_type}. Pass class_weights=none."
        )
    labels = data.train.labels[data.train.labels != NO_LABEL]
    counts = np.bincount(labels, minlength=len(data.train.classes)).astype(np.float64)
    there = counts > 0
    weights = np.ones(len(counts))
    weights[there] = counts.sum() / (there.sum() * counts[there])
    if recipe.class_weights == "sqrt":
        weights[there] = np.sqrt(weights[there])
        weights[there] *= counts.sum() / (weights * counts).sum()
    return torch.from_numpy(weights.astype(np.float32))

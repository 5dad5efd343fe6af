"""AdamW's parameter groups, the learning rate as a function of the step, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deit.train.recipe import Optimizer, Recipe

# Tokens and position embeddings are matrices by shape but act like biases. The paper's code decays the
# distillation token by accident; we do not.
_NO_DECAY_ENDINGS = ("cls_token", "dist_token", "mask_token", "pos_embed")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divides the trainable parameters in those with weight decay and those without.

    Args:
        model: Any module.
        weight_decay: Of the first group.

    Returns:
        Two groups; norms, biases, tokens and position embeddings are in the second.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim <= 1 or name.endswith(_NO_DECAY_ENDINGS)
            (plain if is_plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, settings: Optimizer, device: torch.device) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters; one fused kernel where the device has it."""
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=device.type in ("cpu", "cuda"),
    )


def learning_rate(step: int, *, steps_per_epoch: int, recipe: Recipe) -> float:
    """Returns the learning rate of a step.

    A closed form: nothing is carried from step to step, so a resumed run cannot drift. Warm-up is linear from
    `warmup_lr` to the peak; the cosine runs over the whole training and is not shifted by the warm-up, as in the
    paper's code.

    Args:
        step: From 0.
        steps_per_epoch: Steps in an epoch.
        recipe: Its schedule, batch size and optimizer.
    """
    schedule, peak = recipe.schedule, recipe.learning_rate()
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * step / warmup_steps
    progress = step / (schedule.epochs * steps_per_epoch)
    low = min(schedule.min_lr, peak)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Returns the running average (EMA) of a model's weights and buffers.

    The decay of update n is min(decay, (1 + n) / (10 + n)).

    Args:
        model: Whose weights are averaged.
        decay: Between 0 and 1.
    """

    @torch.no_grad()
    def average(averaged: Any, current: Any, count: Tensor | int) -> None:
        n = float(count)
        share = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share)
        else:  # counters of batch norm
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is infinite or NaN."""
    floats = [t.detach() for t in tensors if t.is_floating_point()]
    return not floats or bool(torch.isfinite(torch.stack(torch._foreach_norm(floats))).all())

"""Batch norms that learn no more, folded into the convolutions before them: a faster teacher with the same answers."""

from __future__ import annotations

import logging

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deit.core.errors import UserError
from deit.train.recipes.recipe import Recipe

logger = logging.getLogger(__name__)


class _Tracer(fx.Tracer):
    """Does not look into batch norms, timm's with an activation included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def check_batch_norm(model: nn.Module, recipe: Recipe, world_size: int) -> None:
    """Checks that batch norms that learn see more than one image at once.

    Args:
        model: To be trained.
        recipe: Its batch size, parts, and what is frozen.
        world_size: Number of processes.

    Raises:
        ValueError: They would see one.
    """
    parts = world_size * recipe.accumulate
    if recipe.freeze or recipe.batch_size > parts:
        return
    names = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    if names:
        several = f", in {parts} parts" if parts > 1 else ""
        raise UserError(
            f"{type(model).__name__} has {len(names)} batch norms ({names[0]}), which compare the images of a step and "
            f"would see one image at a time: the batch size is {recipe.batch_size}{several}. Pass {2 * parts} or more."
        )


def fold_batch_norms(model: nn.Module) -> int:
    """Folds batch norms into the convolutions that feed them alone, in place; answers stay the same to rounding.

    For models in evaluation mode that are never trained again. A model whose flow cannot be traced stays as it is.

    Args:
        model: Any; only float32 convolutions are changed.

    Returns:
        Number of batch norms that are gone.
    """
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        logger.debug("%s cannot be traced, so its batch norms stay: %s", type(model).__name__, error)
        return 0
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    folded = 0
    for node in calls:
        norm, before = modules[str(node.target)], node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        convolution = modules[str(before.target)]
        called_once = targets.count(str(node.target)) == targets.count(str(before.target)) == 1
        if type(convolution) is not nn.Conv2d or len(before.users) > 1 or not called_once:
            continue
        if convolution.weight.dtype != torch.float32 or norm.running_mean is None:
            continue
        model.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
        model.set_submodule(str(node.target), _what_follows(norm))
        folded += 1
    return folded


def _what_follows(norm: nn.Module) -> nn.Module:
    """Returns what a batch norm of timm does after the norm itself."""
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

"""Folds batch norms of frozen models into convolutions, and checks batch norms of models to train."""

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
    """Treats batch norms as leaves, including timm's with an activation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def check_batch_norm(model: nn.Module, recipe: Recipe, world_size: int) -> None:
    """Checks that batch norms in training mode see more than one image at a time.

    Args:
        model: Model to train.
        recipe: Batch size, parts and frozen layers are used.
        world_size: Number of processes.

    Raises:
        ValueError: They would see one image at a time.
    """
    parts = world_size * recipe.accumulate
    if recipe.freeze or recipe.batch_size > parts:
        return
    names = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    if names:
        several = f", in {parts} parts" if parts > 1 else ""
        raise UserError(
            f"{type(model).__name__} has {len(names)} batch norms ({names[0]}), which need several images at a "
            f"time but would see one image at a time: the batch size is {recipe.batch_size}{several}. "
            f"Pass {2 * parts} or more."
        )


def fold_batch_norms(model: nn.Module) -> int:
    """Folds batch norms in place into convolutions whose only consumer they are. Logits change only by rounding.

    Use it only for models in evaluation mode that are not trained again. Leaves models unchanged that torch.fx cannot
    trace.

    Args:
        model: Any model; only float32 convolutions are changed.

    Returns:
        Number of folded batch norms.
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
    """Returns the layers that timm's batch norm applies after the norm, such as an activation."""
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

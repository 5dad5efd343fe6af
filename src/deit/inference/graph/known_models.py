"""Which classifiers can be rewritten: those whose every part computes exactly what this package says it does."""

from __future__ import annotations

from typing import Any

from torch import nn

from deit.inference.graph.operations import activation_name
from deit.models.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
)
from deit.models.trunk.cpu_kernels import Forwards, is_untouched
from deit.models.trunk.vision_transformer import BLOCK_FORWARDS, PatchEmbed, VisionTransformer
from deit.models.vit import ViTForImageClassification, ViTModel

_CLASSIFIERS = (DeiTForImageClassification, DeiTForImageClassificationWithTeacher, ViTForImageClassification)
_KINDS = (*_CLASSIFIERS, DeiTModel, ViTModel, VisionTransformer, PatchEmbed, nn.Conv2d, nn.ModuleList)
_FORWARDS: Forwards = {**BLOCK_FORWARDS, **{kind: kind.forward for kind in _KINDS}}


def why_unknown(model: nn.Module) -> str | None:
    """Returns why a classifier cannot be rewritten; None if it can.

    Args:
        model: Any module.
    """
    if type(model) not in _CLASSIFIERS:
        return f"it is of the class {type(model).__name__}"
    if getattr(model.config, "token_merging", None):
        return "it merges tokens"
    if not is_untouched(model, _FORWARDS):
        return "a module in it was replaced or watched by a hook"
    for module in model.modules():
        shadowed = [name for name in vars(module) if callable(getattr(type(module), name, None))]
        if shadowed:
            return f"a method in it was replaced: {shadowed[0]}"
    if any(type(parameter) is not nn.Parameter for parameter in model.parameters()) or next(model.buffers(), None):
        return "it has weights of an unknown kind"
    return _why_unknown_inside(model)


def _why_unknown_inside(model: Any) -> str | None:
    trunk = getattr(model, model.base_model_prefix).trunk
    if model.config.num_labels == 0 or not model.config.return_dict:
        return "it has no classifier or returns tuples"
    if len({(p.dtype, p.device) for p in model.parameters()}) > 1:
        return "its weights are of several types or on several devices"
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {model.config._attn_implementation}"
    projection = trunk.patch_embed.proj
    if (projection.stride, projection.padding, projection.groups) != (projection.kernel_size, (0, 0), 1):
        return "its patches overlap"
    if not len(trunk.blocks) or any(not block.attn.heads for block in trunk.blocks):
        return "it has no blocks, or one without heads"
    if not all(activation_name(block.mlp.activation) for block in trunk.blocks):
        return "its activation has no counterpart in other engines"
    return None

"""Freezes parts of a student."""

from __future__ import annotations

from typing import Any

from torch import nn

from deit.core.errors import UserError
from deit.models.trunk.vision_transformer import VisionTransformer


def freeze(model: nn.Module, what: str) -> list[nn.Module]:
    """Freezes weights of a student.

    Args:
        model: A DeiT or ViT of this package, or a classifier of timm (whose trunk is all but its classifier).
        what: "trunk" trains only the heads (a linear probe); "blocks:N" freezes embeddings, tokens and the first N
            blocks; empty freezes nothing.

    Returns:
        The frozen modules. The caller keeps them in evaluation mode, so that dropout and drop path are off and batch
        norm statistics do not change.

    Raises:
        ValueError: The model has fewer blocks, or its heads cannot be identified.
    """
    if not what:
        return []
    trunks = [module for module in model.modules() if isinstance(module, VisionTransformer)]
    if what == "trunk":
        modules: list[nn.Module] = [*trunks] if trunks else _all_but_classifier(model)
        for module in modules:
            module.requires_grad_(False)
        return modules
    count = int(what.removeprefix("blocks:"))
    if not trunks:
        raise UserError(f"freeze={what!r} needs a DeiT or ViT of this package. Received: {type(model).__name__}.")
    frozen: list[nn.Module] = []
    for trunk in trunks:
        if count > len(trunk.blocks):
            raise UserError(f"freeze={what!r}: the model has {len(trunk.blocks)} blocks. Pass fewer.")
        for token in (trunk.cls_token, trunk.dist_token, trunk.mask_token, trunk.pos_embed):
            if token is not None:
                token.requires_grad_(False)
        frozen += [trunk.patch_embed, trunk.pos_drop, *trunk.blocks[:count]]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def _all_but_classifier(model: Any) -> list[nn.Module]:
    ask = getattr(model, "get_classifier", None)
    heads = ask() if ask is not None else None
    heads = heads if isinstance(heads, tuple) else (heads,)
    kept = {id(module) for head in heads if isinstance(head, nn.Module) for module in head.modules()}
    if not kept or not any(parameter.requires_grad for head in heads for parameter in head.parameters()):
        raise UserError(
            f"freeze='trunk' needs a model whose classifier is known. Received: {type(model).__name__}. Use a DeiT, a "
            "ViT or a model of timm."
        )
    # Freezes modules that contain no part of the classifier, and searches modules that do.
    frozen: list[nn.Module] = []
    waiting: list[nn.Module] = [model]
    while waiting:
        for child in waiting.pop().children():
            inside = {id(module) for module in child.modules()}
            if not inside & kept:
                frozen.append(child)
            elif id(child) not in kept:
                waiting.append(child)
    own = {id(p) for head in heads for p in head.parameters()}
    for parameter in model.parameters():  # includes parameters outside all children
        parameter.requires_grad_(id(parameter) in own)
    return frozen

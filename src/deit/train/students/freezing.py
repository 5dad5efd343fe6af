"""Which weights a training leaves as they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from deit.core.errors import UserError
from deit.models.trunk.vision_transformer import VisionTransformer


def freeze(model: nn.Module, what: str) -> list[nn.Module]:
    """Takes weights out of the training.

    Args:
        model: A DeiT or ViT of this package, or a classifier of timm (whose trunk is all but its classifier).
        what: "trunk": only heads learn, a linear probe; "blocks:N": embeddings, tokens and the first N blocks stay;
            empty: nothing.

    Returns:
        The modules that are frozen whole. They are to be kept in evaluation mode: without dropout and drop path, and
        with the statistics of batch norm that they have.

    Raises:
        ValueError: The model has fewer blocks, or no trunk that could be told from its heads.
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
            f"freeze='trunk' needs a model whose classifier is known. Received: {type(model).__name__}. Take a DeiT, a "
            "ViT or a model of timm."
        )
    # Children that hold no part of the classifier; what lies around it is gone into.
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
    for parameter in model.parameters():  # those that hang on no child, too
        parameter.requires_grad_(id(parameter) in own)
    return frozen

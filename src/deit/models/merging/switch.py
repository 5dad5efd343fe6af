"""Turns token merging on and off, in models that exist and in new ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.models.merging.blocks import MergingAttention, MergingBlock, MergingTransformer, turn_off, turn_on
from deit.models.trunk.cpu_kernels import Forwards
from deit.models.trunk.vision_transformer import Attention, Block, VisionTransformer

# The trunks that can compute the prefix tokens alone, with the `forward` that does it.
TRUNK_FORWARDS: Forwards = {kind: kind.forward for kind in (VisionTransformer, MergingTransformer)}


def build_trunk(config: VisionTransformerConfig, *, use_mask_token: bool) -> VisionTransformer:
    """Builds a trunk that merges tokens if its configuration says so.

    Args:
        config: Sizes, rates and `token_merging`.
        use_mask_token: See `VisionTransformer`.
    """
    trunk = VisionTransformer(config, use_mask_token=use_mask_token)
    schedule = schedule_of(config)
    if any(schedule):
        turn_on(trunk, schedule)
    return trunk


def schedule_of(config: VisionTransformerConfig) -> tuple[int, ...]:
    """Returns the number of tokens that each block but the last is asked to merge."""
    r = config.token_merging.get("r", 0)
    return (r,) * (config.num_hidden_layers - 1) if isinstance(r, int) else tuple(r)


def merge_tokens(model: Any, r: int | Sequence[int]) -> Any:
    """Lets a model merge similar patch tokens between attention and MLP, so that it is faster (arXiv 2210.09461).

    Changes the model in place, without training: its weights stay as they are, its answers change a little. The
    configuration remembers it, so that a saved model merges when it is opened again. Class and distillation token are
    never merged. See docs/token-merging.md.

    Args:
        model: A DeiT or ViT of this package.
        r: Number of tokens that each block merges, at most half of its patch tokens; or a number for each block but the
            last. 0 turns merging off: the model is then as it was, bit for bit.

    Returns:
        The model.

    Raises:
        TypeError: There is no transformer of this package in the model, or `r` is no whole number.
        ValueError: `r` is negative or of another length; or a block was replaced by another module.

    Examples:
        >>> from deit import ViTConfig, ViTForImageClassification
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32}
        >>> model = merge_tokens(ViTForImageClassification(ViTConfig(**sizes)), 1)
        >>> model.config.token_merging
        {'r': 1}
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    trunks = [module for module in modules if isinstance(module, VisionTransformer)]
    if not trunks:
        raise WrongTypeError(
            f"Tokens can be merged in a DeiT or ViT of this package. Received: {type(model).__name__}."
        )
    value = {} if r == 0 else {"r": list(r) if isinstance(r, (list, tuple)) else r}
    for trunk in trunks:
        changed = copy.copy(trunk.config)
        changed.update({"token_merging": value})
        changed.validate()
        _refuse_changed(trunk)
    for module in modules:
        config = getattr(module, "config", None)
        if isinstance(config, VisionTransformerConfig):
            config.update({"token_merging": value})
    for trunk in trunks:
        _apply(trunk)
    return model


@contextmanager
def tokens_merged(model: Any, r: int | Sequence[int]) -> Iterator[Any]:
    """Lets a model merge tokens inside a `with` block, and as before after it; arguments as in `merge_tokens`."""
    before: Mapping[str, Any] = next(
        (module.config.token_merging for module in model.modules() if isinstance(module, VisionTransformer)), {}
    )
    merge_tokens(model, r)
    try:
        yield model
    finally:
        merge_tokens(model, before.get("r", 0))


def _apply(trunk: VisionTransformer) -> None:
    if isinstance(trunk, MergingTransformer):
        turn_off(trunk)
    schedule = schedule_of(trunk.config)
    if any(schedule):
        turn_on(trunk, schedule)


def _refuse_changed(trunk: Any) -> None:
    kinds = {
        (VisionTransformer, MergingTransformer): [trunk],
        (Block, MergingBlock): list(trunk.blocks),
        (Attention, MergingAttention): [getattr(block, "attn", None) for block in trunk.blocks],
    }
    for expected, modules in kinds.items():
        other = next((module for module in modules if type(module) not in expected), None)
        if other is not None:
            raise UserError(
                f"A {expected[0].__name__} of the model was replaced by {type(other).__name__}, which cannot merge "
                "tokens. Turn merging on before such changes."
            )

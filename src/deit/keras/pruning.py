"""Removes attention heads of a Keras model, as `PreTrainedModel.prune_heads` does in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
from keras import ops

from deit.core.errors import UserError
from deit.keras.layers import without_initial_values
from deit.keras.vision_transformer import Attention


def prune(trunk: Any, heads_to_prune: Mapping[int, Iterable[int]]) -> dict[int, list[int]]:
    """Removes heads of the blocks of a trunk.

    Args:
        trunk: A `KerasVisionTransformer`.
        heads_to_prune: Block index -> head indices, as in the unpruned model.

    Returns:
        All removed heads by block, earlier ones included.

    Raises:
        ValueError: A block or head does not exist, no head would remain, or a layer is quantized or has adapters.
    """
    config = trunk.config
    table = {int(block): set(heads) for block, heads in config.pruned_heads.items()}
    wanted = {int(block): {int(head) for head in heads} for block, heads in heads_to_prune.items()}
    for block, heads in wanted.items():
        if not 0 <= block < len(trunk.blocks):
            raise UserError(f"There are blocks 0 to {len(trunk.blocks) - 1}. Received: {block}.")
        if not heads <= set(range(config.num_attention_heads)):
            raise UserError(f"There are heads 0 to {config.num_attention_heads - 1}. Received: {sorted(heads)}.")
        table[block] = table.get(block, set()) | heads
        if len(table[block]) == config.num_attention_heads:
            raise UserError(f"No head would be left in block {block}. Keep one.")
        attention = trunk.blocks[block].attn
        for layer in (attention.qkv, attention.proj):
            if layer.quantization_mode is not None or layer.lora_enabled:
                raise UserError("Heads of a quantized layer, or of one with adapters, cannot be pruned. Prune before.")
    for block, heads in wanted.items():
        _prune(trunk.blocks[block].attn, heads)
    return {block: sorted(heads) for block, heads in table.items()}


def _prune(attention: Attention, heads: set[int]) -> None:
    kept = [place for place, head in enumerate(attention.heads) if head not in heads]
    if len(kept) == len(attention.heads):
        return
    old, width = len(attention.heads), attention.head_width

    def rows(value: np.ndarray, threefold: bool) -> np.ndarray:
        """Returns the rows of the kept heads; the first axis is (3 x) heads x width."""
        parts = value.reshape(3 if threefold else 1, old, width, *value.shape[1:])[:, kept]
        return parts.reshape(-1, *value.shape[1:])

    qkv, proj = attention.qkv, attention.proj
    bias = None if qkv.bias is None else rows(_array(qkv.bias), True)
    _replace(qkv, rows(_array(qkv._kernel).T, True).T, bias)
    _replace(proj, rows(_array(proj._kernel), False), _array(proj.bias))
    attention.heads = tuple(attention.heads[place] for place in kept)
    attention.is_pruned = True


def _array(variable: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(variable.value))


def _replace(layer: keras.layers.Dense, kernel: np.ndarray, bias: np.ndarray | None) -> None:
    """Replaces the weights of a linear layer by weights of another size. Frozen variables stay frozen."""
    trainable = [variable.trainable for variable in (layer._kernel, layer.bias) if variable is not None]
    layer._tracker.unlock()
    for variable in (layer._kernel, layer.bias):
        if variable is not None:  # untracks: for each deleted variable Keras runs the garbage collector
            layer._untrack_variable(variable)
    layer.units, layer.built = kernel.shape[1], False
    with ExitStack() as scopes, without_initial_values():
        for name in (layer.path or layer.name).split("/")[:-1]:  # so that the new variables keep their paths
            scopes.enter_context(keras.name_scope(name))
        layer.build((None, kernel.shape[0]))
    for variable, value, flag in zip((layer._kernel, layer.bias), (kernel, bias), trainable, strict=False):
        variable.assign(value)
        variable.trainable = flag

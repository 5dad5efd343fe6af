"""Computes the weights of a `LeanClassifier` from a classifier that nobody changed, in float64.

Letters in shape comments: as in `operations.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.processing.parts import is_replaced
from deit.inference.graph.lean_classifier import LeanBlock, LeanClassifier
from deit.inference.graph.operations import activation_name
from deit.models.deit import average_of_heads

_STEPS = ("process_image", "rescale", "normalize", "rescale_and_normalize", "pad", "_preprocess")

Folded = tuple[Tensor, Tensor]  # weight and bias


@torch.no_grad()
def fold(
    model: Any, processor: DeiTImageProcessor, *, takes_uint8: bool, with_features: bool = False
) -> LeanClassifier:
    """Rewrites a classifier.

    Args:
        model: A classifier for which `known_models.why_unknown` returns None.
        processor: Rescales and normalizes, if the pixels are to be integers.
        takes_uint8: Whether that is part of the result.
        with_features: See `classifier_graph`.

    Returns:
        The result, in the type of the model's weights and on its device.

    Raises:
        UserError: See `rescaling`.
    """
    trunk = getattr(model, model.base_model_prefix).trunk
    projection = trunk.patch_embed.proj
    weight, bias = _double(projection.weight), _bias(projection)
    if takes_uint8:
        factor, shift = (t.double().to(weight.device) for t in rescaling(processor, weight.shape[1]))
        bias = bias + (weight * shift[:, None, None]).sum((1, 2, 3))
        weight = weight * factor[:, None, None]
    heads = [_after_norm(trunk.norm, *_layer(head)) for head in _heads(model)]
    weights = {
        "patch_weight": weight,
        "start": _start(trunk, bias),
        "head_weight": torch.stack([head.T for head, _ in heads]),
        "head_bias": torch.stack([bias[None] for _, bias in heads]),
    }
    if with_features:
        weights["feature_weight"] = torch.diag(_double(trunk.norm.weight))[None]
        weights["feature_bias"] = _double(trunk.norm.bias)[None, None]
    blocks = [_fold_block(block) for block in trunk.blocks]
    dtype = projection.weight.dtype
    average = average_of_heads(model.config)
    lean = LeanClassifier(
        weights,
        blocks,
        trunk.norm.eps,
        grid=trunk.grid_size,
        num_prefix_tokens=trunk.num_prefix_tokens,
        takes_uint8=takes_uint8,
        average=average,
    )
    for module in lean.modules():  # each tensor with memory of its own
        for name, tensor in module._buffers.items():
            assert tensor is not None
            module._buffers[name] = tensor.to(dtype).contiguous().clone()
    return lean.eval()


def rescaling(processor: DeiTImageProcessor, channels: int) -> tuple[Tensor, Tensor]:
    """Returns what turns integers from 0 to 255 into pixels: a factor and a summand for each channel, (C,).

    Raises:
        UserError: The processor does something else as well, after the pixels were integers.
    """
    if is_replaced(processor, _STEPS):
        raise UserError(
            "The image processor has replaced steps after resizing, which cannot become part of the model. Pass "
            "takes_uint8=False."
        )
    if processor.do_pad:
        raise UserError("The image processor pads images after normalizing them. Pass takes_uint8=False.")
    factor = torch.ones(channels, dtype=torch.float64)
    shift = torch.zeros(channels, dtype=torch.float64)
    if processor.do_rescale:
        factor *= processor.rescale_factor
    if processor.do_normalize:
        mean, std = (torch.as_tensor(v, dtype=torch.float64) for v in (processor.image_mean, processor.image_std))
        factor, shift = factor / std, shift - mean / std
    return factor, shift


def _start(trunk: Any, patch_bias: Tensor) -> Tensor:
    tokens = [_double(token) for token in (trunk.cls_token, trunk.dist_token) if token is not None]
    prefix = torch.cat(tokens, dim=1)  # (1, M, D)
    positions = _double(trunk.pos_embed)
    if trunk.num_prefix_positions:
        prefix, positions = prefix + positions[:, : len(tokens)], positions[:, len(tokens) :]
    return torch.cat((prefix, positions + patch_bias), dim=1)


def _fold_block(block: Any) -> LeanBlock:
    attention, mlp = block.attn, block.mlp
    if attention.qkv is None:
        layers = [_layer(getattr(attention, name)) for name in attention.qkv_names]
    else:
        weight, bias = _layer(attention.qkv)
        layers = list(zip(weight.chunk(3), bias.chunk(3), strict=True))
    (query, query_bias), (key, _), (value, value_bias) = (_after_norm(block.norm1, *layer) for layer in layers)
    scale = attention.head_width**-0.5
    proj, proj_bias = _layer(attention.proj)
    proj_bias = proj_bias + proj @ value_bias  # the probabilities of a query add up to 1
    fc1, fc1_bias = _after_norm(block.norm2, *_layer(mlp.fc1))
    fc2, fc2_bias = _layer(mlp.fc2)
    first, second = _scale(block.ls1, proj), _scale(block.ls2, fc2)
    weights = {
        "query_weight": query * scale,
        "query_bias": query_bias * scale,
        "key_weight": key,  # its bias adds the same number to all scores of a query, which softmax ignores
        "value_weight": value,
        "proj_weight": proj * first[:, None],
        "proj_bias": proj_bias * first,
        "fc1_weight": fc1,
        "fc1_bias": fc1_bias,
        "fc2_weight": fc2 * second[:, None],
        "fc2_bias": fc2_bias * second,
    }
    return LeanBlock(weights, len(attention.heads), (block.norm1.eps, block.norm2.eps), activation_name(mlp.activation))


def _after_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Folded:
    """Returns the layer that does to a norm without weights what a layer did to this one."""
    return weight * _double(norm.weight), bias + weight @ _double(norm.bias)


def _scale(layer: Any, like: Tensor) -> Tensor:
    return _double(layer.gamma) if hasattr(layer, "gamma") else like.new_ones(like.shape[0])


def _heads(model: Any) -> list[nn.Linear]:
    if hasattr(model, "distillation_classifier"):
        return [model.cls_classifier, model.distillation_classifier]
    return [model.classifier]


def _layer(layer: Any) -> Folded:
    return _double(layer.weight), _bias(layer)


def _bias(layer: Any) -> Tensor:
    return _double(layer.weight).new_zeros(layer.weight.shape[0]) if layer.bias is None else _double(layer.bias)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()

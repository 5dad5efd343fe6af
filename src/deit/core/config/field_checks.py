"""Checks the fields of a configuration: types, ranges, upper limits, and consistency."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from deit.core.config.following_defaults import DISTILLATION_KINDS
from deit.core.errors import UserError, WrongTypeError, shown
from deit.core.labels import PROBLEM_TYPES, SINGLE_LABEL

HEAD_AVERAGES = ("logits", "probabilities")
DECODER_STARTS = ("normal", "simmim")
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
_COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_channels",
    "encoder_stride",
    "pooler_output_size",
)

# The most that a size may be. The largest vision transformers have 56 layers and a width of 6,144; label sets 30,000
# classes; images of 4,096 pixels in patches of 8 make 262,144 patches. A file that says more would fill the memory.
_MOST = {
    "hidden_size": 65_536,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 65_536,
    "intermediate_size": 262_144,
    "num_channels": 65_536,
    "encoder_stride": 16_384,
    "pooler_output_size": 65_536,
    "image_size": 16_384,
    "patch_size": 16_384,
}
MOST_PATCHES = 262_144
MOST_LABELS = 100_000


def check_count(name: str, value: Any) -> None:
    """Checks a whole number between 1 and the limit of its field."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongTypeError(f"{name} must be an integer. Received: {shown(value)}.")
    if value < 1:
        raise UserError(f"{name} must be at least 1. Received: {shown(value)}.")
    if value > _MOST.get(name, value):
        raise UserError(f"{name} must be at most {_MOST[name]}. Received: {shown(value)}.")


def is_finite(number: Any) -> bool:
    """Whether a number is none of infinity, NaN, and the whole numbers that are too large for a float."""
    return bool(-sys.float_info.max <= number <= sys.float_info.max)


def check_number(name: str, value: Any, *, low: float, high: float | None = None) -> None:
    """Checks a number between two bounds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise WrongTypeError(f"{name} must be a number. Received: {shown(value)}.")
    if not is_finite(value) or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{name} must be {bounds}. Received: {shown(value)}.")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Checks one of several values."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(repr, choices))}. Received: {shown(value)}.")


def check_architectures(value: Any) -> None:
    """Checks the names of classes that a configuration is for: None, or a list of texts."""
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise WrongTypeError(f"architectures must be a list of names of classes. Received: {shown(value)}.")


def height_and_width(size: Any, name: str) -> tuple[int, int]:
    """Returns (height, width) of a size given as one number or as a pair.

    Raises:
        TypeError: It is neither.
        ValueError: A side is smaller than 1.
    """
    pair = (size, size) if isinstance(size, int) else size
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        for side in pair:
            check_count(name, side)
        return int(pair[0]), int(pair[1])
    raise WrongTypeError(f"{name} must be an integer or a pair (height, width). Received: {shown(size)}.")


def check_fields(config: Any) -> None:
    """Checks each field of a configuration by itself.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range.
    """
    for name in _COUNTS:
        check_count(name, getattr(config, name))
    for name in ("image_size", "patch_size"):
        height_and_width(getattr(config, name), name)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "distillation_weight"):
        check_number(name, getattr(config, name), low=0.0, high=1.0)
    for name in ("initializer_range", "layer_norm_eps", "layer_scale_init"):
        check_number(name, getattr(config, name), low=0.0)
    check_choice("pos_embed_prefix", config.pos_embed_prefix, (True, False))
    check_number("distillation_temperature", config.distillation_temperature, low=1e-6)
    for name in ("hidden_act", "pooler_act"):
        value = getattr(config, name)
        if not isinstance(value, str) and not callable(value):
            raise WrongTypeError(f"{name} must be the name of an activation or a function. Received: {shown(value)}.")
    for name in ("qkv_bias", "output_attentions", "output_hidden_states", "return_dict"):
        if not isinstance(getattr(config, name), bool):
            raise WrongTypeError(f"{name} must be True or False. Received: {shown(getattr(config, name))}.")
    check_architectures(config.architectures)
    check_choice("problem_type", config.problem_type, (None, *PROBLEM_TYPES))
    check_choice("attn_implementation", config.attn_implementation, ATTENTION_IMPLEMENTATIONS)
    check_choice("head_average", config.head_average, HEAD_AVERAGES)
    check_choice("fused_qkv", config.fused_qkv, (True, False))
    names = config.qkv_names
    if len(set(names)) != 3 or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise UserError(f"qkv_names must be three different names of attributes. Received: {shown(names)}.")
    check_choice("decoder_init", config.decoder_init, DECODER_STARTS)
    check_choice("distillation_kind", config.distillation_kind, DISTILLATION_KINDS)
    if not isinstance(config.pruned_heads, Mapping):
        raise WrongTypeError(f"pruned_heads must be a dict of lists. Received: {shown(config.pruned_heads)}.")
    _check_token_merging(config.token_merging)


def _check_token_merging(value: Any) -> None:
    if not isinstance(value, Mapping) or not set(value) <= {"r"}:
        raise WrongTypeError(f'token_merging must be {{}} or {{"r": R}}. Received: {shown(value)}.')
    numbers = value.get("r", 0)
    for number in numbers if isinstance(numbers, (list, tuple)) else [numbers]:
        if not isinstance(number, int) or isinstance(number, bool):
            raise WrongTypeError(
                f"r of token_merging must be a whole number or a list of whole numbers. Received: {shown(numbers)}."
            )
        if not 0 <= number <= MOST_PATCHES:
            raise UserError(f"r of token_merging must lie between 0 and {MOST_PATCHES}. Received: {shown(number)}.")


def check_label_count(config: Any) -> None:
    """Checks that single-label classification has at least two classes."""
    if config.problem_type == SINGLE_LABEL and config.num_labels == 1:
        raise UserError(
            "problem_type 'single_label_classification' needs at least two labels. Set num_labels=2, or "
            "problem_type='regression' for one number."
        )


def check_agreement(config: Any) -> None:
    """Checks that the fields of a configuration describe a model together.

    Raises:
        ValueError: Two contradict each other.
    """
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}. "
            "Choose a number of heads that divides it."
        )
    if any(i > p for p, i in zip(config.grid_image_size, config.grid_patch_size, strict=True)):
        raise UserError(f"patch_size {config.patch_size} is larger than image_size {config.image_size}.")
    if config.grid_size[0] * config.grid_size[1] > MOST_PATCHES:
        raise UserError(
            f"image_size {config.image_size} in patches of {config.patch_size} are more than {MOST_PATCHES} patches. "
            "Take larger patches or smaller images."
        )
    blocks, heads = range(config.num_hidden_layers), range(config.num_attention_heads)
    for block, pruned in config.pruned_heads.items():
        if not isinstance(pruned, (list, tuple, set)) or any(head not in heads for head in pruned):
            raise UserError(
                f"pruned_heads must name heads from 0 to {heads[-1]}. Received for {shown(block)}: {shown(pruned)}."
            )
        if block not in blocks:
            raise UserError(f"pruned_heads must name blocks from 0 to {blocks[-1]}. Received: {shown(block)}.")
        if len(set(pruned)) == len(heads):
            raise UserError(f"pruned_heads would leave block {block} without attention heads. Keep at least one.")
    merged = config.token_merging.get("r", 0)
    if not isinstance(merged, int) and len(merged) != config.num_hidden_layers - 1:
        raise UserError(
            f"r of token_merging must be one number, or {config.num_hidden_layers - 1}: one for each block but the "
            f"last. Received: {len(merged)} numbers."
        )


def require_equal_stride(config: Any) -> None:
    """Checks that the reconstruction of masked images has the size of the image.

    Args:
        config: A `VisionTransformerConfig`.

    Raises:
        ValueError: The encoder stride is not the patch size.
    """
    if config.grid_patch_size != (config.encoder_stride,) * 2:
        raise UserError(
            f"encoder_stride {config.encoder_stride} must equal patch_size {config.patch_size}: the "
            "reconstruction must have the size of the image."
        )

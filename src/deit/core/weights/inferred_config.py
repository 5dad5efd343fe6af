"""Infers a configuration from the names and shapes of tensors.

Files of the original release and of timm describe the architecture incompletely. Values that tensors do not determine
are the paper's: 64 channels per attention head (except DeiT III-H) and LayerNorm epsilon 1e-6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.published import VARIANTS
from deit.core.variants import same_architecture
from deit.core.weights.names import TRUNK, file_names, is_distilled, name_in_trunk, network_names, places

# Tensors outside the trunk: classifiers, the pooler of a bare model, the decoder of a masked-image model.
_DECODER = "decoder.0"
_OUTSIDE = {"classifier", "cls_classifier", "distillation_classifier", "pooler.dense", _DECODER}
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_LAYER_SCALE_INIT = 1e-4  # the paper's; the learned values are in the file

# Names of timm's architectures; `timm_config` adds the fields that differ.
_TIMM_BASES = {
    "deit": "deit_tiny_distilled_patch16_224",
    "vit": "deit_tiny_patch16_224",
    "deit3": "deit3_small_patch16_224",
}


def own_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the network's tensors from those of a file in any dialect, without prefixes."""
    found: dict[str, tuple[int, ...]] = {}
    for name, part in places(shapes).items():
        own = name_in_trunk(part.name)
        shape = tuple(shapes[name])
        found[own] = (shape[0] * part.count, *shape[1:]) if part.count > 1 else shape
    return found


def infer_config(
    shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any] | None = None, *, source: object = "The file"
) -> VisionTransformerConfig:
    """Infers a configuration from the tensors of a file in any dialect.

    Args:
        shapes: Shapes of all tensors of the file.
        values: timm's configuration of the file, if there is one: class names, and sizes that tensors do not determine.
        source: Name of the file for messages.

    Returns:
        A `DeiTConfig` if there is a distillation token, else a `ViTConfig`. Names the class of the model.

    Raises:
        ValueError: The file does not hold a DeiT or ViT, or its sizes cannot be inferred.
    """
    shapes = {name: shapes[name] for name in network_names(shapes) if shapes[name]}  # leaves out counters
    own = own_shapes(shapes)
    foreign = [name for name in own if not _is_known(name)]
    lost = [name for name in ("cls_token", "pos_embed", "patch_embed.proj.weight") if name not in own]
    if foreign or lost:
        reason = f"it has {foreign[0]!r}" if foreign else f"it lacks {lost[0]!r}"
        raise UserError(f"{source} is not a DeiT or ViT of this package: {reason}.")
    values = values or {}
    distilled = is_distilled(shapes)
    width = own["cls_token"][-1]
    channels, *patch = own["patch_embed.proj.weight"][1:]
    depth = 1 + max((int(m[1]) for m in map(_BLOCK.match, own) if m), default=0)
    patches, has_prefix = _patches(own["pos_embed"][1], 2 if distilled else 1, source)
    head = own.get("cls_classifier.weight", own.get("classifier.weight", (0,)))
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": own["blocks.0.mlp.fc1.weight"][0],
        "image_size": _joined([math.isqrt(patches) * side for side in patch]),
        "patch_size": _joined(patch),
        "encoder_stride": patch[0],
        "num_channels": channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        "layer_norm_eps": 1e-6,
        "layer_scale_init": _LAYER_SCALE_INIT if "blocks.0.ls1.gamma" in own else 0.0,
        "pos_embed_prefix": has_prefix,
        "num_labels": head[0],
        "architectures": [_class_name(distilled, own)],
    }
    fields["num_attention_heads"] = _num_heads(fields, values, source)
    names = values.get("label_names")
    if isinstance(names, list) and len(names) == head[0]:
        fields["id2label"] = {i: str(name) for i, name in enumerate(names)}
    config = (DeiTConfig if distilled else ViTConfig)(**fields)
    config.validate()
    return config


def _class_name(distilled: bool, own: Mapping[str, tuple[int, ...]]) -> str:
    family = "DeiT" if distilled else "ViT"
    if f"{_DECODER}.weight" in own:
        return f"{family}ForMaskedImageModeling"
    if "cls_classifier.weight" in own:
        return f"{family}ForImageClassificationWithTeacher"
    return f"{family}ForImageClassification" if "classifier.weight" in own else f"{family}Model"


def _is_known(name: str) -> bool:
    stem = name.rpartition(".")[0]
    return stem in _OUTSIDE or file_names(TRUNK + name) != [TRUNK + name]


def _patches(positions: int, num_prefix_tokens: int, source: object) -> tuple[int, bool]:
    """Returns the number of patches of a square image, and True if prefix tokens have positions."""
    for prefix in (num_prefix_tokens, 0):
        if math.isqrt(positions - prefix) ** 2 == positions - prefix:
            return positions - prefix, prefix > 0
    raise UserError(
        f"{source} has {positions} positions, which do not form a square image. Pass config= with the image size."
    )


def _joined(pair: list[int]) -> Any:
    return pair[0] if pair[0] == pair[1] else tuple(pair)


def _num_heads(fields: Mapping[str, Any], values: Mapping[str, Any], source: object) -> int:
    arguments = values.get("model_args")
    if isinstance(arguments, Mapping) and isinstance(arguments.get("num_heads"), int):
        return int(arguments["num_heads"])
    width, depth = fields["hidden_size"], fields["num_hidden_layers"]
    for variant in VARIANTS.values():
        if (variant.hidden_size, variant.depth) == (width, depth):
            return variant.num_heads
    if width % 64 == 0:
        return int(width // 64)
    raise UserError(
        f"{source} does not say its number of attention heads, and its width {width} is not a multiple of 64. "
        "Pass config=."
    )


def timm_config(config: VisionTransformerConfig, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `config.json` with which timm opens a model (`timm.create_model("local-dir:...")`).

    Args:
        config: Configuration of the model. Its LayerNorm epsilon is not written, because timm always uses 1e-6.
        preprocessing: Fields of `pretrained_cfg` such as `mean`, `std`, `crop_pct` and `interpolation`.

    Raises:
        ValueError: timm's architectures cannot express the configuration.
    """
    if config.hidden_act != "gelu":
        raise UserError(f"timm's DeiT has the activation 'gelu', the model has {config.hidden_act!r}.")
    if config.head_average != "logits":
        raise UserError(f"timm's DeiT averages logits, the model has head_average={config.head_average!r}.")
    values = config.to_dict()
    variant = same_architecture(values)
    family = "deit" if config.model_type == "deit" else ("vit" if config.pos_embed_prefix else "deit3")
    base = variant.removesuffix("-in21k").replace("-", "_") if variant else None
    known = base is not None and VARIANTS[variant].source is not None  # type: ignore[index]
    height, width = config.grid_image_size
    arguments: dict[str, Any] = {}
    if not known:
        arguments = {
            "img_size": [height, width],
            "patch_size": _joined(list(config.grid_patch_size)),
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
            "qkv_bias": config.qkv_bias,
            "in_chans": config.num_channels,
            "no_embed_class": not config.pos_embed_prefix,
            "init_values": config.layer_scale_init or None,
        }
    labels = [config.id2label[i] for i in sorted(config.id2label)]
    result: dict[str, Any] = {
        "architecture": base if known else _TIMM_BASES[family],
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": config.num_labels,
            "input_size": [config.num_channels, height, width],
            "fixed_input_size": True,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if family == "deit" else "head",
            **preprocessing,
        },
    }
    if labels != [f"LABEL_{i}" for i in range(len(labels))]:
        result["label_names"] = labels
    if not arguments:
        del result["model_args"]
    return result

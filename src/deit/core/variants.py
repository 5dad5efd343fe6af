"""Builds the configurations and preprocessing of the named architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.published import VARIANTS, Variant, find_variant

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BICUBIC = 3  # Pillow's number


def variant_config(name: str, **overrides: Any) -> VisionTransformerConfig:
    """Returns the configuration of a variant, for training from scratch.

    LayerNorm's epsilon is 1e-6, as in the paper's code; published files bring their own configuration.

    Args:
        name: A key of `VARIANTS`.
        **overrides: Fields of the configuration that replace the variant's.

    Returns:
        A `DeiTConfig` for distilled variants, else a `ViTConfig`.

    Raises:
        ValueError: Unknown name, or a bad value.
    """
    variant = find_variant(name)
    fields: dict[str, Any] = {
        "hidden_size": variant.hidden_size,
        "num_hidden_layers": variant.depth,
        "num_attention_heads": variant.num_heads,
        "intermediate_size": 4 * variant.hidden_size,
        "image_size": variant.image_size,
        "patch_size": variant.patch_size,
        "encoder_stride": variant.patch_size,
        "num_channels": variant.num_channels,
        "layer_norm_eps": 1e-6,
        "layer_scale_init": variant.layer_scale_init,
        "pos_embed_prefix": not variant.layer_scale_init,
    }
    return (DeiTConfig if variant.distilled else ViTConfig)(**{**fields, **overrides})


def paper_preprocessing(
    image_size: tuple[int, int],
    crop_ratio: float,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, Any]:
    """Returns the fields of the image processor for the evaluation of both papers, whatever the crop ratio.

    The shorter side is resized to the input size / crop ratio (bicubic, rounded down) and the center is cut out:
    `build_transform` of the authors' datasets.py. At a ratio of 1 a photo still keeps its proportions.

    Args:
        image_size: (height, width) of the model's input. Where they differ, the shorter side follows the larger one.
        crop_ratio: Crop size over resize size: 0.875 for DeiT, 1 for DeiT III.
        mean: Of each channel, for values in [0, 1].
        std: Likewise.

    Raises:
        ValueError: The ratio is not in (0, 1].
    """
    if not 0 < crop_ratio <= 1:
        raise UserError(f"crop_ratio must lie in (0, 1]. Received: {crop_ratio}.")
    height, width = image_size
    return {
        "size": {"shortest_edge": int(max(height, width) / crop_ratio)},
        "resample": _BICUBIC,
        "crop_size": {"height": height, "width": width},
        "do_center_crop": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def preprocessing_fields(variant: Variant) -> dict[str, Any]:
    """Returns the fields of the image processor that `variant.top1` was measured with (the paper's evaluation)."""
    return paper_preprocessing((variant.image_size, variant.image_size), variant.crop_ratio)


def same_architecture(config: Mapping[str, Any]) -> str | None:
    """Returns the first variant with the sizes of a configuration (the number of classes aside), or None.

    Args:
        config: Fields of a configuration, such as `config.to_dict()`.
    """
    return next((name for name in VARIANTS if fits_variant(config, name, image_size=True)), None)


def closest_variant(config: Mapping[str, Any]) -> str | None:
    """Returns the first variant with the sizes of a configuration, if need be with another image size."""
    return same_architecture(config) or next((name for name in VARIANTS if fits_variant(config, name)), None)


def fits_variant(config: Mapping[str, Any], name: str, *, image_size: bool = False) -> bool:
    """Whether a configuration has the sizes of a variant, the number of classes aside.

    Args:
        config: Fields of a configuration.
        name: The variant.
        image_size: Whether the size of the images counts as well.
    """
    fields = variant_config(name).to_dict()
    compared = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size",
                "num_channels", "pos_embed_prefix", "model_type", "qkv_bias")  # fmt: skip
    return (
        all(fields[key] == config[key] for key in compared)
        and bool(config["layer_scale_init"]) == bool(fields["layer_scale_init"])
        and (not image_size or fields["image_size"] == config["image_size"])
    )

"""Named architectures: sizes, preprocessing, where the published weights are and what they score."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deit.core.configuration import DeiTConfig, VisionTransformerConfig, ViTConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BICUBIC = 3  # Pillow's number


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One named architecture.

    Attributes:
        hidden_size: Embedding dimension D.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        image_size: Side of the square image, in pixels.
        patch_size: Side of a square patch, in pixels.
        distilled: Whether there is a distillation token with a head (model type "deit"); without, the model type is
            "vit".
        num_channels: Channels of the input image.
        layer_scale_init: Initial value of layer scale; above 0 for DeiT III only, whose position embedding has no
            place for the class token.
        source: Hub name of the published weights, or None.
        top1: Published ImageNet-1k top-1 accuracy in percent (README of the original code), or None.
        crop_ratio: Crop size over resize size that `top1` was measured with: the shorter side is resized to
            `image_size / crop_ratio`, bicubic, and the center is cut out.
        parameters: Number of parameters with 1000 classes, or None for what was not published.
    """

    hidden_size: int
    depth: int
    num_heads: int
    image_size: int
    patch_size: int
    distilled: bool
    num_channels: int = 3
    layer_scale_init: float = 0.0
    source: str | None = None
    top1: float | None = None
    crop_ratio: float = 0.875
    parameters: int | None = None

    @property
    def model_type(self) -> str:
        """Model type in configurations: "deit" or "vit"."""
        return "deit" if self.distilled else "vit"


# Sizes by name: (D, depth, heads).
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}

# The published models of the DeiT paper: size, image size, distilled, parameters, top-1. Sources on the hub have the
# same name under `facebook/`.
_DEIT = (
    ("tiny", 224, True, 5_910_800, 74.476),
    ("small", 224, True, 22_436_432, 81.164),
    ("base", 224, True, 87_338_192, 83.372),
    ("base", 384, True, 87_630_032, 85.224),
    ("tiny", 224, False, 5_717_416, 72.202),
    ("small", 224, False, 22_050_664, 79.854),
    ("base", 224, False, 86_567_656, 81.846),
    ("base", 384, False, 86_859_496, 82.890),
)

# DeiT III: size, image size, patch size, parameters, top-1 from ImageNet-1k alone, top-1 pretrained on ImageNet-21k.
_DEIT_III = (
    ("small", 224, 16, 22_059_496, 81.4, 83.1),
    ("small", 384, 16, 22_205_416, 83.4, 84.8),
    ("medium", 224, 16, 38_849_512, 83.0, 84.5),
    ("base", 224, 16, 86_585_320, 83.8, 85.7),
    ("base", 384, 16, 86_877_160, 85.0, 86.7),
    ("large", 224, 16, 304_374_760, 84.9, 87.0),
    ("large", 384, 16, 304_763_880, 85.8, 87.7),
    ("huge", 224, 14, 632_126_440, 85.2, 87.2),
)


def _published() -> dict[str, Variant]:
    table = {}
    for size, image, distilled, parameters, top1 in _DEIT:
        name = f"deit-{size}{'-distilled' if distilled else ''}-patch16-{image}"
        width, depth, heads = _SIZES[size]
        table[name] = Variant(
            hidden_size=width, depth=depth, num_heads=heads, image_size=image, patch_size=16, distilled=distilled,
            source=f"facebook/{name}", top1=top1, parameters=parameters,
        )  # fmt: skip
    for size, image, patch, parameters, top1, top1_21k in _DEIT_III:
        width, depth, heads = _SIZES[size]
        for suffix, tag, score in (("", "fb_in1k", top1), ("-in21k", "fb_in22k_ft_in1k", top1_21k)):
            table[f"deit3-{size}-patch{patch}-{image}{suffix}"] = Variant(
                hidden_size=width, depth=depth, num_heads=heads, image_size=image, patch_size=patch, distilled=False,
                layer_scale_init=1e-4, source=f"timm/deit3_{size}_patch{patch}_{image}.{tag}", top1=score,
                crop_ratio=1.0, parameters=parameters,
            )  # fmt: skip
    return table


# The published models, and some for images of 32 x 32 pixels without published weights: the student of the demo, the
# paper's tiny model in patches of 4 (5.4 million parameters), and two for training on a CPU (2.7 and 0.8 million).
VARIANTS: dict[str, Variant] = {
    **_published(),
    "deit-digits-distilled-patch8-32": Variant(
        hidden_size=64, depth=4, num_heads=2, image_size=32, patch_size=8, distilled=True,
    ),
    "deit-tiny-distilled-patch4-32": Variant(
        hidden_size=192, depth=12, num_heads=3, image_size=32, patch_size=4, distilled=True,
    ),
    "deit-micro-distilled-patch4-32": Variant(
        hidden_size=192, depth=6, num_heads=3, image_size=32, patch_size=4, distilled=True,
    ),
    "deit-mini-distilled-patch4-32": Variant(
        hidden_size=128, depth=4, num_heads=4, image_size=32, patch_size=4, distilled=True,
    ),
}  # fmt: skip


def list_models(*, published: bool = True) -> list[str]:
    """Returns the short names that `from_pretrained` and `deit train` understand.

    Args:
        published: Only those whose weights are on the hub.

    Example:
        >>> list_models()[:2]
        ['deit-tiny-distilled-patch16-224', 'deit-small-distilled-patch16-224']
    """
    return [name for name, variant in VARIANTS.items() if variant.source is not None or not published]


def find_variant(name: str) -> Variant:
    """Returns the variant of that name.

    Raises:
        ValueError: There is none; the message suggests the nearest name.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown variant {name!r}.{hint} Known: {', '.join(VARIANTS)}.")


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
        raise ValueError(f"crop_ratio must lie in (0, 1]. Received: {crop_ratio}.")
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
    """Returns the first variant with the sizes of a configuration; one for images of another size if need be."""
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

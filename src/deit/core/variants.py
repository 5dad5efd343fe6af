"""Named architectures: sizes, preprocessing, where the published weights are and what they score."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from deit.core.configuration import DeiTConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One named architecture.

    Attributes:
        hidden_size: Embedding dimension D.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        image_size: Side of the square image, in pixels.
        patch_size: Side of a square patch, in pixels.
        distilled: Whether there is a distillation head.
        num_channels: Channels of the input image.
        source: Hub name of the published weights, or None.
        top1: Published ImageNet-1k top-1 accuracy in percent (README of the original code), or None.
        parameters: Number of parameters with 1000 classes, as computed from the sizes.
    """

    hidden_size: int
    depth: int
    num_heads: int
    image_size: int
    patch_size: int
    distilled: bool
    num_channels: int = 3
    source: str | None = None
    top1: float | None = None
    parameters: int | None = None


# The published distilled models (paper, Tables 1 and 5; parameters computed), and `deit-digits-distilled`,
# the student of the demo: 32 x 32 pixels in patches of 8. Non-distilled published models are ViTs and
# come with the ViT classes.
VARIANTS: dict[str, Variant] = {
    "deit-tiny-distilled-patch16-224": Variant(
        hidden_size=192, depth=12, num_heads=3, image_size=224, patch_size=16, distilled=True,
        source="facebook/deit-tiny-distilled-patch16-224", top1=74.476, parameters=5_910_800,
    ),
    "deit-small-distilled-patch16-224": Variant(
        hidden_size=384, depth=12, num_heads=6, image_size=224, patch_size=16, distilled=True,
        source="facebook/deit-small-distilled-patch16-224", top1=81.164, parameters=22_436_432,
    ),
    "deit-base-distilled-patch16-224": Variant(
        hidden_size=768, depth=12, num_heads=12, image_size=224, patch_size=16, distilled=True,
        source="facebook/deit-base-distilled-patch16-224", top1=83.372, parameters=87_338_192,
    ),
    "deit-base-distilled-patch16-384": Variant(
        hidden_size=768, depth=12, num_heads=12, image_size=384, patch_size=16, distilled=True,
        source="facebook/deit-base-distilled-patch16-384", top1=85.224, parameters=87_630_032,
    ),
    "deit-digits-distilled-patch8-32": Variant(
        hidden_size=96, depth=6, num_heads=3, image_size=32, patch_size=8, distilled=True,
    ),
}  # fmt: skip


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


def variant_config(name: str, **overrides: Any) -> DeiTConfig:
    """Returns the configuration of a variant, for training from scratch.

    LayerNorm's epsilon is 1e-6, as in the paper's code; published files bring their own configuration.

    Args:
        name: A key of `VARIANTS`.
        **overrides: Fields of `DeiTConfig` that replace the variant's.

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
    }
    return DeiTConfig(**{**fields, **overrides})

"""Lists the named architectures and published models: sizes, preprocessing, where the weights are, accuracy."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from deit.core.errors import UserError


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
    "deit-micro-distilled-patch8-64": Variant(
        hidden_size=192, depth=6, num_heads=3, image_size=64, patch_size=8, distilled=True,
    ),
    "deit-mini-distilled-patch8-64": Variant(
        hidden_size=128, depth=4, num_heads=4, image_size=64, patch_size=8, distilled=True,
    ),
}  # fmt: skip
"""Name to architecture: the published models, and six without weights for small images.

They are the student of the demo, the paper's tiny model with patches of 4 pixels (5.4 million parameters), two that
train on a CPU (2.7 and 0.8 million), and these two with patches of 8 pixels, for photos.
"""


def list_models(*, published: bool = True) -> list[str]:
    """Returns the short names for `from_pretrained` and `deit train`.

    Args:
        published: Only those whose weights are on the hub.

    Examples:
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
    raise UserError(f"Unknown variant {name!r}.{hint} Known: {', '.join(VARIANTS)}.")

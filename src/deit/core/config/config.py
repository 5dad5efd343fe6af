"""Describes the two kinds of model, DeiT and ViT."""

from __future__ import annotations

from typing import Any, TypeVar

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import WrongTypeError

C = TypeVar("C", bound=VisionTransformerConfig)


class DeiTConfig(VisionTransformerConfig):
    """Describes a DeiT, which has a class token and a distillation token; fields as in `VisionTransformerConfig`.

    Examples:
        >>> config = DeiTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=10)
        >>> config.num_labels
        10
    """

    model_type = "deit"
    num_prefix_tokens = 2


class ViTConfig(VisionTransformerConfig):
    """Describes a ViT, which has a class token alone; fields as in `VisionTransformerConfig`.

    The published DeiT checkpoints without distillation are of this kind.

    Examples:
        >>> ViTConfig(image_size=384).grid_size
        (24, 24)
    """

    model_type = "vit"
    num_prefix_tokens = 1


def as_config(config: Any, config_class: type[C], asker: str) -> C:
    """Returns a configuration as an instance of a class. Converts configurations of transformers.

    Args:
        config: Either of them.
        config_class: The class.
        asker: Name of the class that needs it, for the message.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(config, config_class):
        return config
    model_type = getattr(config, "model_type", None)
    if model_type != config_class.model_type or not callable(getattr(config, "to_dict", None)):
        raise WrongTypeError(f"{asker} needs a {config_class.__name__}. Received: {type(config).__name__}.")
    taken: C = config_class.from_dict(config.to_dict())
    taken._attn_implementation = getattr(config, "_attn_implementation", None) or "sdpa"
    taken.name_or_path = getattr(config, "name_or_path", "")
    return taken

"""Sets the drop path of a recipe on a student."""

from __future__ import annotations

from torch import nn

from deit.models.pretrained import PreTrainedModel
from deit.models.trunk.vision_transformer import set_drop_path
from deit.train.recipes.recipe import Recipe


def apply_drop_path(student: nn.Module, recipe: Recipe) -> None:
    """Sets the drop path of a DeiT or ViT of this package. Models of other libraries keep their own."""
    if isinstance(student, PreTrainedModel):
        set_drop_path(student, recipe.drop_path_rate, shape=recipe.drop_path_shape)

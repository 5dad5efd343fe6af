"""The student: a new model with its classes, and the preprocessing it will be used with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deit.core.configuration import DeiTConfig, ViTConfig
from deit.core.image_processor import DeiTImageProcessor, evaluation_processor
from deit.core.labels import id2label_from_names
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD, variant_config
from deit.models.deit import DeiTForImageClassificationWithTeacher
from deit.models.vit import ViTForImageClassification
from deit.train.recipe import Recipe
from deit.train.teacher import create_timm


def build_student(
    name: str, classes: Sequence[str], recipe: Recipe, *, image_size: int | None = None
) -> tuple[nn.Module, DeiTImageProcessor]:
    """Builds a new student; the same seed gives the same initial values.

    Args:
        name: A variant of this package, or `timm/NAME` for any architecture of timm, such as a convnet that shall
            become a teacher.
        classes: Class names.
        recipe: Its seed, drop path rate and evaluation crop are used.
        image_size: Side of the input in pixels; None takes the variant's, for timm the model's own.

    Returns:
        The model and its preprocessing.

    Raises:
        ValueError: An unknown name, or an image size that the patches do not fill.
    """
    library, _, architecture = name.partition("/")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if library == "timm" and architecture:
            return _build_timm(architecture, classes, recipe, image_size)
        labels = id2label_from_names(classes)
        overrides: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
        config = variant_config(name, id2label=labels, drop_path_rate=recipe.drop_path_rate, **overrides)
        side, patch = config.grid_image_size[0], config.grid_patch_size[0]
        if side % patch:
            near = max(side // patch, 1) * patch
            raise ValueError(
                f"image_size {side} is not a multiple of patch_size {patch}. Use {near} or {near + patch}."
            )
        model: nn.Module
        if isinstance(config, ViTConfig):  # a variant without distillation token
            model = ViTForImageClassification(config)
        else:
            assert isinstance(config, DeiTConfig)
            model = DeiTForImageClassificationWithTeacher(config)
    processor = evaluation_processor(
        config.grid_image_size, crop_ratio=recipe.crop_ratio, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    return model, processor


def _build_timm(
    architecture: str, classes: Sequence[str], recipe: Recipe, image_size: int | None
) -> tuple[nn.Module, DeiTImageProcessor]:
    model = create_timm(architecture, num_classes=len(classes))
    cfg: Any = model.pretrained_cfg
    if image_size is not None and cfg.get("fixed_input_size"):  # transformers are built for one size
        model = create_timm(architecture, num_classes=len(classes), img_size=image_size)
    size = tuple(cfg["input_size"][1:]) if image_size is None else (image_size, image_size)
    processor = evaluation_processor(size, crop_ratio=recipe.crop_ratio, mean=cfg["mean"], std=cfg["std"])
    return model, processor

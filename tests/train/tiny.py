"""Small students, teachers and data that the training tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deit.core.config.config import DeiTConfig
from deit.core.processing.image_processor import DeiTImageProcessor, evaluation_processor
from deit.data.augment import Augmentation
from deit.data.sources import ArraySource, Data
from deit.models.deit import DeiTForImageClassificationWithTeacher
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Optimizer, Schedule

SIDE = 16
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE,
}  # fmt: skip
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def processor() -> DeiTImageProcessor:
    return evaluation_processor((SIDE, SIDE), crop_ratio=1.0, mean=MEAN, std=STD)


def student(num_labels: int = 3, *, seed: int = 0, **fields: object) -> DeiTForImageClassificationWithTeacher:
    torch.manual_seed(seed)
    config = {**SIZES, "patch_size": 8, "encoder_stride": 8, "num_labels": num_labels, "layer_norm_eps": 1e-6, **fields}
    return DeiTForImageClassificationWithTeacher(DeiTConfig(**config))


class TinyConvnet(nn.Module):
    """A convnet with batch norm, whose buffers would change in training mode."""

    def __init__(self, num_labels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, num_labels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(pixels))).mean((2, 3))))


def data(train_images: int = 12, val_images: int = 6, *, num_classes: int = 3) -> Data:
    """Images whose class is their brightness, with some noise."""
    random = np.random.default_rng(0)

    def source(count: int) -> ArraySource:
        labels = np.arange(count) % num_classes
        levels = (labels * 90 + 30)[:, None, None, None]
        images = np.clip(random.normal(levels, 12, (count, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        return ArraySource(images, labels, [f"class {i}" for i in range(num_classes)])

    return Data(train=source(train_images), val=source(val_images))


PLAIN = Augmentation(crop_scale=(1.0, 1.0), flip_rate=0.0, rand_augment="", erase_rate=0.0, mix_rate=0.0)


def recipe(**settings: object) -> Recipe:
    values = {
        "batch_size": 4,
        "drop_path_rate": 0.0,
        "precision": "fp32",  # "auto" depends on the machine
        "crop_ratio": 1.0,
        "num_workers": 0,
        "optimizer": Optimizer(lr=1e-3, reference_batch_size=0),
        "schedule": Schedule(epochs=3, warmup_epochs=1),
        **settings,
    }
    return Recipe(**values)

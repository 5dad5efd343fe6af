"""The variations of an image that training sees: timm's transforms with the paper's settings (Table 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

from deit.data.random_state import seeded


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied. The defaults are the paper's (Table 9).

    Attributes:
        crop: "resized" takes a random part of the image and resizes it; "padded" moves the whole image by up to an
            eighth of its side, which suits small images.
        crop_scale: Smallest and largest part of the area that a resized crop takes.
        crop_ratio: Smallest and largest width / height of a resized crop.
        flip_rate: Probability of a horizontal flip; 0 where left and right mean something, as in text.
        rand_augment: timm's description of RandAugment; empty for none.
        erase_rate: Probability of random erasing.
        mixup_alpha: Mixup draws its share from Beta(alpha, alpha); 0 for none.
        cutmix_alpha: Likewise for CutMix; with both, each batch takes one of them.
        mix_rate: Probability that a batch is mixed at all.
    """

    crop: str = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_rate: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    erase_rate: float = 0.25
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    mix_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.crop not in ("resized", "padded"):
            raise ValueError(f"augment.crop must be 'resized' or 'padded'. Received: {self.crop!r}.")
        for name in ("flip_rate", "erase_rate", "mix_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must lie between 0 and 1. Received: {getattr(self, name)}.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} must be at least 0. Received: {getattr(self, name)}.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"augment.crop_scale must be 0 < low <= high <= 1. Received: {self.crop_scale}.")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"augment.crop_ratio must be 0 < low <= high. Received: {self.crop_ratio}.")
        if self.rand_augment:
            _check_rand_augment(self.rand_augment)

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return self.mix_rate > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


def _check_rand_augment(description: str) -> None:
    try:
        rand_augment_transform(description, {})
    except (AssertionError, ValueError, KeyError) as error:  # timm asserts
        raise ValueError(
            f"augment.rand_augment must be like 'rand-m9-mstd0.5-inc1', or empty. Received: {description!r}."
        ) from error


def build_transform(
    augmentation: Augmentation, image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """Returns the function from an RGB image to normalized, augmented pixels (3, H, W).

    Args:
        augmentation: What to do.
        image_size: (height, width) of the result in pixels.
        mean: Of each channel, for values in [0, 1].
        std: Likewise.
    """
    pipeline = create_transform(
        input_size=(3, *image_size),
        is_training=True,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.flip_rate,
        color_jitter=0.0,  # the paper's code ignores it whenever RandAugment is on
        auto_augment=augmentation.rand_augment or None,
        interpolation="bicubic",
        mean=tuple(mean),
        std=tuple(std),
        re_prob=augmentation.erase_rate,
        re_mode="pixel",
        re_count=1,
    )
    _repair_posterize(pipeline)
    if augmentation.crop == "padded":
        bicubic = transforms.InterpolationMode.BICUBIC
        padding = (image_size[1] // 8, image_size[0] // 8)
        # Takes the place of timm's random resized crop, which is always the first step.
        pipeline.transforms[0] = transforms.Compose(
            [transforms.Resize(image_size, interpolation=bicubic), transforms.RandomCrop(image_size, padding=padding)]
        )
    transform: Callable[[Image.Image], Tensor] = pipeline
    return transform


def _repair_posterize(pipeline: Any) -> None:
    """Lets RandAugment posterize to 0 bits, a black image, at the largest magnitude.

    That is what timm asks for and what Pillow did until it began to refuse it with an error (seen with timm 1.0.31 and
    Pillow 13.0). To be removed when timm no longer asks for 0 bits.
    """
    for step in pipeline.transforms:
        for operation in getattr(step, "ops", ()):
            if "Posterize" in getattr(operation, "name", ""):
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda value: 0)


class BatchMixer:
    """Mixes the images and labels of a batch (timm's Mixup and CutMix), the same way for the same key.

    Args:
        augmentation: Which mixing.
        num_classes: Number of classes K.
        label_smoothing: Share of the target mass spread over all classes.
        seed: Of the run.
    """

    def __init__(self, augmentation: Augmentation, num_classes: int, label_smoothing: float, seed: int) -> None:
        self._seed = seed
        self._mixup: Any = Mixup(
            mixup_alpha=augmentation.mixup_alpha,
            cutmix_alpha=augmentation.cutmix_alpha,
            prob=augmentation.mix_rate,
            switch_prob=0.5,
            mode="batch",
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, pixels: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixes one batch.

        Args:
            pixels: (B, 3, H, W); B must be even, since each image is mixed with its mirror in the batch.
            labels: (B,) true classes.
            step: Number of the batch in the whole training.

        Returns:
            Mixed pixels and target probabilities (B, K).
        """
        with seeded(self._seed, 1, step):
            # The device and type of the targets follow the labels' device in timm.
            mixed, targets = self._mixup(pixels.clone(), labels)
        return mixed, targets.to(torch.float32)

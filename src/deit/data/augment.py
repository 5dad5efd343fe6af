"""Augments training images: single images (DeiT's Table 9, DeiT III's 3-Augment) and pairs (Mixup, CutMix)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deit.core.errors import UserError
from deit.core.images.reading import MOST_PIXELS, ImageError
from deit.core.labels import NO_LABEL
from deit.runtime.library_order import make_order_safe
from deit.runtime.processes import Processes
from deit.runtime.random_state import seeded

if TYPE_CHECKING:
    make_order_safe()
    from torchvision.transforms import InterpolationMode

_MIXING_KEY = 1  # first number of the random key; views use 0, the model 2
_SWITCH_RATE = 0.5  # probability of CutMix if both are on, as in the paper's code

_WHITE = np.float32(255)
_CROPS = ("resized", "padded", "simple")
_INTERPOLATIONS = ("bicubic", "bilinear")
# Descriptions that timm accepts, so that checking a recipe does not import timm, which takes seconds and 200 MB.
_USUAL_RAND_AUGMENT = re.compile(r"rand(-(m|n|inc)\d{1,2}|-mstd\d(\.\d{1,2})?)*")

_ALONE = Processes()

Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of training images. The defaults are the paper's (Table 9), except for its repeats.

    DeiT III's views are `three_augment=True, color_jitter=0.3, rand_augment="", erase_rate=0`.

    Attributes:
        crop: "resized" takes a random part of the image and resizes it; "simple" (DeiT III) resizes the shorter side
            to the model's size and cuts a square after adding 4 mirrored pixels on each side; "padded" moves the whole
            image by up to an eighth of its side, which suits small images.
        crop_scale: Smallest and largest share of the area that a resized crop takes.
        crop_ratio: Smallest and largest width / height of a resized crop.
        interpolation: "bicubic" (DeiT) or "bilinear" (the example scripts of transformers).
        flip_rate: Probability of a horizontal flip; use 0 if left and right matter, as in text.
        rand_augment: timm's description of RandAugment; empty for none.
        three_augment: True applies exactly one of gray, solarize (inverts values above 128) and blur (Gaussian, radius
            0.1 to 2 pixels), as DeiT III does in place of RandAugment.
        color_jitter: Brightness, contrast and saturation are multiplied by a factor within 1 +- this; 0.3 in DeiT III.
        erase_rate: Probability of random erasing.
        mixup_alpha: Mixup draws its share from Beta(alpha, alpha); 0 for no Mixup.
        cutmix_alpha: CutMix draws its share from Beta(alpha, alpha); 0 for no CutMix. With both, each batch uses one.
        mix_rate: Probability that a batch is mixed.
        num_repeats: Consecutive views of each image, see `StepOrder`; 3 in the paper. More repeats help large models
            and long training; fewer show more different images.
    """

    crop: str = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip_rate: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    three_augment: bool = False
    color_jitter: float = 0.0
    erase_rate: float = 0.25
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    mix_rate: float = 1.0
    num_repeats: int = 1

    def __post_init__(self) -> None:
        if self.crop not in _CROPS:
            raise UserError(f"augment.crop must be one of {', '.join(_CROPS)}. Received: {self.crop!r}.")
        if self.interpolation not in _INTERPOLATIONS:
            known = ", ".join(_INTERPOLATIONS)
            raise UserError(f"augment.interpolation must be one of {known}. Received: {self.interpolation!r}.")
        for name in ("flip_rate", "erase_rate", "mix_rate", "color_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} must lie between 0 and 1. Received: {getattr(self, name)}.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"augment.{name} must be at least 0. Received: {getattr(self, name)}.")
        if self.num_repeats < 1:
            raise UserError(f"augment.num_repeats must be at least 1. Received: {self.num_repeats}.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"augment.crop_scale must be 0 < low <= high <= 1. Received: {self.crop_scale}.")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise UserError(f"augment.crop_ratio must be 0 < low <= high. Received: {self.crop_ratio}.")
        if self.rand_augment:
            self._check_rand_augment()

    def _check_rand_augment(self) -> None:
        if self.three_augment:
            raise UserError(
                "augment.three_augment replaces augment.rand_augment. "
                f"Received both (rand_augment={self.rand_augment!r}). Pass rand_augment='' or three_augment=False."
            )
        if self.color_jitter:
            raise UserError(
                f"augment.color_jitter does not combine with augment.rand_augment, which changes colors itself. "
                f"Received: {self.color_jitter} and {self.rand_augment!r}. Pass color_jitter=0 or rand_augment=''."
            )
        if _USUAL_RAND_AUGMENT.fullmatch(self.rand_augment):
            return
        make_order_safe()
        from timm.data.auto_augment import rand_augment_transform

        try:
            rand_augment_transform(self.rand_augment, {})
        except (AssertionError, ValueError, KeyError) as error:  # timm asserts
            raise UserError(
                f"augment.rand_augment must be like 'rand-m9-mstd0.5-inc1', or empty. Received: {self.rand_augment!r}."
            ) from error

    @property
    def mixes(self) -> bool:
        """True if batches are mixed."""
        return self.mix_rate > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


class ViewTransform:
    """Turns an RGB image into augmented, normalized pixels; see `build_transform`.

    Equals timm's pipeline under the same random state, bit for bit. Writes pixels directly into a batch, which saves
    two copies of every image.

    Args:
        image_steps: Functions from image to image.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel.
        erase: Function that changes the pixels in place at the end.
        weak: Another transform that gives a second view of the same image, see `Batch.weak`; None for one view.
    """

    def __init__(
        self,
        image_steps: Sequence[Callable[[Image.Image], Image.Image]],
        mean: Sequence[float],
        std: Sequence[float],
        erase: Callable[[Tensor], Tensor] | None,
        weak: ViewTransform | None = None,
    ) -> None:
        self.image_steps = list(image_steps)
        self._mean = np.array(mean, np.float32)
        self._std = np.array(std, np.float32)
        self._erase = erase
        self.weak = weak

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """Draws one view.

        Args:
            image: RGB image.
            out: Output (3, H, W), float32 on the CPU; None creates a new tensor.

        Returns:
            The pixels; `out` if it was given.
        """
        for step in self.image_steps:
            image = step(image)
        pixels = torch.empty(3, image.height, image.width) if out is None else out
        # Computes ToTensor and Normalize one channel at a time, so that it stays in the CPU cache.
        for band, place, mean, std in zip(image.split(), pixels.numpy(), self._mean, self._std, strict=True):
            np.divide(np.asarray(band), _WHITE, out=place, dtype=np.float32)
            np.subtract(place, mean, out=place)
            np.divide(place, std, out=place)
        return pixels if self._erase is None else self._erase(pixels)


def build_transform(
    augmentation: Augmentation, image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> ViewTransform:
    """Returns the function from an RGB image to normalized, augmented pixels (3, H, W).

    Args:
        augmentation: Augmentation settings.
        image_size: (height, width) of the result in pixels.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel.
    """
    make_order_safe()
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms_factory import create_transform

    create: Any = create_transform
    first, second, _ = create(
        input_size=(3, *image_size),
        is_training=True,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.flip_rate,
        color_jitter=augmentation.color_jitter or None,
        auto_augment="3a" if augmentation.three_augment else augmentation.rand_augment or None,
        interpolation=augmentation.interpolation,
        mean=tuple(mean),
        std=tuple(std),
        separate=True,
    )
    steps = [*first.transforms, *second.transforms]
    _repair_posterize(steps)
    if augmentation.crop != "resized":
        # Replaces timm's random resized crop, which is always the first step.
        steps[0] = _whole_image_crop(augmentation, image_size)
    # Fills with normal noise. Area and aspect ratio are timm's defaults, which are the paper's.
    erase = RandomErasing(augmentation.erase_rate, mode="pixel", device="cpu") if augmentation.erase_rate else None
    return ViewTransform(steps, mean, std, erase)


def _whole_image_crop(augmentation: Augmentation, image_size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    make_order_safe()
    from torchvision import transforms

    kind = transforms.InterpolationMode(augmentation.interpolation)
    if augmentation.crop == "padded":
        padding = (image_size[1] // 8, image_size[0] // 8)
        resize = transforms.Resize(image_size, interpolation=kind)
        return transforms.Compose([resize, transforms.RandomCrop(image_size, padding=padding)])
    # Resizes the shorter side to the model's longer side, so that the crop fits in both directions.
    shorten = partial(_with_shorter_side, side=max(image_size), kind=kind)
    return transforms.Compose([shorten, transforms.RandomCrop(image_size, padding=4, padding_mode="reflect")])


def _with_shorter_side(image: Image.Image, side: int, kind: InterpolationMode) -> Image.Image:
    make_order_safe()
    from torchvision.transforms.functional import resize

    if max(image.size) * side**2 > MOST_PIXELS * min(image.size):
        raise ImageError(
            f"An image of {image.width} x {image.height} pixels is too narrow: with a shorter side of {side} it would "
            f"exceed the limit of {MOST_PIXELS} pixels. Crop it, or leave it out."
        )
    resized: Image.Image = resize(image, side, interpolation=kind)
    return resized


def _repair_posterize(steps: Sequence[Any]) -> None:
    """Lets RandAugment posterize to 0 bits (a black image) at the largest magnitude.

    timm requests 0 bits, which newer versions of Pillow refuse (seen with timm 1.0.31 and Pillow 13.0). Remove this
    when timm no longer requests it.
    """
    for step in steps:
        for operation in getattr(step, "ops", ()):
            if "Posterize" in getattr(operation, "name", ""):
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda value: 0)


class BatchMixer:
    """Mixes the images and targets of a batch as timm does (mode "batch"), as a function of seed and step.

    Mixup adds the reversed batch, lam x + (1 - lam) x'. CutMix copies a rectangle from the reversed batch; lam is then
    the share of the image that remains.

    Processes that share a step mix it as one process would: they draw the same share and rectangle, and an image's
    partner is its mirror in the whole step. The process `rank` has the images rank, rank + world_size, ..., so all its
    partners are on the process world_size - 1 - rank, in reverse order (`Processes.swap`).

    Args:
        augmentation: Mixing settings.
        num_classes: Number of classes K.
        label_smoothing: Share of the target mass spread over all classes. With several labels, each moves by that share
            towards 1/2. Values (regression) are not smoothed.
        seed: Random seed of the run.
    """

    def __init__(self, augmentation: Augmentation, num_classes: int, label_smoothing: float, seed: int) -> None:
        self._augmentation = augmentation
        self._num_classes = num_classes
        self._smoothing = label_smoothing
        self._seed = seed

    def __call__(
        self, pixels: Tensor, targets: Tensor, step: int, processes: Processes = _ALONE
    ) -> tuple[Tensor, Tensor]:
        """Mixes one batch.

        Args:
            pixels: (B, 3, H, W) of this process. The step must have an even number of images over all processes,
                because each image is mixed with its mirror.
            targets: (B,) true classes, `NO_LABEL` for none; (B, K) float of several labels; or (B,) float values.
            step: Number of the step in the training.
            processes: Processes that share the step; all of them must call.

        Returns:
            Mixed pixels, and float32 targets: probabilities (B, K), labels (B, K) or values (B,). Probabilities sum to
            the share of the mix that has a label, because images without a label contribute none.

        Raises:
            ValueError: The number of images in the step is odd.
        """
        images = len(pixels) * processes.world_size
        if images % 2:
            raise UserError(
                f"Mixing needs an even number of images in a step. Received: {images}. "
                "Pass another batch size, or augment.mix_rate=0 for no mixing."
            )
        with seeded(self._seed, _MIXING_KEY, step, 0):
            share, box = self._draw(pixels.shape[-2], pixels.shape[-1])
        dense = self._dense(targets)
        mirror = processes.swap(dense).flip(0)
        return _mixed_pixels(pixels, share, box, processes), dense * share + mirror * (1.0 - share)

    def _draw(self, height: int, width: int) -> tuple[float, Box | None]:
        """Returns the share of the first image, and the rectangle of the second for CutMix."""
        settings = self._augmentation
        ways = [alpha for alpha in (settings.mixup_alpha, settings.cutmix_alpha) if alpha > 0]
        # Draws in timm's order, so that equal random states mix equally.
        if not np.random.rand() < settings.mix_rate or not ways:
            return 1.0, None
        cut = np.random.rand() < _SWITCH_RATE if len(ways) == 2 else settings.cutmix_alpha > 0
        alpha = settings.cutmix_alpha if cut else settings.mixup_alpha
        share = float(np.random.beta(alpha, alpha))
        return _drawn_box(share, height, width) if cut else (share, None)

    def _dense(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            dense = targets.to(torch.float32)
            return dense * (1.0 - self._smoothing) + 0.5 * self._smoothing if dense.ndim == 2 else dense
        off = self._smoothing / self._num_classes
        spread = torch.full((len(targets), self._num_classes), off, device=targets.device)
        labelled = (targets != NO_LABEL)[:, None]
        spread.scatter_(1, targets[:, None].where(labelled, 0), 1.0 - self._smoothing + off)
        return spread * labelled


def _drawn_box(share: float, height: int, width: int) -> tuple[float, Box]:
    """Returns the share of the image outside a random rectangle, and the rectangle, clipped at the borders."""
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    row, column = int(np.random.randint(height)), int(np.random.randint(width))
    top, bottom = max(row - box_height // 2, 0), min(row + (box_height + 1) // 2, height)
    left, right = max(column - box_width // 2, 0), min(column + (box_width + 1) // 2, width)
    return 1.0 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)


def _mixed_pixels(pixels: Tensor, share: float, box: Box | None, processes: Processes) -> Tensor:
    if share == 1.0:
        return pixels
    if box is None:
        return (pixels * share).add_(processes.swap(pixels).flip(0).mul_(1.0 - share))
    top, bottom, left, right = box
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = processes.swap(pixels[:, :, top:bottom, left:right]).flip(0)
    return mixed

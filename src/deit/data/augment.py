"""The variations of images that training sees: of one (DeiT's Table 9, DeiT III's 3-Augment), and mixed in pairs."""

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

_MIXING_KEY = 1  # first number of the random key: views take 0, the model 2
_SWITCH_RATE = 0.5  # share of CutMix where both ways of mixing are on, as in the paper's code

_WHITE = np.float32(255)
_CROPS = ("resized", "padded", "simple")
_INTERPOLATIONS = ("bicubic", "bilinear")
# timm takes all of these and is not asked: its import takes seconds and 200 MB, and each recipe has such a text.
_USUAL_RAND_AUGMENT = re.compile(r"rand(-(m|n|inc)\d{1,2}|-mstd\d(\.\d{1,2})?)*")

_ALONE = Processes()

Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied. The defaults are the paper's (Table 9), save for its repeats.

    DeiT III's views are `three_augment=True, color_jitter=0.3, rand_augment="", erase_rate=0`.

    Attributes:
        crop: "resized" takes a random part of the image and resizes it; "simple" (DeiT III) resizes the shorter side
            to the model's size and cuts a square after adding 4 mirrored pixels on each side; "padded" moves the whole
            image by up to an eighth of its side, which suits small images.
        crop_scale: Smallest and largest part of the area that a resized crop takes.
        crop_ratio: Smallest and largest width / height of a resized crop.
        interpolation: "bicubic" (DeiT), or "bilinear" as the example scripts of transformers resize.
        flip_rate: Probability of a horizontal flip; 0 where left and right mean something, as in text.
        rand_augment: timm's description of RandAugment; empty for none.
        three_augment: DeiT III's choice of exactly one of gray, solarized (what is brighter than 128 inverted) and
            blurred (Gaussian, radius 0.1 to 2 pixels), in place of RandAugment.
        color_jitter: Brightness, contrast and saturation are multiplied by 1 - this to 1 + this; 0.3 in DeiT III.
        erase_rate: Probability of random erasing.
        mixup_alpha: Mixup draws its share from Beta(alpha, alpha); 0 for none.
        cutmix_alpha: Likewise for CutMix; with both, each batch takes one of them.
        mix_rate: Probability that a batch is mixed at all.
        num_repeats: Views of an image in a row, see `StepOrder`; 3 in the paper. It helps large models and long
            training; the default shows more different images.
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
                "augment.three_augment takes the place of augment.rand_augment. "
                f"Received both (rand_augment={self.rand_augment!r}). Pass rand_augment='' or three_augment=False."
            )
        if self.color_jitter:
            raise UserError(
                f"augment.color_jitter is not used together with augment.rand_augment, which changes colours itself. "
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
        """Whether batches are mixed."""
        return self.mix_rate > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


class ViewTransform:
    """From an RGB image to normalized, augmented pixels; what `build_transform` returns.

    Its numbers are those of timm's pipeline under the same random state, bit for bit. It writes them straight into
    their place in a batch, which saves two copies of every image.

    Args:
        image_steps: From image to image.
        mean: Of each channel, for values in [0, 1].
        std: Likewise.
        erase: What happens to the pixels at last, in place.
    """

    def __init__(
        self,
        image_steps: Sequence[Callable[[Image.Image], Image.Image]],
        mean: Sequence[float],
        std: Sequence[float],
        erase: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.image_steps = list(image_steps)
        self._mean = np.array(mean, np.float32)
        self._std = np.array(std, np.float32)
        self._erase = erase

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """Draws one view.

        Args:
            image: RGB.
            out: Where to write the pixels: (3, H, W) float32 on the CPU; a new tensor when None.

        Returns:
            The pixels, which are `out` if it was given.
        """
        for step in self.image_steps:
            image = step(image)
        pixels = torch.empty(3, image.height, image.width) if out is None else out
        # The divisions and the subtraction of ToTensor and Normalize, for one channel at a time: it stays in the cache.
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
        augmentation: What to do.
        image_size: (height, width) of the result in pixels.
        mean: Of each channel, for values in [0, 1].
        std: Likewise.
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
        # Takes the place of timm's random resized crop, which is always the first step.
        steps[0] = _whole_image_crop(augmentation, image_size)
    # Normally distributed noise, area and aspect as timm's defaults, which are the paper's.
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
    # The shorter side to the longer one of the model, so that there is enough of the image in both directions.
    shorten = partial(_with_shorter_side, side=max(image_size), kind=kind)
    return transforms.Compose([shorten, transforms.RandomCrop(image_size, padding=4, padding_mode="reflect")])


def _with_shorter_side(image: Image.Image, side: int, kind: InterpolationMode) -> Image.Image:
    make_order_safe()
    from torchvision.transforms.functional import resize

    if max(image.size) * side**2 > MOST_PIXELS * min(image.size):
        raise ImageError(
            f"An image of {image.width} x {image.height} pixels is too narrow: with a shorter side of {side} it would "
            f"have more than the {MOST_PIXELS} pixels that are safe. Cut it, or leave it out."
        )
    resized: Image.Image = resize(image, side, interpolation=kind)
    return resized


def _repair_posterize(steps: Sequence[Any]) -> None:
    """Lets RandAugment posterize to 0 bits, a black image, at the largest magnitude.

    That is what timm asks for and what Pillow did until it began to refuse it with an error (seen with timm 1.0.31 and
    Pillow 13.0). To be removed when timm no longer asks for 0 bits.
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
    """Mixes the images and targets of a batch as timm does (mode "batch"), the same way for the same key.

    Mixup adds the mirror of the batch to it, lam x + (1 - lam) x', and CutMix copies a rectangle out of the mirror;
    there lam is the share of the image that was kept, borders taken into account.

    Processes that share a step mix it as one process would: they draw the same share and rectangle, and each image's
    partner is its mirror in the whole step. The process `rank` has the images rank, rank + world_size, ..., so the
    partners of all of them lie on the process at the other end (`Processes.swap`), in reverse order.

    Args:
        augmentation: Which mixing.
        num_classes: Number of classes K.
        label_smoothing: Share of the target mass spread over all classes. Of several labels each moves by that share
            towards 1/2; values (regression) are not smoothed.
        seed: Of the run.
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
            pixels: (B, 3, H, W) of this process; those of all processes must be even in number, since each image is
                mixed with its mirror in the step.
            targets: (B,) true classes, `NO_LABEL` for none; (B, K) float of several labels; or (B,) float values.
            step: Number of the batch in the whole training.
            processes: Those that share the step; all of them must call.

        Returns:
            Mixed pixels, and float32 targets: probabilities (B, K), labels (B, K) or values (B,). Probabilities sum up
            to the share of the mix that has a label: an image without one gives none.

        Raises:
            ValueError: B is odd.
        """
        images = len(pixels) * processes.world_size
        if images % 2:
            raise UserError(
                f"Mixing needs an even number of images in a step. Received: {images}. "
                "Pass another batch size, or augment.mix_rate=0 to mix nothing."
            )
        with seeded(self._seed, _MIXING_KEY, step, 0):
            share, box = self._draw(pixels.shape[-2], pixels.shape[-1])
        dense = self._dense(targets)
        mirror = processes.swap(dense).flip(0)
        return _mixed_pixels(pixels, share, box, processes), dense * share + mirror * (1.0 - share)

    def _draw(self, height: int, width: int) -> tuple[float, Box | None]:
        """Returns the share of the first image, and for CutMix the rectangle of the second."""
        settings = self._augmentation
        ways = [alpha for alpha in (settings.mixup_alpha, settings.cutmix_alpha) if alpha > 0]
        # timm's order of draws, so that equal states mix equally.
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
    """Returns a rectangle of the area 1 - share around a random point, cut at the borders, and the share that stays."""
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

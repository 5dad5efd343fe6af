"""The image processors with torchvision's numerics: batches of tensors on any device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deit.core import pixels as px
from deit.core.images import MOST_PIXELS, ImageError
from deit.core.library_order import make_order_safe
from deit.core.processor_options import CHANNELS_LAST, resized_size
from deit.core.processor_settings import VIT_DEFAULTS, ImageProcessor

make_order_safe()
from torchvision.transforms.v2 import functional as tv  # noqa: E402
from torchvision.transforms.v2.functional import InterpolationMode  # noqa: E402

# Pillow's number of a filter -> torchvision's. It has no box and no Hamming filter for tensors.
_INTERPOLATION = {
    0: InterpolationMode.NEAREST_EXACT,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
}


class DeiTImageProcessorFast(ImageProcessor):
    """Turns images into `pixel_values` with PyTorch: the faster of the two processors.

    Options, defaults and files are those of `DeiTImageProcessor`; values are those of transformers' torchvision
    processor. They differ from Pillow's by a level of 8-bit colour here and there: torchvision rounds its filters
    otherwise. Two more differences, as in transformers: floats are resized as floats, and a crop that is larger than
    the image by an odd number has its extra row of zeros below in place of above. The result is made where the images
    are, or on `device`.

    Example:
        >>> processor = DeiTImageProcessorFast(size=256, crop_size=224)
        >>> processor(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 224, 224])
    """

    backend = "torchvision"
    is_fast = True

    def _pixels(self, images: list[Any]) -> Any:
        channels, to_rgb = self._channels, bool(self.do_convert_rgb)
        opened = [px.in_colours(image, channels, to_rgb, self.value_range) for image in images]
        tensors = [self._tensor(image, channels, to_rgb) for image in opened]
        self._warn_of_rescaled([t for t in tensors if t.device.type == "cpu"])
        if self.do_resize:
            tensors = self._by_size(self._resize, tensors)
        if self.do_center_crop:
            tensors = self._by_size(self._center_crop, tensors)
        tensors = self._by_size(self._to_float, tensors)
        if self.do_pad:
            tensors = self._pad(tensors)
        if self.data_format == CHANNELS_LAST:
            tensors = [t.movedim(0, -1) for t in tensors]
        if self.return_tensors is None:
            return tensors
        px.refuse_different_sizes([t.shape for t in tensors])
        batch = _one_batch(tensors).contiguous()
        if self.return_tensors == "pt":
            return batch
        array = batch.cpu().numpy()
        return array if self.return_tensors == "np" else px.to_tensor(array, self.return_tensors)

    def _tensor(self, image: Any, channels: int | None, to_rgb: bool) -> Tensor:
        """Returns an image as (C, H, W).

        PIL images stay interleaved in memory: that saves a copy, and the resize of 8-bit tensors is three times as
        fast on them.
        """
        if 0 in (image.size if isinstance(image, Image.Image) else getattr(image, "shape", ())):
            raise ValueError("The image has no pixels.")
        if isinstance(image, Tensor):
            if px.layout_of(image.shape, self.input_data_format) == CHANNELS_LAST:
                image = image.movedim(-1, 0)
            _refuse_bad_values(image)
            tensor = _to_rgb(image) if (to_rgb or channels == 3) and len(image) in (1, 4) else image
        elif isinstance(image, Image.Image):
            array = np.array(image)
            tensor = torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)
        else:
            # one channel and four are converted below, with PyTorch's numbers
            array = px.to_channels_first(image, self.input_data_format, None, False)
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
            tensor = _to_rgb(tensor) if (to_rgb or channels == 3) and len(tensor) in (1, 4) else tensor
        return tensor if self.device is None else tensor.to(self.device)

    def _by_size(self, work: Callable[[Tensor], Tensor], images: list[Tensor]) -> list[Tensor]:
        """Applies work on (B, C, H, W) to images (C, H, W), together where size, type and device are the same.

        On the CPU every image is resized alone: stacking costs more there than it saves.
        """
        alone = self.disable_grouping
        if alone is None:
            alone = work == self._resize and all(image.device.type == "cpu" for image in images)
        if alone:
            return [work(image[None])[0] for image in images]
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            groups[image.shape, image.dtype, image.device].append(i)
        results: dict[int, Tensor] = {}
        for members in groups.values():
            batch = _one_batch([images[i] for i in members])
            results.update(zip(members, work(batch).unbind(), strict=True))
        return [results[i] for i in range(len(images))]

    def _resize(self, batch: Tensor) -> Tensor:
        size = list(resized_size(self.size, batch.shape[-2], batch.shape[-1]))
        if size[0] * size[1] > MOST_PIXELS:
            raise ImageError(
                f"An image of {batch.shape[-1]} x {batch.shape[-2]} pixels would be resized to {size[1]} x {size[0]}, "
                f"more than the {MOST_PIXELS} pixels that are safe. Crop it before, or use DeiTImageProcessor."
            )
        if int(self.resample) not in _INTERPOLATION:
            raise ValueError(
                f"torchvision cannot resize tensors with the filter {self.resample!r}. "
                "Use DeiTImageProcessor, or resample=3 (bicubic)."
            )
        interpolation = _INTERPOLATION[int(self.resample)]
        if interpolation == InterpolationMode.LANCZOS and batch.device.type != "cpu":
            return self._resize(batch.cpu()).to(batch.device)  # torchvision has it on the CPU only
        if size == [1, 1]:  # PyTorch 2.15 stops with an internal error at one pixel from planes, not from interleaved
            batch = batch.contiguous(memory_format=torch.channels_last)
        return tv.resize(batch, size, interpolation=interpolation, antialias=True)

    def _center_crop(self, batch: Tensor) -> Tensor:
        height, width = self.crop_size["height"], self.crop_size["width"]
        rows, columns = max(height - batch.shape[-2], 0), max(width - batch.shape[-1], 0)
        if rows or columns:
            batch = tv.pad(batch, [columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2], fill=0)
        top, left = (batch.shape[-2] - height) // 2, (batch.shape[-1] - width) // 2
        return batch[..., top : top + height, left : left + width]

    def _to_float(self, batch: Tensor) -> Tensor:
        if not self.do_normalize:
            return batch * self.rescale_factor if self.do_rescale else batch.clone()
        mean, std = (self._statistic(name, batch) for name in ("image_mean", "image_std"))
        pixels = torch.empty(batch.shape, dtype=torch.float32, device=batch.device)  # planes, also of interleaved ones
        return pixels.copy_(batch).sub_(mean).div_(std)

    def _statistic(self, name: str, batch: Tensor) -> Tensor:
        """Mean or std as (C or 1, 1, 1); rescaling is folded into it."""
        values = torch.tensor(getattr(self, name), dtype=torch.float32, device=batch.device).reshape(-1, 1, 1)
        if len(values) not in (1, batch.shape[1]):
            raise ValueError(f"{name} has {len(values)} numbers and the image has {batch.shape[1]} channels.")
        return values * (1.0 / self.rescale_factor) if self.do_rescale else values

    def _pad(self, images: list[Tensor]) -> list[Tensor]:
        wanted = None if self.pad_size is None else (self.pad_size["height"], self.pad_size["width"])
        height, width = px.padded_size([(t.shape[1], t.shape[2]) for t in images], wanted)
        return [tv.pad(t, [0, 0, width - t.shape[2], height - t.shape[1]], fill=0) for t in images]


class ViTImageProcessorFast(DeiTImageProcessorFast):
    """`DeiTImageProcessorFast` with the defaults of ViT: squashed to 224 x 224 pixels, bilinear, no crop."""

    defaults = VIT_DEFAULTS


def _one_batch(images: Sequence[Tensor]) -> Tensor:
    """Stacks (C, H, W); what lies in one batch already is not copied."""
    base = images[0]._base
    if base is not None and base.shape == (len(images), *images[0].shape):
        step = base.stride(0)
        same = all(
            t._base is base
            and t.storage_offset() == base.storage_offset() + i * step
            and t.stride() == base.stride()[1:]
            for i, t in enumerate(images)
        )
        if same:
            return base
    return images[0][None] if len(images) == 1 else torch.stack(list(images))


def _refuse_bad_values(image: Tensor) -> None:
    if (image.is_floating_point() or image.is_complex()) and not bool(torch.isfinite(image).all()):
        raise ValueError("The image has pixels that are NaN or infinite. Repair or leave it out.")


def _to_rgb(image: Tensor) -> Tensor:
    """Repeats one channel (1, H, W), and lays four (4, H, W) on white."""
    if len(image) == 1:
        return image.expand(3, -1, -1)
    if image.is_floating_point() and not px.is_in_unit_range(image):
        raise ValueError(f"Transparency needs values in [0, 1] or integers. Received: {image.min()} to {image.max()}.")
    colours = tv.to_dtype(image, torch.float32, scale=True)
    mixed = colours[:3] * colours[3:] + (1 - colours[3:])
    return tv.to_dtype(mixed, image.dtype, scale=True)

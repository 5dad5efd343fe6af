"""The image processors with torchvision's numerics: batches of tensors on any device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deit.core.errors import UserError, WrongTypeError
from deit.core.images.reading import MOST_PIXELS, ImageError
from deit.core.processing import operations as px
from deit.core.processing.batch_feature import BatchFeature
from deit.core.processing.options import CHANNELS_LAST, checked_option, resized_size, size_dict
from deit.core.processing.parts import is_replaced, parts_of
from deit.core.processing.settings import VIT_DEFAULTS, ImageProcessor
from deit.runtime.library_order import make_order_safe

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
    processor. They differ from Pillow's by a level of 8-bit color here and there: torchvision rounds its filters
    otherwise. Two more differences, as in transformers: floats are resized as floats, and a crop that is larger than
    the image by an odd number has its extra row of zeros below in place of above. The result is made where the images
    are, or on `device`.

    Examples:
        >>> processor = DeiTImageProcessorFast(size=256, crop_size=224)
        >>> processor(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 224, 224])
    """

    backend = "torchvision"
    is_fast = True

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: str | None = None, **options: Any
    ) -> Tensor:
        """Same as `ImageProcessor.process_image`; returns a tensor (C, H, W) on the device asked for."""
        given = {"do_convert_rgb": do_convert_rgb, "input_data_format": input_data_format, **options}
        return self._with(given)._tensor(image, self.convert_to_rgb).contiguous()

    def convert_to_rgb(self, image: Any, input_data_format: str | None = None) -> Any:
        """Returns a PIL image as RGB, or a tensor of one or four channels with three, in its layout.

        Transparency is laid on white.

        Args:
            image: PIL image or tensor.
            input_data_format: Of a tensor; inferred when None.
        """
        if isinstance(image, Image.Image):
            return px.in_colors(image, 3, True, self.value_range)
        if px.layout_of(image.shape, input_data_format) == CHANNELS_LAST:
            return _to_rgb(image.movedim(-1, 0)).movedim(0, -1)
        return _to_rgb(image)

    def _pixels(self, images: list[Any]) -> Any:
        tensors = [self._tensor(image) for image in images]
        return self._preprocess(tensors)["pixel_values"]

    def _preprocess(self, images: list[Tensor], **options: Any) -> BatchFeature:
        settings = self._with(options) if options else self
        settings._warn_of_rescaled([t for t in images if t.device.type == "cpu"])
        # On the CPU every image is resized alone: stacking costs more there than it saves.
        alone = settings.disable_grouping
        alone = all(image.device.type == "cpu" for image in images) if alone is None else alone
        if settings.do_resize:
            size, resample = settings.size, settings.resample
            images = _by_size(lambda batch: self.resize(image=batch, size=size, resample=resample), images, alone)
        rescale = settings.do_rescale, settings.rescale_factor
        normalize = settings.do_normalize, settings.image_mean, settings.image_std

        def crop(batch: Tensor) -> Tensor:
            return self.center_crop(batch, settings.crop_size) if settings.do_center_crop else batch

        def to_float(batch: Tensor) -> Tensor:
            return self.rescale_and_normalize(batch, *rescale, *normalize)

        if is_replaced(self):  # each image through all steps, as in transformers
            images = _by_size(lambda batch: to_float(crop(batch)), images, alone)
        else:
            alone = bool(settings.disable_grouping)
            images = _by_size(crop, images, alone) if settings.do_center_crop else images
            images = _by_size(to_float, images, alone)
        if settings.do_pad:
            images = self.pad(images, pad_size=settings.pad_size, disable_grouping=settings.disable_grouping)
        if settings.data_format == CHANNELS_LAST:
            images = [t.movedim(0, -1) for t in images]
        return BatchFeature({"pixel_values": _stacked(images, settings.return_tensors)})

    def _tensor(self, image: Any, convert: Callable[..., Any] | None = None) -> Tensor:
        """Returns an image as (C, H, W).

        PIL images stay interleaved in memory: that saves a copy, and the resize of 8-bit tensors is three times as
        fast on them.

        Args:
            image: Of any kind.
            convert: Makes RGB of tensors (C, H, W) where that is asked for, also of what Pillow made RGB before; this
                class's own when None.
        """
        channels, to_rgb = self._channels, bool(self.do_convert_rgb)
        image = px.in_colors(image, channels, to_rgb, self.value_range)
        if 0 in (image.size if isinstance(image, Image.Image) else getattr(image, "shape", ())):
            raise UserError("The image has no pixels.")
        if isinstance(image, Image.Image):
            array = np.array(image)
            tensor = torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)
            to_rgb = to_rgb and convert is not None
            channels = None
        elif isinstance(image, Tensor):
            tensor = image
            if image.ndim == 2:
                tensor = image[None]
            elif px.layout_of(image.shape, self.input_data_format) == CHANNELS_LAST:
                tensor = image.movedim(-1, 0)
            _refuse_bad_values(tensor)
        else:
            # one channel and four are converted below, with PyTorch's numbers
            array = px.to_channels_first(image, self.input_data_format, None, False)
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if convert is not None and to_rgb:
            tensor = convert(tensor, input_data_format="channels_first")
        elif to_rgb or channels == 3:
            tensor = _to_rgb(tensor)
        return tensor if self.device is None else tensor.to(self.device)

    def resize(
        self,
        image: Tensor,
        size: Any,
        resample: Any = None,
        antialias: bool = True,
        interpolation: Any = None,
    ) -> Tensor:
        """Resizes tensors with torchvision.

        Args:
            image: (C, H, W) or (B, C, H, W).
            size: See the class.
            resample: A Pillow filter or torchvision's name of it; bilinear when None, as in transformers.
            antialias: Whether to smooth what is made smaller.
            interpolation: The name of `resample` in transformers 4.

        Raises:
            ImageError: The result would be too large.
            ValueError: torchvision has not the filter, or an option means nothing.
        """
        wanted = size_dict(size, "size", default_to_square=self.default_to_square)
        number = checked_option("resample", interpolation if resample is None else resample)
        number = Image.Resampling.BILINEAR if number is None else number
        sides = list(resized_size(wanted, image.shape[-2], image.shape[-1]))
        if sides[0] * sides[1] > MOST_PIXELS:
            raise ImageError(
                f"An image of {image.shape[-1]} x {image.shape[-2]} pixels would be resized to {sides[1]} x {sides[0]}"
                f", more than the {MOST_PIXELS} pixels that are safe. Crop it before, or use DeiTImageProcessor."
            )
        if int(number) not in _INTERPOLATION:
            raise UserError(
                f"torchvision cannot resize tensors with the filter {number!r}. "
                "Use DeiTImageProcessor, or resample=3 (bicubic)."
            )
        filter_ = _INTERPOLATION[int(number)]
        if filter_ == InterpolationMode.LANCZOS:
            return _resize_by_lanczos(image, sides, antialias)
        if sides == [1, 1] and image.ndim == 4:
            # PyTorch 2.15 stops with an internal error at one pixel from planes, not from interleaved
            image = image.contiguous(memory_format=torch.channels_last)
        return tv.resize(image, sides, interpolation=filter_, antialias=antialias)

    def center_crop(self, image: Tensor, size: Any) -> Tensor:
        """Cuts the center out of tensors; a side that is too short is padded with zeros.

        Args:
            image: (C, H, W) or (B, C, H, W).
            size: {"height", "width"}, a number or a pair, in pixels.

        Raises:
            ValueError: The size means nothing.
        """
        wanted = checked_option("crop_size", size)
        height, width = wanted["height"], wanted["width"]
        rows, columns = max(height - image.shape[-2], 0), max(width - image.shape[-1], 0)
        if rows or columns:
            image = tv.pad(image, [columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2], fill=0)
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return image[..., top : top + height, left : left + width]

    def rescale(self, image: Tensor, scale: float) -> Tensor:
        """Multiplies a tensor by a number."""
        return image * scale

    def normalize(
        self, image: Tensor, mean: float | Sequence[float], std: float | Sequence[float], inplace: bool = False
    ) -> Tensor:
        """Subtracts the mean from tensors of floats and divides them by the standard deviation.

        Args:
            image: (C, H, W) or (B, C, H, W).
            mean: One number, or one for each channel.
            std: One number, or one for each channel; not 0.
            inplace: Whether to change the tensor given.

        Raises:
            TypeError: The tensor holds whole numbers.
            ValueError: There are more or fewer numbers than channels, or one of `std` is 0.
        """
        if not image.is_floating_point():
            raise WrongTypeError(
                f"The image must hold floats. Received: {image.dtype}. Use rescale first, or image.float()."
            )
        values = [checked_option(f"image_{name}", given) for name, given in (("mean", mean), ("std", std))]
        shift, factor = (_per_channel(value, name, image) for value, name in zip(values, ("mean", "std"), strict=True))
        return (image if inplace else image.clone()).sub_(shift).div_(factor)

    def rescale_and_normalize(
        self,
        images: Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
    ) -> Tensor:
        """Rescales and normalizes tensors; where both are wanted, in one step: the factor goes into mean and std.

        A `rescale` that is replaced is called before, which the torchvision processor of transformers leaves out.

        Args:
            images: (B, C, H, W) or (C, H, W).
            do_rescale: See the class.
            rescale_factor: See the class.
            do_normalize: See the class.
            image_mean: See the class.
            image_std: See the class.

        Returns:
            float32 where it is normalized.
        """
        if do_rescale and (not do_normalize or is_replaced(self, ("rescale",))):
            images, do_rescale = self.rescale(images, rescale_factor), False
            if not do_normalize:
                return images
        if not do_normalize:
            return images.clone()
        factor = 1.0 / rescale_factor if do_rescale else 1.0
        mean, std = (
            _per_channel(value, name, images, factor) for value, name in ((image_mean, "mean"), (image_std, "std"))
        )
        if is_replaced(self, ("normalize",)):
            given: Any = (mean.flatten(), std.flatten()) if do_rescale else (image_mean, image_std)
            return self.normalize(images.to(torch.float32), given[0], given[1], inplace=images.dtype != torch.float32)
        # planes, also of interleaved images
        pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        return pixels.copy_(images).sub_(mean).div_(std)

    def pad(
        self,
        images: Sequence[Tensor],
        pad_size: Any = None,
        fill_value: float = 0,
        padding_mode: str = "constant",
        return_mask: bool = False,
        disable_grouping: bool | None = None,
    ) -> Any:
        """Pads tensors below and to the right, so that all have one size.

        Args:
            images: Of (C, H, W).
            pad_size: {"height", "width"}, a number or a pair; the largest height and width among them when None.
            fill_value: What is added.
            padding_mode: "constant", "edge", "reflect" or "symmetric".
            return_mask: Also return where the images are, (H, W) of int64, 1 inside.
            disable_grouping: Without effect: images are padded one by one.

        Raises:
            ValueError: An image is larger than `pad_size`.
        """
        wanted = checked_option("pad_size", pad_size)
        given = None if wanted is None else (wanted["height"], wanted["width"])
        height, width = px.padded_size([(t.shape[1], t.shape[2]) for t in images], given)
        rest = [[0, 0, width - t.shape[2], height - t.shape[1]] for t in images]
        padded = [
            tv.pad(t, edges, fill=fill_value, padding_mode=padding_mode) for t, edges in zip(images, rest, strict=True)
        ]
        if not return_mask:
            return padded
        ones = [torch.ones((1, *t.shape[1:]), dtype=torch.int64, device=t.device) for t in images]
        return padded, [tv.pad(one, edges, fill=0)[0] for one, edges in zip(ones, rest, strict=True)]


DeiTImageProcessorFast._own_parts = parts_of(DeiTImageProcessorFast)


class ViTImageProcessorFast(DeiTImageProcessorFast):
    """`DeiTImageProcessorFast` with the defaults of ViT: squashed to 224 x 224 pixels, bilinear, no crop."""

    defaults = VIT_DEFAULTS


def _by_size(work: Callable[[Tensor], Tensor], images: list[Tensor], alone: bool) -> list[Tensor]:
    """Applies work on (B, C, H, W) to images (C, H, W), together where size, type and device are the same."""
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


def _stacked(images: Sequence[Tensor], return_tensors: str | None) -> Any:
    """Makes one batch of images of one size, of the package asked for; None returns the list."""
    if return_tensors is None:
        return images
    px.refuse_different_sizes([t.shape for t in images])
    batch = _one_batch(images).contiguous()
    if return_tensors == "pt":
        return batch
    array = batch.cpu().numpy()
    return array if return_tensors == "np" else px.to_tensor(array, return_tensors)


def _per_channel(value: Any, name: str, images: Tensor, factor: float = 1.0) -> Tensor:
    """Mean or std, times a factor, as (C or 1, 1, 1)."""
    values = torch.as_tensor(value, dtype=torch.float32, device=images.device).reshape(-1, 1, 1)
    if len(values) not in (1, images.shape[-3]):
        raise UserError(f"image_{name} has {len(values)} numbers and the image has {images.shape[-3]} channels.")
    return values * factor


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
        raise UserError("The image has pixels that are NaN or infinite. Repair or leave it out.")


def _to_rgb(image: Tensor) -> Tensor:
    """Repeats one channel (1, H, W), and lays four (4, H, W) on white; others stay."""
    if len(image) not in (1, 4):
        return image
    if len(image) == 1:
        return image.expand(3, -1, -1)
    if image.is_floating_point() and not px.is_in_unit_range(image):
        raise UserError(f"Transparency needs values in [0, 1] or integers. Received: {image.min()} to {image.max()}.")
    colors = tv.to_dtype(image, torch.float32, scale=True)
    mixed = colors[:3] * colors[3:] + (1 - colors[3:])
    return tv.to_dtype(mixed, image.dtype, scale=True)


def _resize_by_lanczos(image: Tensor, sides: list[int], antialias: bool) -> Tensor:
    """Resizes where torchvision can: on the CPU, and only in newer versions."""
    try:
        resized = tv.resize(image.cpu(), sides, interpolation=InterpolationMode.LANCZOS, antialias=antialias)
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            "The installed torchvision cannot resize tensors with the filter Lanczos. Install a newer one, use "
            "DeiTImageProcessor, or pass resample=3 (bicubic)."
        ) from error
    return resized.to(image.device)

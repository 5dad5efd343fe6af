"""Converts images to arrays, and resizes, crops, pads and normalizes them.

Values are those of transformers' Pillow processor, bit for bit, with Pillow 12; newer versions change its order of
passes for tall images, but not the one here (`resampling.resized`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import MissingPackageError, UserError
from deit.core.images.image_inputs import is_file_object
from deit.core.images.reading import MOST_PIXELS, ImageError, ValueRange, convert_image, load_image
from deit.core.processing.options import CHANNELS_LAST
from deit.core.processing.resampling import can_resize_part, resized, resized_part

Array: TypeAlias = npt.NDArray[Any]
# PIL image, path, bytes of a file, open file, base64 text, array or tensor (H, W), (H, W, C) or (C, H, W), or a
# (nested) list of them
ImageLike: TypeAlias = Any

_CHANNELS = (1, 3, 4)
_LARGE = 2**24  # pixels of a resized whole, 48 MiB, from which on only the center is made where that suffices

# --- from images to arrays ----------------------------------------------------------------------------


def flatten(images: ImageLike) -> list[Any]:
    """Returns single images of a (nested) list or tuple, or of a batch of 4 dimensions.

    Raises:
        ValueError: There is none.
    """
    flat = list(_each(images))
    if not flat:
        raise UserError("No images were given.")
    return flat


def _each(images: ImageLike) -> Iterator[Any]:
    if isinstance(images, (list, tuple)):
        for item in images:
            yield from _each(item)
    elif hasattr(images, "ndim") and images.ndim == 4:
        yield from images
    else:
        yield images


def channels_needed(do_normalize: bool, *statistics: float | Sequence[float]) -> int | None:
    """Returns the number of channels of mean and std; None if any number fits."""
    lengths = {len(s) for s in statistics if isinstance(s, Sequence)}
    return max(lengths) if do_normalize and lengths else None


def in_colors(image: Any, channels: int | None, do_convert_rgb: bool, value_range: ValueRange | None = None) -> Any:
    """Reads files, and converts PIL images to the channels that the model needs.

    Files and bytes are read by `load_image`, upright and in RGB (gray when one channel is needed). PIL images stay as
    they are when they have three bands, or four where that is wanted or nothing is known: transformers takes them so.
    All others are converted as `load_image` does: to RGB, or, where three channels are not needed, gray to gray.
    PIL images are not turned by their EXIF tag, since transformers does not.

    Args:
        image: Anything; arrays and tensors are returned as they are.
        channels: See `channels_needed`.
        do_convert_rgb: Convert every PIL image to RGB.
        value_range: Of gray images with more than 8 bits, see `load_image`.
    """
    grey_may_stay = channels != 3 and not do_convert_rgb
    if isinstance(image, (str, bytes, os.PathLike)) or is_file_object(image):
        return load_image(image, mode=None if channels == 1 and grey_may_stay else "RGB", value_range=value_range)
    if not isinstance(image, Image.Image):
        return image
    bands = len(image.getbands())
    if do_convert_rgb:
        return convert_image(image, value_range=value_range)
    if bands == 3 or (bands == 4 and channels in (None, 4)) or (image.mode == "L" and grey_may_stay):
        return image
    return convert_image(image, None if grey_may_stay else "RGB", value_range=value_range)


def to_channels_first(image: Any, input_data_format: str | None, channels: int | None, to_rgb: bool) -> Array:
    """Returns an image as an array (C, H, W).

    Args:
        image: PIL image, array or tensor of 3 dimensions, or of 2: (H, W), one channel.
        input_data_format: Of arrays; inferred when None.
        channels: When 3, arrays of one channel are repeated and those of four are laid on white.
        to_rgb: Do so in any case.

    Raises:
        ValueError: It is none of these, has pixels that are no numbers, or the channels cannot be told.
    """
    if 0 in (image.size if isinstance(image, Image.Image) else getattr(image, "shape", ())):
        raise UserError("The image has no pixels.")
    if isinstance(image, Image.Image):
        return _channels_first(image)
    if hasattr(image, "detach"):  # a PyTorch tensor, without importing PyTorch
        image = image.detach().cpu().numpy()
    elif hasattr(image, "__array__"):  # a tensor of TensorFlow or JAX
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"Images must be PIL images, paths, bytes, numpy arrays or tensors. Received: {type(image).__name__}."
        )
    if image.ndim == 2:
        image = image[None]
    elif layout_of(image.shape, input_data_format) == CHANNELS_LAST:
        image = np.moveaxis(image, -1, 0)
    if not (np.issubdtype(image.dtype, np.number) or image.dtype == np.bool_):
        raise UserError(f"Pixels must be numbers. Received an array of {image.dtype}.")
    if np.issubdtype(image.dtype, np.inexact) and not np.isfinite(image).all():
        raise UserError("The image has pixels that are NaN or infinite. Repair or leave it out.")
    return _array_to_rgb(image) if (to_rgb or channels == 3) and len(image) in (1, 4) else image


def layout_of(shape: Sequence[int], input_data_format: str | None) -> str:
    """Returns the layout of an array: as given, or inferred from the shape (channels first if ambiguous).

    Raises:
        ValueError: It has not 3 dimensions, or none of them fits.
    """
    if len(shape) != 3:
        raise UserError(
            f"An image needs 3 dimensions, (H, W, C) or (C, H, W). Received the shape {tuple(shape)}. "
            "For a gray one, add the dimension: image[None]."
        )
    if input_data_format is not None:
        return input_data_format
    if shape[0] in _CHANNELS:
        return "channels_first"
    if shape[-1] in _CHANNELS:
        return CHANNELS_LAST
    raise UserError(f"Cannot tell the channels of an image of shape {tuple(shape)}. Pass input_data_format=...")


def _array_to_rgb(image: Array) -> Array:
    """Repeats one channel (1, H, W), and composes four (4, H, W) over white."""
    if len(image) == 1:
        return np.repeat(image, 3, axis=0)
    is_float = np.issubdtype(image.dtype, np.floating)
    if is_float and not is_in_unit_range(image):
        raise UserError(f"Transparency needs values in [0, 1] or integers. Received: {image.min()} to {image.max()}.")
    white = 1.0 if is_float else 255
    alpha = image[3:] / white
    mixed = alpha * image[:3] + (1 - alpha) * white
    return (mixed if is_float else np.round(mixed)).astype(image.dtype)


def is_in_unit_range(image: Any) -> bool:
    """Whether an array or tensor holds floats from 0 to 1."""
    kind = str(image.dtype).removeprefix("torch.")
    return kind.startswith(("float", "bfloat")) and bool(0 not in image.shape and image.min() >= 0 and image.max() <= 1)


# --- arrays (C, H, W) ---------------------------------------------------------------------------------


def is_resized_by_pillow(image: Any) -> bool:
    """Whether a PIL image can be resized directly, with the same result as its array and half the memory."""
    return isinstance(image, Image.Image) and image.mode in ("L", "RGB") and 0 not in image.size


def resize(
    image: Array | Image.Image, size: tuple[int, int], resample: int, crop: tuple[int, int] | None = None
) -> Array:
    """Resizes to (height, width) through Pillow's 8-bit filters; floats are quantized for it.

    Args:
        image: (C, H, W), or a PIL image of which `is_resized_by_pillow` is true.
        size: Of the result.
        resample: A Pillow filter.
        crop: (height, width) of the center that is needed: of a large result, which a very narrow image gives,
            nothing else is made.

    Returns:
        (C, height, width).

    Raises:
        ImageError: The result has more than `MOST_PIXELS`, and no small part of it is needed.
        ValueError: Values are neither in [0, 1] nor whole numbers in [0, 255].
    """
    if size[0] * size[1] > MOST_PIXELS or (
        size[0] * size[1] > _LARGE and _center_suffices(image, size, resample, crop)
    ):
        return _center_of_resized(image, size, resample, crop)
    if isinstance(image, Image.Image):
        return _channels_first(resized(image, size, resample))
    from_unit_range = False
    if image.dtype != np.uint8:
        if np.allclose(image, image.astype(np.int64)):
            if image.min() < 0 or image.max() > 255:
                raise UserError(f"Whole numbers must lie in [0, 255]. Received: {image.min()} to {image.max()}.")
        elif image.min() >= 0 and image.max() <= 1:
            from_unit_range = True
            image = (image.astype(np.float64) * 255).astype(np.float32)
        else:
            raise UserError(
                f"Values from {image.min()} to {image.max()} cannot be resized: they must be in [0, 1], or whole "
                "numbers in [0, 255]. Pass do_resize=False for pixels that are normalized already."
            )
        image = image.astype(np.uint8)
    squeezed = image[0] if image.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1))
    array = _channels_first(resized(Image.fromarray(squeezed), size, resample))
    return (array.astype(np.float64) * (1 / 255)).astype(np.float32) if from_unit_range else array


def _channels_first(image: Image.Image) -> Array:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _center_suffices(
    image: Array | Image.Image, size: tuple[int, int], resample: int, crop: tuple[int, int] | None
) -> bool:
    """Whether the center of the result is enough and can be computed alone, with the same numbers."""
    if crop is None or min(size[0], crop[0]) * min(size[1], crop[1]) > MOST_PIXELS or not can_resize_part(resample):
        return False
    height, width = image.shape[1:] if isinstance(image, np.ndarray) else (image.height, image.width)
    is_8_bit = not isinstance(image, np.ndarray) or image.dtype == np.uint8
    return is_8_bit and height <= size[0] and width <= size[1]


def _center_of_resized(
    image: Array | Image.Image, size: tuple[int, int], resample: int, crop: tuple[int, int] | None
) -> Array:
    if not _center_suffices(image, size, resample, crop):
        height, width = image.shape[1:] if isinstance(image, np.ndarray) else (image.height, image.width)
        raise ImageError(
            f"The image of {width} x {height} pixels would be resized to {size[1]} x {size[0]}, more than the "
            f"{MOST_PIXELS} pixels that are safe. Crop it before, or resize to a smaller size."
        )
    array = _channels_first(image) if isinstance(image, Image.Image) else image
    shown = tuple(min(side, wanted) for side, wanted in zip(size, crop or size, strict=True))
    starts = [(side - part) // 2 for side, part in zip(size, shown, strict=True)]
    rows, columns = (slice(start, start + part) for start, part in zip(starts, shown, strict=True))
    return resized_part(array, size, (rows, columns), resample)


def center_crop(image: Array, height: int, width: int) -> Array:
    """Cuts the center out of (C, H, W); a side that is too short is padded with zeros."""
    _, full_height, full_width = image.shape
    if full_height < height or full_width < width:
        canvas_height, canvas_width = max(height, full_height), max(width, full_width)
        canvas = np.zeros((image.shape[0], canvas_height, canvas_width), image.dtype)
        top, left = ceil((canvas_height - full_height) / 2), ceil((canvas_width - full_width) / 2)
        canvas[:, top : top + full_height, left : left + full_width] = image
        # The padded side is already as large as the crop; the other one is cropped around its own center.
        top = 0 if full_height < height else (full_height - height) // 2
        left = 0 if full_width < width else (full_width - width) // 2
        return canvas[:, top : top + height, left : left + width]
    top, left = (full_height - height) // 2, (full_width - width) // 2
    return image[:, top : top + height, left : left + width]


def rescale_and_normalize(
    image: Array, factor: float | None, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> Array:
    """Multiplies (C, H, W) by a factor, then subtracts the mean and divides by the standard deviation.

    Args:
        image: Of any type; without factor and mean it is returned as it is.
        factor: None leaves it out.
        mean: One number or one for each channel; None leaves mean and std out.
        std: Likewise.
    """

    def to_float(values: Array) -> Array:
        if factor is not None:
            values = (values.astype(np.float64) * factor).astype(np.float32)
        if mean is not None and std is not None:
            if not np.issubdtype(values.dtype, np.floating):
                values = values.astype(np.float32)
            values = (values - _per_channel(mean, "image_mean", values)) / _per_channel(std, "image_std", values)
        return values

    if image.dtype == np.uint8 and (factor is not None or mean is not None):
        # 8-bit images have 256 values: work out each once, look the rest up. Same bits, a third of the time.
        levels = np.tile(np.arange(256, dtype=np.uint8), (len(image), 1))[:, None]
        table = to_float(levels)[:, 0]
        pixels = np.empty(image.shape, table.dtype)
        for channel, values, looked_up in zip(image, table, pixels, strict=True):
            np.take(values, channel, out=looked_up, mode="clip")  # no value is out of range; "raise" copies the result
        return pixels
    return to_float(image)


def _per_channel(value: float | Sequence[float], name: str, image: Array) -> Array:
    numbers = list(value) if isinstance(value, Sequence) else [value] * image.shape[0]
    if len(numbers) != image.shape[0]:
        raise UserError(f"{name} has {len(numbers)} numbers and the image has {image.shape[0]} channels.")
    return np.array(numbers, dtype=image.dtype)[:, None, None]


def padded_size(sizes: Sequence[tuple[int, int]], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Returns the size to pad images to: the one given, or their largest height and width.

    Raises:
        ValueError: An image is larger than the one wanted.
    """
    largest = max(height for height, _ in sizes), max(width for _, width in sizes)
    if wanted is None:
        return largest
    if largest[0] > wanted[0] or largest[1] > wanted[1]:
        raise UserError(f"pad_size {wanted} is smaller than an image of {largest}. Pass a larger one, or resize.")
    return wanted


def pad(image: Array, size: tuple[int, int], fill_value: float = 0, mode: Any = "constant") -> Array:
    """Pads (C, H, W) below and to the right, by default with zeros."""
    filled = {"constant_values": fill_value} if mode == "constant" else {}
    return np.pad(image, ((0, 0), (0, size[0] - image.shape[1]), (0, size[1] - image.shape[2])), mode, **filled)


# --- from arrays to tensors ---------------------------------------------------------------------------


def stack(pixels: list[Array], return_tensors: str | None) -> Any:
    """Stacks images of one size into a tensor.

    Args:
        pixels: Arrays.
        return_tensors: None returns the list; "np", "pt" (PyTorch), "tf" (TensorFlow), "jax" or "mlx".

    Raises:
        ImportError: The package is not installed.
        ValueError: The images have different sizes.
    """
    if return_tensors is None:
        return pixels
    refuse_different_sizes([p.shape for p in pixels])
    is_alone = len(pixels) == 1 and pixels[0].flags.owndata  # no view of an image
    batch = pixels[0][None] if is_alone else np.stack(pixels)
    return batch if return_tensors == "np" else to_tensor(batch, return_tensors)


def refuse_different_sizes(shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises an error for shapes that cannot be stacked.

    Raises:
        ValueError: They differ.
    """
    different = sorted({tuple(shape) for shape in shapes})
    if len(different) > 1:
        raise UserError(
            f"Images of different sizes cannot be stacked: {different}. "
            "Switch on do_center_crop or do_pad, resize to a fixed size, or pass return_tensors=None."
        )


_TENSOR_MAKERS: dict[str, tuple[str, str, str]] = {  # -> (package to install, module, function)
    "pt": ("torch", "torch", "from_numpy"),
    "tf": ("tensorflow", "tensorflow", "constant"),
    "jax": ("jax", "jax.numpy", "asarray"),
    "mlx": ("mlx", "mlx.core", "array"),
}


def to_tensor(batch: Array, return_tensors: str) -> Any:
    """Converts an array to a tensor of another package; arguments and errors as in `stack`."""
    package, module, function = _TENSOR_MAKERS[return_tensors]
    try:
        make: Callable[[Array], Any] = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise MissingPackageError(
            f"return_tensors={return_tensors!r} needs the {package!r} package. Install it with: pip install {package}"
        ) from error
    return make(batch)

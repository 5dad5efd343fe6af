"""Images into pixels: decoding, resizing, cropping and normalizing with Pillow and numpy."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from deit.core.files import write_text_atomically

PREPROCESSOR_NAME = "preprocessor_config.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# What Pillow may decode: formats that people keep photos in. Others (PSD, EPS, FITS, ...) have a history of
# decoder bugs and are refused.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG brings MPO (two-lens photos)

Array: TypeAlias = npt.NDArray[Any]
ImageLike: TypeAlias = Any  # PIL image, array (H, W, C) or (C, H, W), tensor, or a (nested) list of them
ImageFile: TypeAlias = str | os.PathLike[str] | bytes


class ImageError(ValueError):
    """A file or its bytes cannot be read as an image."""


def load_image(source: ImageFile | Image.Image, *, mode: str = "RGB") -> Image.Image:
    """Reads an image upright and converts it to a colour mode.

    The conversion for every mode: turned as its EXIF tag says; of several frames the first; 16-bit grey is
    scaled to 8 bits; transparency is laid on white; then Pillow's own conversion to `mode`.

    Args:
        source: A path, the bytes of a file, or an image.
        mode: "RGB", or "L" for one channel.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is not an image of a known format, is truncated, or claims too many pixels.
    """
    if isinstance(source, Image.Image):
        return _convert(source, mode)
    with _opened(source) as image:
        image.load()
        return _convert(image, mode)


def check_image(path: str | os.PathLike[str]) -> None:
    """Decodes an image as cheaply as its format allows, to find out whether it is whole.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: See `load_image`.
    """
    with _opened(path) as image:
        image.draft(None, (1, 1))  # JPEG: an eighth of the size, but every byte is read
        image.load()


@contextmanager
def _opened(source: ImageFile) -> Iterator[Image.Image]:
    name = "the given bytes" if isinstance(source, bytes) else os.fspath(source)
    handle = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(handle, formats=IMAGE_FORMATS) as image:
                yield image
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image (known: {', '.join(IMAGE_FORMATS)}).") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} claims more pixels than are safe to decode ({error}).") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on broken files
        raise ImageError(f"{name} cannot be read as an image ({error}). It may be truncated.") from error


def _convert(image: Image.Image, mode: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(wide / 257.0 + 0.5, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


class BatchFeature(UserDict[str, Any]):
    """The processor's output: a dict whose keys are also attributes."""

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(name)

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Moves PyTorch tensors with `Tensor.to`; other values stay."""
        return BatchFeature({k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self.items()})


class DeiTImageProcessor:
    """Turns images into `pixel_values`: resize, center crop, rescale, normalize, channels first.

    Names and defaults are those of transformers, and so are the values, bit for bit (its Pillow processor).
    Published DeiT weights bring their own settings in `preprocessor_config.json`; the defaults here are only
    what transformers uses when a file says nothing.

    Args:
        do_resize: Whether to resize.
        size: {"height", "width"} squashes to that size; {"shortest_edge"} (with an optional "longest_edge" as a limit)
            keeps the proportions. A number or a pair means height and width.
        resample: A Pillow filter; 3 is bicubic.
        do_center_crop: Whether to crop the center; images that are smaller are padded with zeros.
        crop_size: {"height", "width"}, a number or a pair, in pixels.
        do_rescale: Whether to multiply by `rescale_factor`.
        rescale_factor: 1/255 brings 8-bit values to [0, 1].
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: One number, or one for each channel.
        image_std: One number, or one for each channel.

    Raises:
        ValueError: A size has unknown keys, or a setting that is switched on is None.
        TypeError: An option is unknown.

    Example:
        >>> processor = DeiTImageProcessor(size=256, crop_size=224)
        >>> processor(Image.new("RGB", (640, 480)), return_tensors="np").pixel_values.shape
        (1, 3, 224, 224)
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        do_resize: bool = True,
        size: Any = None,
        resample: int = Image.Resampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: Any = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
    ) -> None:
        self.do_resize = do_resize
        self.size = size_dict({"height": 256, "width": 256} if size is None else size, "size")
        self.resample = int(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = size_dict({"height": 224, "width": 224} if crop_size is None else crop_size, "crop_size")
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = [0.5, 0.5, 0.5] if image_mean is None else image_mean
        self.image_std = [0.5, 0.5, 0.5] if image_std is None else image_std

    def __call__(self, images: ImageLike, **overrides: Any) -> BatchFeature:
        """Same as `preprocess`."""
        return self.preprocess(images, **overrides)

    def preprocess(
        self,
        images: ImageLike,
        *,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Processes one image or a list of them.

        Args:
            images: PIL images, arrays or tensors of 3 dimensions, or (nested) lists; 4 dimensions are a batch. Arrays
                of floats must lie in [0, 1] or hold whole numbers in [0, 255].
            return_tensors: None (list of arrays), "np" or "pt".
            data_format: "channels_first" or "channels_last", of the output.
            input_data_format: The same for arrays given; inferred when None.
            **overrides: Any argument of the constructor, for this call.

        Returns:
            `pixel_values`, (B, C, H, W) or a list of (C, H, W).

        Raises:
            TypeError: An option is unknown.
            ValueError: An image or an option cannot be used.
        """
        settings = self._with(overrides) if overrides else self
        settings._require_settings()
        arrays = [_channels_first(image, input_data_format) for image in _flatten(images)]
        if not arrays:
            raise ValueError("No images were given.")
        if settings.do_rescale and any(_is_in_unit_range(a) for a in arrays):
            warnings.warn(
                "Images with values in [0, 1] are rescaled once more. Pass do_rescale=False if that is not wanted.",
                stacklevel=2,
            )
        pixels = [settings._process(array) for array in arrays]
        if data_format in ("channels_last", "ChannelDimension.LAST"):
            pixels = [np.moveaxis(p, 0, -1) for p in pixels]
        elif data_format not in ("channels_first", "ChannelDimension.FIRST"):
            raise ValueError(f"data_format must be 'channels_first' or 'channels_last'. Received: {data_format!r}.")
        return BatchFeature({"pixel_values": _as_tensors(pixels, return_tensors)})

    def _with(self, overrides: Mapping[str, Any]) -> DeiTImageProcessor:
        unknown = set(overrides) - set(self.to_dict())
        if unknown:
            raise TypeError(f"Unknown option {', '.join(sorted(unknown))}. Known: {', '.join(self._settings())}.")
        given = {k: v for k, v in overrides.items() if v is not None}
        return DeiTImageProcessor(**{**self._settings(), **given})

    def _require_settings(self) -> None:
        for switch, names in (
            ("do_resize", ("size", "resample")),
            ("do_center_crop", ("crop_size",)),
            ("do_rescale", ("rescale_factor",)),
            ("do_normalize", ("image_mean", "image_std")),
        ):
            for name in names:
                if getattr(self, switch) and getattr(self, name) is None:
                    raise ValueError(f"{name} is None although {switch} is on. Set {name}, or {switch}=False.")

    def _process(self, image: Array) -> Array:
        if self.do_resize:
            image = _resize(image, self._output_size(image.shape[1], image.shape[2]), self.resample)
        if self.do_center_crop:
            if "height" not in self.crop_size:
                raise ValueError(f"crop_size needs 'height' and 'width'. Received: {self.crop_size}.")
            image = _center_crop(image, self.crop_size["height"], self.crop_size["width"])
        if image.dtype == np.uint8 and (self.do_rescale or self.do_normalize):
            # 8-bit images have 256 values: work out each once, look the rest up. Same bits, a third of the time.
            levels = np.tile(np.arange(256, dtype=np.uint8), (len(image), 1))[:, None]
            table = self._to_float(levels)[:, 0]
            return np.stack([np.take(table[c], image[c]) for c in range(len(image))])
        return self._to_float(image)

    def _to_float(self, image: Array) -> Array:
        if self.do_rescale:
            image = (image.astype(np.float64) * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            if not np.issubdtype(image.dtype, np.floating):
                image = image.astype(np.float32)
            mean = _per_channel(self.image_mean, "image_mean", image)
            std = _per_channel(self.image_std, "image_std", image)
            image = (image - mean) / std
        return image

    def _output_size(self, height: int, width: int) -> tuple[int, int]:
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        if "shortest_edge" in self.size:
            return _scale_to_shortest_edge(height, width, self.size["shortest_edge"], self.size.get("longest_edge"))
        raise ValueError(f"size needs 'height' and 'width', or 'shortest_edge'. Received: {self.size}.")

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """`image_mean` of each of three channels."""
        return _three(self.image_mean)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """`image_std` of each of three channels."""
        return _three(self.image_std)

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the result, in pixels.

        Raises:
            ValueError: The settings do not fix it.
        """
        size = self.crop_size if self.do_center_crop else self.size
        if "height" not in size:
            raise ValueError(f"Without a center crop, size {size} leaves the size of the result open.")
        return size["height"], size["width"]

    # --- JSON ----------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as `preprocessor_config.json` holds them."""
        values = self._settings()
        for name in ("image_mean", "image_std"):
            if isinstance(values[name], Sequence):
                values[name] = [float(v) for v in values[name]]
        return {**values, "image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """Returns the settings as JSON: sorted keys, indented by two, with a trailing newline."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `preprocessor_config.json` into a folder, which is made if it is missing."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_text_atomically(Path(save_directory) / PREPROCESSOR_NAME, self.to_json_string())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> DeiTImageProcessor:
        """Builds a processor from settings of any generation of files; keywords override them.

        Keys that have no meaning here (types, nulls of newer writers) are passed over.

        Raises:
            TypeError: An override is unknown.
        """
        known = set(cls().to_dict()) - {"image_processor_type"}
        unknown = set(overrides) - known
        if unknown:
            raise TypeError(f"Unknown option {', '.join(sorted(unknown))}. Known: {', '.join(sorted(known))}.")
        given = {k: v for k, v in values.items() if k in known and v is not None}
        return cls(**{**given, **overrides})

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **overrides: Any) -> DeiTImageProcessor:
        """Reads `preprocessor_config.json` from a model directory, or the file itself.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON.
        """
        file = Path(path) / PREPROCESSOR_NAME if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"No {PREPROCESSOR_NAME} at {path}. Pass a model directory with one.")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON ({error}).") from error
        return cls.from_dict(values, **overrides)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def evaluation_processor(
    image_size: tuple[int, int], *, crop_ratio: float, mean: Sequence[float], std: Sequence[float]
) -> DeiTImageProcessor:
    """Returns the paper's evaluation: shorter side to size / crop ratio, then the center crop.

    Args:
        image_size: (height, width) of the model's input in pixels.
        crop_ratio: Crop size over resize size: 0.875 in the paper (256, then 224). 1 squashes to the input size, so
            that nothing is cut off.
        mean: Of each channel, for values in [0, 1].
        std: Likewise.

    Raises:
        ValueError: The ratio is not in (0, 1].
    """
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"crop_ratio must lie in (0, 1]. Received: {crop_ratio}.")
    height, width = image_size
    whole = {"height": height, "width": width}
    return DeiTImageProcessor(
        size=whole if crop_ratio == 1 else {"shortest_edge": int(max(height, width) / crop_ratio)},
        crop_size=whole,
        do_center_crop=crop_ratio < 1,
        image_mean=list(mean),
        image_std=list(std),
    )


_SIZE_KEYS: tuple[frozenset[str], ...] = (
    frozenset({"height", "width"}),
    frozenset({"shortest_edge"}),
    frozenset({"shortest_edge", "longest_edge"}),
)


def size_dict(size: Any, name: str) -> dict[str, int]:
    """Returns a size as a dict: a number is a square, a pair is (height, width).

    Raises:
        ValueError: A dict has other keys than {height, width}, {shortest_edge} or {shortest_edge, longest_edge},
            or a side is smaller than 1.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size}
    elif isinstance(size, (tuple, list)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, Mapping):
        raise ValueError(f"{name} must be a number, a pair or a dict. Received: {size!r}.")
    sides = {k: v for k, v in size.items() if v is not None}
    if frozenset(sides) not in _SIZE_KEYS:
        allowed = "; ".join(", ".join(sorted(keys)) for keys in _SIZE_KEYS)
        raise ValueError(f"{name} must have exactly the keys of one of: {allowed}. Received: {sorted(size)}.")
    if not all(isinstance(v, int) and v >= 1 for v in sides.values()):
        raise ValueError(f"{name} must hold whole numbers of at least 1. Received: {sides}.")
    return sides


def _flatten(images: ImageLike) -> list[Any]:
    if isinstance(images, (list, tuple)):
        return [single for item in images for single in _flatten(item)]
    if hasattr(images, "ndim") and images.ndim == 4:
        return list(images)
    return [images]


def _channels_first(image: Any, input_data_format: str | None) -> Array:
    if isinstance(image, Image.Image):
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if hasattr(image, "detach"):  # a PyTorch tensor, without importing PyTorch
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(f"Images must be PIL images, numpy arrays or tensors. Received: {type(image).__name__}.")
    if image.ndim != 3:
        raise ValueError(f"An image needs 3 dimensions, (H, W, C) or (C, H, W). Received the shape {image.shape}.")
    if input_data_format is None:
        if image.shape[0] in (1, 3, 4):
            input_data_format = "channels_first"
        elif image.shape[-1] in (1, 3, 4):
            input_data_format = "channels_last"
        else:
            raise ValueError(f"Cannot tell the channels of an image of shape {image.shape}. Pass input_data_format=...")
    return np.moveaxis(image, -1, 0) if str(input_data_format).lower().endswith("last") else image


def _is_in_unit_range(image: Array) -> bool:
    return np.issubdtype(image.dtype, np.floating) and bool(image.size and image.min() >= 0 and image.max() <= 1)


def _resize(image: Array, size: tuple[int, int], resample: int) -> Array:
    """Resizes (C, H, W) through Pillow's 8-bit filters, as transformers does; floats are quantized for it."""
    from_unit_range = False
    if image.dtype != np.uint8:
        if np.allclose(image, image.astype(np.int64)):
            if image.min() < 0 or image.max() > 255:
                raise ValueError(f"Whole numbers must lie in [0, 255]. Received: {image.min()} to {image.max()}.")
        elif image.min() >= 0 and image.max() <= 1:
            from_unit_range = True
            image = (image.astype(np.float64) * 255).astype(np.float32)
        else:
            raise ValueError(
                f"Values from {image.min()} to {image.max()} cannot be resized: they must be in [0, 1], or whole "
                "numbers in [0, 255]. Pass do_resize=False for pixels that are normalized already."
            )
        image = image.astype(np.uint8)
    squeezed = image[0] if image.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1))
    resized = np.asarray(Image.fromarray(squeezed).resize((size[1], size[0]), resample=resample))
    array = resized[None] if resized.ndim == 2 else np.moveaxis(resized, -1, 0)
    return (array.astype(np.float64) * (1 / 255)).astype(np.float32) if from_unit_range else array


def _center_crop(image: Array, height: int, width: int) -> Array:
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


def _scale_to_shortest_edge(height: int, width: int, shortest: int, longest: int | None) -> tuple[int, int]:
    """Returns the size with the shorter side at `shortest`, the other truncated, as torchvision does."""
    low, high = min(height, width), max(height, width)
    exact = float(shortest)
    if longest is not None and high / low * shortest > longest:
        exact = longest * low / high
        shortest = round(exact)
    if low == shortest:
        return height, width
    other = int(exact * high / low)
    return (shortest, other) if height <= width else (other, shortest)


def _per_channel(value: Any, name: str, image: Array) -> Array:
    numbers = list(value) if isinstance(value, (Sequence, np.ndarray)) else [value] * image.shape[0]
    if len(numbers) != image.shape[0]:
        raise ValueError(f"{name} has {len(numbers)} numbers and the image has {image.shape[0]} channels.")
    return np.array(numbers, dtype=image.dtype)[:, None, None]


def _three(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * 3


def _as_tensors(pixels: list[Array], return_tensors: str | None) -> Any:
    if return_tensors is None:
        return pixels
    if len({p.shape for p in pixels}) > 1:
        raise ValueError(
            f"Images of different sizes cannot be stacked: {sorted({p.shape for p in pixels})}. "
            "Switch on do_center_crop, resize to a fixed size, or pass return_tensors=None."
        )
    batch = np.stack(pixels)
    if return_tensors == "np":
        return batch
    if return_tensors == "pt":
        import torch

        return torch.from_numpy(batch)
    raise ValueError(f"return_tensors must be None, 'np' or 'pt'. Received: {return_tensors!r}.")
